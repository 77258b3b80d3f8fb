"""The generator conditioned on captions: padding, cached decoding, guidance, the two streams."""

from dataclasses import replace

import pytest
import tiny
import torch

from gear_studio import sampling
from gear_studio.analysis.attention import attention
from gear_studio.models.conditions import CaptionCondition
from gear_studio.models.generator import Generator, attention_mask
from gear_studio.models.text_encoders import Words

LENGTHS = [5, 1, 0, 3]  # full, short, empty, in between
GIVEN = tiny.captions(LENGTHS)


@pytest.fixture(scope="module")
def gen() -> Generator:
    return tiny.captioned()


def indices(batch: int, seed: int = 5) -> torch.Tensor:
    return torch.randint(64, (batch, 16), generator=torch.Generator().manual_seed(seed))


def logits(gen: Generator, tokens: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return gen(gen.tokens(tokens[:, :-1]), given)


def test_cached_decoding_equals_the_full_forward_with_captions_of_different_lengths(gen):
    tokens = indices(4)
    expected = logits(gen, tokens, GIVEN)
    assert expected.shape == (4, 16, 64) and expected.std() > 0.1
    cache, x = gen.new_cache(GIVEN), gen.condition(GIVEN)
    with torch.no_grad():
        for i in range(16):
            found = gen.decode(x, cache, words=0 if i else 5)
            torch.testing.assert_close(found, expected[:, i], atol=1e-5, rtol=1e-5)
            cache, x = cache.at(torch.tensor([5 + i]), reach=20), gen.tokens(tokens[:, i : i + 1])


def test_a_caption_is_the_same_alone_and_beside_longer_ones(gen):
    tokens = indices(4)
    together = logits(gen, tokens, GIVEN)
    for row in range(4):
        alone = logits(gen, tokens[row : row + 1], GIVEN[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


def test_features_of_padding_change_nothing_but_where_the_last_position_stands(gen):
    other = GIVEN.clone()
    for row, length in enumerate(LENGTHS):
        other[row, length:-1, 1:] = torch.randn_like(other[row, length:-1, 1:])
    assert not torch.equal(other, GIVEN)
    assert torch.equal(logits(gen, indices(4), other), logits(gen, indices(4), GIVEN))


def test_the_last_position_speaks_for_itself_alone_where_it_is_padding(gen):
    other = GIVEN.clone()
    other[1, -1, 1:] += 1
    before, after = logits(gen, indices(4), GIVEN), logits(gen, indices(4), other)
    assert not torch.equal(before[1, 0], after[1, 0])  # it is what predicts the first token
    assert torch.equal(before[1, 1:], after[1, 1:])  # and nobody looks at it


def test_longer_padding_changes_nothing(gen):
    given = tiny.captions([2, 0, 4])
    given[..., 1:] = torch.where(
        given[..., :1] > 0, given[..., 1:], 0.5
    )  # padding alike, as encoders make it
    wider = tiny.captioned(length=9)
    state = {k: v for k, v in gen.state_dict().items() if k != "condition.null"}
    wider.load_state_dict(state, strict=False)
    more = given[:, -1:].clone()
    more[..., 0], more[..., 1:] = 0, 0.5
    longer = torch.cat([given, more.expand(-1, 4, -1)], 1)
    found, expected = logits(wider, indices(3), longer), logits(gen, indices(3), given)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_every_word_reaches_every_token_and_words_see_only_words_before(gen):
    tokens = indices(4)
    before = logits(gen, tokens, GIVEN)
    for word in range(5):
        other = GIVEN.clone()
        other[0, word, 1:] += 1
        after = logits(gen, tokens, other)
        assert (after[0] != before[0]).any(-1).all()
        assert torch.equal(after[1:], before[1:])


def test_a_token_changes_only_the_logits_after_it(gen):
    tokens = indices(4)
    other = tokens.clone()
    other[:, 6] = (other[:, 6] + 1) % 64
    changed = (logits(gen, tokens, GIVEN) != logits(gen, other, GIVEN)).any(-1)
    assert not changed[:, :7].any() and changed[:, 7:].all()


def test_the_mask_by_hand():
    visible = torch.tensor([[True, False, False]])
    whole = attention_mask(visible, 0, 5)[0, 0].int().tolist()
    assert whole == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]
    assert attention_mask(visible, 4, 5)[0, 0].int().tolist() == whole[4:]
    assert attention_mask(None, 0, 5) is None
    visible = torch.tensor([[True, True, False]])
    prefix = attention_mask(visible, 0, 5, prefix=True)[0, 0].int().tolist()
    assert prefix == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    assert attention_mask(visible, 3, 4, prefix=True)[0, 0].int().tolist() == [[1, 1, 0, 1]]


def test_in_prefix_attention_words_see_later_words_and_decoding_agrees():
    made = tiny.captioned(text_attention="prefix")
    tokens = indices(4)
    expected = logits(made, tokens, GIVEN)
    cache, x = made.new_cache(GIVEN), made.condition(GIVEN)
    with torch.no_grad():
        for i in range(16):
            found = made.decode(x, cache, words=0 if i else 5)
            torch.testing.assert_close(found, expected[:, i], atol=1e-5, rtol=1e-5)
            cache, x = cache.at(torch.tensor([5 + i]), reach=20), made.tokens(tokens[:, i : i + 1])
    assert not torch.allclose(expected, logits(tiny.captioned(), tokens, GIVEN), atol=1e-3)
    weights = attention(made, tokens, GIVEN)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    other = GIVEN.clone()
    other[0, 1, 1:] += 1.0  # a later word reaches the first one's states
    with torch.no_grad():
        x, changed = (
            made.blocks[0](
                made.condition(g), made.angles[:5], mask=made.mask(made.condition.visible(g), 0, 5), words=5
            )
            for g in (GIVEN, other)
        )
    assert not torch.equal(x[0, 0], changed[0, 0]) and torch.equal(x[1], changed[1])


# Guidance


def test_without_guidance_and_with_none_worth_the_name_samples_are_the_same(gen):
    plain = sampling.sample(gen, GIVEN, cfg_scale=1.0, seed=3)
    assert torch.equal(plain, sampling.sample(gen, GIVEN, cfg_scale=1.0 + 1e-9, seed=3))
    nulls = gen.condition.nulls(4)
    unguided = sampling.sample(gen, nulls, cfg_scale=1.0, temperature=0, seed=3)
    assert torch.equal(unguided, sampling.sample(gen, nulls, cfg_scale=7.0, temperature=0, seed=3))


def test_guidance_leads_away_from_the_null_caption(gen):
    *_, last = sampling.sample_by_row(gen, GIVEN, cfg_scale=2.0, temperature=0)
    conditional = logits(gen, last.indices, GIVEN)
    null = logits(gen, last.indices, gen.condition.nulls(4))
    assert not torch.allclose(conditional, null)
    assert torch.equal(last.indices, (null + 2 * (conditional - null)).argmax(-1))


def test_a_picture_does_not_change_with_how_many_are_asked_for(gen):
    assert torch.equal(
        sampling.sample(gen, GIVEN, seed=3)[2:], sampling.sample(gen, GIVEN[2:], seed=3, first=2)
    )


def test_captions_are_dropped_to_the_null_in_training_only():
    torch.manual_seed(0)
    condition = CaptionCondition(tiny.CAPTION_DIM, tiny.CAPTION_LENGTH, dim=8, drop=0.25)
    condition.null.copy_(tiny.captions([2], seed=1)[0])
    given = tiny.captions([4]).expand(2000, -1, -1)
    found = condition.with_nulls(given)
    null = (found == condition.null).all(-1).all(-1)
    assert ((found == given).all(-1).all(-1) | null).all()
    assert null.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert condition.visible(found).sum(1).unique().tolist() == [2, 4]  # the words go with the features
    assert condition.eval().with_nulls(given) is given


def test_words_decide_what_is_drawn_from_the_first_token_on():
    """Learnt from captions of different lengths: the colour is the picture, whatever else is said."""
    encoder = Words(12)
    captions = ["a red ring", "a blue ring", "a small red star, top left", "on dark green a large blue star"]
    given, drawn = encoder(captions), indices(2)[[0, 1, 0, 1]]
    config = replace(tiny.GENERATOR, caption_dim=encoder.dim, caption_length=12, dropout=0.0, label_drop=0.0)
    torch.manual_seed(0)
    made = Generator(config).train()
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(
            made(made.tokens(drawn[:, :-1]), given).flatten(0, 1), drawn.flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert torch.equal(sampling.sample(made, given, cfg_scale=1.0, temperature=0), drawn)


# The two streams


def test_a_third_of_the_blocks_have_weights_for_the_text():
    made = tiny.captioned(blocks=6, tap=2)
    text = {k for k in made.state_dict() if "_text" in k}
    layers = ("attention_norm_text", "attention.qkv_text", "attention.out_text")
    assert text == {f"blocks.{n}.{layer}.weight" for n in (0, 1) for layer in layers}
    assert not [k for k in tiny.generator().state_dict() if "_text" in k]


@pytest.mark.parametrize("dual", [0, 1, 3])
def test_how_many_blocks_are_dual_is_a_setting(dual):
    made = tiny.captioned(dual_blocks=dual)
    assert made.config.text_blocks == dual
    assert {k.split(".")[1] for k in made.state_dict() if "_text" in k} == set(map(str, range(dual)))
    assert logits(made, indices(4), GIVEN).shape == (4, 16, 64)
    with pytest.raises(ValueError, match="dual_blocks 4 are more than the 3 blocks"):
        replace(tiny.GENERATOR, dual_blocks=4)
    with pytest.raises(ValueError, match="text_attention is 'full'; choose causal or prefix"):
        replace(tiny.GENERATOR, text_attention="full")


def test_text_weights_act_on_the_text_alone():
    made = tiny.captioned()
    x, angles = torch.randn(2, 20, 32), made.angles[:20]
    mask = attention_mask(torch.ones(2, 5, dtype=torch.bool), 0, 20)
    block = made.blocks[0]
    with torch.no_grad():
        before = block(x, angles, mask=mask, words=5)
        block.attention.out_text.weight.zero_()
        after = block(x, angles, mask=mask, words=5)
    assert torch.equal(before[:, 5:], after[:, 5:]) and not torch.equal(before[:, :5], after[:, :5])


def test_class_conditional_weights_load_into_the_image_stream(gen):
    made, classes = tiny.captioned(seed=1), tiny.generator(seed=2)
    made.take_image_stream(classes)
    own, theirs = made.state_dict(), classes.state_dict()
    for key, value in theirs.items():
        if not key.startswith("condition."):
            assert torch.equal(own[key], value)
    for key in own:
        if "_text." in key:
            assert torch.equal(own[key], theirs[key.replace("_text.", ".")])
    assert torch.equal(own["condition.up.weight"], tiny.captioned(seed=1).state_dict()["condition.up.weight"])
    with pytest.raises(ValueError, match=r"class-conditional generator does not fit Generator .*shape"):
        made.take_image_stream(tiny.generator(codes=32))


def test_captions_need_both_their_sizes():
    with pytest.raises(ValueError, match="caption_dim 4 with caption_length 0"):
        Generator(replace(tiny.GENERATOR, caption_dim=4))


def test_a_captioned_generator_survives_the_disk_with_its_null(gen, tmp_path):
    gen.save_pretrained(tmp_path)
    again = Generator.from_pretrained(tmp_path)
    assert torch.equal(again.condition.null, gen.condition.null) and again.config == gen.config
    assert torch.equal(logits(again, indices(4), GIVEN), logits(gen, indices(4), GIVEN))
