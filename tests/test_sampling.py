"""Cached decoding, guidance, the filters and the dice."""

import math

import pytest
import tiny
import torch

from gear_studio import sampling
from gear_studio.models.generator import Generator, rotary_table, rotate

LABELS = torch.tensor([0, 3, 9])


@pytest.fixture(scope="module")
def gen() -> Generator:
    return tiny.generator()


def full_logits(gen: Generator, indices: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One forward over whole sequences, without a cache."""
    with torch.no_grad():
        return gen(gen.token_table[indices[:, :-1]], labels)


@pytest.mark.parametrize("labels", [LABELS, torch.full((3,), 10)], ids=["classes", "null"])
def test_cached_decoding_equals_the_full_forward_token_by_token(gen, labels):
    indices = torch.randint(64, (3, 16), generator=torch.Generator().manual_seed(5))
    expected = full_logits(gen, indices, labels)
    assert expected.std() > 0.1  # otherwise there would be nothing to compare
    cache = gen.new_cache(labels)
    with torch.no_grad():
        x = gen.condition(labels)
        for i in range(16):
            cache = cache.at(torch.tensor([i]), reach=16)
            torch.testing.assert_close(gen.decode(x, cache), expected[:, i], atol=1e-5, rtol=0)
            x = gen.token_table[indices[:, i]][:, None]


@pytest.mark.parametrize("scale", [1.0, 1.5, 4.0])
def test_greedy_sampling_takes_the_best_code_of_the_guided_full_forward(gen, scale):
    indices = sampling.sample(gen, LABELS, cfg_scale=scale, temperature=0)
    conditional = full_logits(gen, indices, LABELS)
    null = full_logits(gen, indices, torch.full_like(LABELS, 10))
    assert torch.equal(indices, (null + scale * (conditional - null)).argmax(-1))


def test_guidance_matters_but_a_scale_of_one_is_none(gen):
    def draw(scale: float) -> torch.Tensor:
        return sampling.sample(gen, LABELS, cfg_scale=scale, seed=2)

    assert not torch.equal(draw(1.0), draw(3.0))
    # Guided arithmetic at a scale a hair from 1 takes the other branch and must agree with it.
    assert torch.equal(draw(1.0), draw(1 + 1e-7))


def test_stream_yields_every_row_and_ends_with_what_sample_returns(gen):
    steps = list(sampling.sample_by_row(gen, LABELS, seed=7, temperature=0.9, top_k=20, top_p=0.9))
    assert [step.done for step in steps] == [4, 8, 12, 16]
    final = sampling.sample(gen, LABELS, seed=7, temperature=0.9, top_k=20, top_p=0.9)
    assert torch.equal(steps[-1].indices, final)
    for step in steps:
        assert torch.equal(step.indices[:, : step.done], final[:, : step.done])
        assert not step.indices[:, step.done :].any()


def test_reported_log_probabilities_and_entropies_are_those_of_the_guided_model(gen):
    *_, last = sampling.sample_by_row(gen, LABELS, cfg_scale=2.0, temperature=0.5, top_k=5, seed=1)
    conditional = full_logits(gen, last.indices, LABELS)
    null = full_logits(gen, last.indices, torch.full_like(LABELS, 10))
    log_p = (null + 2 * (conditional - null)).log_softmax(-1)
    chosen = log_p.gather(-1, last.indices[..., None]).squeeze(-1)
    torch.testing.assert_close(last.log_probs, chosen, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last.entropy, -(log_p.exp() * log_p).sum(-1), atol=1e-4, rtol=1e-4)


def test_a_seed_decides_each_picture_whatever_the_count(gen):
    same = torch.full((5,), 4)
    five = sampling.sample(gen, same, seed=11)
    assert torch.equal(sampling.sample(gen, same[:2], seed=11), five[:2])
    assert len({tuple(row.tolist()) for row in five}) == 5
    assert not torch.equal(sampling.sample(gen, same, seed=12), five)


def test_sampling_with_a_seed_leaves_the_global_dice_alone(gen):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    sampling.sample(gen, LABELS, seed=0)
    assert torch.equal(torch.rand(4), expected)


def test_without_a_seed_every_call_differs(gen):
    assert not torch.equal(sampling.sample(gen, LABELS), sampling.sample(gen, LABELS))


def test_keeping_one_code_is_greedy(gen):
    greedy = sampling.sample(gen, LABELS, temperature=0)
    assert torch.equal(sampling.sample(gen, LABELS, top_k=1, seed=5), greedy)
    assert torch.equal(sampling.sample(gen, LABELS, top_p=1e-9, seed=5), greedy)
    assert not torch.equal(sampling.sample(gen, LABELS, seed=5), greedy)


def kept(logits: list[float], **filters) -> list[int]:
    filtered = sampling.filter_logits(torch.tensor([logits]), **filters)[0]
    alive = filtered.isfinite()
    assert torch.equal(filtered[alive], torch.tensor(logits)[alive])
    return alive.nonzero().flatten().tolist()


def test_top_k_keeps_the_best():
    logits = [0.0, 3.0, -1.0, 2.0]
    assert kept(logits, top_k=2) == [1, 3]
    assert kept(logits, top_k=3) == [0, 1, 3]
    assert kept(logits, top_k=0) == kept(logits, top_k=99) == [0, 1, 2, 3]


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    logits = [math.log(p) for p in (0.1, 0.5, 0.15, 0.25)]
    assert kept(logits, top_p=0.4) == [1]
    assert kept(logits, top_p=0.6) == [1, 3]
    assert kept(logits, top_p=0.76) == [1, 2, 3]
    assert kept(logits, top_p=1.0) == [0, 1, 2, 3]


def test_top_k_keeps_no_more_than_k_where_logits_are_equal():
    logits = [1.0, 2, 2, 0, 2, 2]
    assert kept(logits, top_k=2) == [1, 2]
    assert kept(logits, top_k=5) == [0, 1, 2, 4, 5]
    assert kept(logits, top_p=0.3) == [1, 2]
    coarse = torch.randn(20, 4096, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    assert (sampling.filter_logits(coarse, top_k=50).isfinite().sum(-1) == 50).all()


def test_top_p_counts_the_mass_that_top_k_left():
    logits = [math.log(p) for p in (0.1, 0.5, 0.15, 0.25)]
    # Of the best two, the first holds 2/3 of the mass: enough for 0.6, which of all four it is not.
    assert kept(logits, top_k=2, top_p=0.6) == [1]


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (1.0, 3)])
def test_draws_follow_the_distribution(temperature, top_k):
    gen = tiny.generator(codes=6)
    count = 3000
    first = next(
        sampling.sample_by_row(gen, torch.full((count,), 2), 1.0, temperature, top_k, seed=0)
    ).indices[:, 0]
    with torch.no_grad():
        logits = full_logits(gen, torch.zeros(1, 16, dtype=torch.long), torch.tensor([2]))[0, 0]
    p = sampling.filter_logits(logits[None] / temperature, top_k)[0].softmax(-1).double()
    seen = torch.bincount(first, minlength=6).double()
    possible = p > 0
    assert seen[~possible].sum() == 0
    chi_square = ((seen - count * p).square() / (count * p))[possible].sum().item()
    assert chi_square < 20.5  # 99.9 % of honest dice stay below, with 5 degrees of freedom
    # The same dice against a distribution a little off do not pass: the test can tell.
    off = (p + 0.05) / (p + 0.05).sum()
    assert ((seen - count * off).square() / (count * off)).sum() > 20.5


def test_the_lowest_and_the_highest_draw_land_on_codes_that_were_kept(gen, monkeypatch):
    greedy = sampling.sample(gen, LABELS, temperature=0)
    for draw in (0.0, 1 - 2**-24):

        def draws(seed, batch, length, first, draw=draw):
            return torch.full((batch, length), draw)

        monkeypatch.setattr(sampling, "draw_uniforms", draws)
        assert torch.equal(sampling.sample(gen, LABELS, top_k=1, seed=0), greedy)


def test_uniforms_cover_the_unit_interval_evenly():
    draws = sampling.draw_uniforms(seed=0, batch=200, length=50)
    assert 0 <= draws.min() and draws.max() < 1
    assert draws.mean().item() == pytest.approx(0.5, abs=0.01)
    across = torch.corrcoef(draws[:2])[0, 1].item()
    assert abs(across) < 0.4  # neighbouring pictures are not copies of each other


@pytest.mark.parametrize("training", [True, False])
def test_the_generator_is_left_in_the_mode_it_was_in(training):
    gen = tiny.generator().train(training)
    assert torch.equal(sampling.sample(gen, LABELS, seed=0), sampling.sample(gen.eval(), LABELS, seed=0))
    gen.train(training)
    rows = sampling.sample_by_row(gen, LABELS, seed=0)
    next(rows)
    assert gen.training == gen.condition.training == training
    with pytest.raises(ValueError):
        sampling.sample(gen, torch.tensor([99]))
    assert gen.training == training


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}])
def test_impossible_settings_are_refused_by_name(gen, bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        sampling.sample(gen, LABELS, **bad)


def test_pictures_of_the_same_number_share_their_random_numbers():
    one, other, again = sampling.draw_uniforms(seed=3, batch=3, length=5, first=[2, 0, 2])
    in_order = sampling.draw_uniforms(3, 3, 5)
    assert torch.equal(one, again) and torch.equal(torch.stack([other, one]), in_order[::2])


def test_classes_may_be_a_list_and_are_checked():
    generator = tiny.generator()
    drawn = sampling.sample(generator, [1, 2], seed=0)
    assert torch.equal(drawn, sampling.sample(generator, torch.tensor([1, 2]), seed=0))
    nothing = sampling.sample(generator, [generator.config.classes], seed=0)  # the null
    assert torch.equal(nothing, sampling.sample(generator, generator.condition.nulls(1), seed=0))
    for wrong in ([99], [-1], [0.5], [True], [], [[1]]):
        with pytest.raises(ValueError, match="condition is .*expected whole numbers 0..9, one a picture"):
            sampling.sample(generator, wrong, seed=0)
    with pytest.raises(ValueError, match=r"condition is \['red ring'\]; .*Run.class_numbers"):
        sampling.sample(generator, ["red ring"], seed=0)


@pytest.mark.parametrize("kind", ["class", "caption"])
def test_guidance_ends_behind_the_token_that_is_named(gen, kind):
    gen, asked = (gen, LABELS) if kind == "class" else (tiny.captioned(), tiny.captions([2, 5, 3]))
    null = gen.condition.nulls(3)
    for interval in (0, 5):
        indices = sampling.sample(gen, asked, cfg_scale=4.0, temperature=0, cfg_interval=interval)
        conditional, unconditional = full_logits(gen, indices, asked), full_logits(gen, indices, null)
        guided = unconditional + 4.0 * (conditional - unconditional)
        expected = torch.cat([guided[:, : interval + 2], conditional[:, interval + 2 :]], 1).argmax(-1)
        assert torch.equal(indices, expected) and not torch.equal(expected, guided.argmax(-1))
    whole = sampling.sample(gen, asked, cfg_scale=4.0, seed=3)
    assert torch.equal(sampling.sample(gen, asked, cfg_scale=4.0, seed=3, cfg_interval=14), whole)
    with pytest.raises(ValueError, match="cfg_interval is -1"):
        sampling.sample(gen, asked, cfg_interval=-1)


HOW = {"cfg_scale": 2.0, "temperature": 0.9, "top_k": 20, "top_p": 0.95, "seed": 4}


def some_tokens(*drawn: int) -> torch.Tensor:
    """A mask of a picture's 16 tokens with these drawn."""
    return torch.isin(torch.arange(16), torch.tensor(drawn, dtype=torch.long))


def test_resampling_nothing_keeps_the_picture_and_everything_samples_it(gen):
    given = sampling.sample(gen, LABELS, seed=99)
    assert torch.equal(sampling.resample(gen, LABELS, given, some_tokens(), **HOW), given)
    whole = sampling.resample(gen, LABELS, given, some_tokens(*range(16)), **HOW)
    assert torch.equal(whole, sampling.sample(gen, LABELS, **HOW))


@pytest.mark.parametrize("kind", ["class", "caption"])
def test_a_resampled_token_follows_from_all_before_it_and_from_none_behind(gen, kind):
    gen, asked = (gen, LABELS) if kind == "class" else (tiny.captioned(), tiny.captions([2, 5, 3]))
    given, mask = sampling.sample(gen, asked, seed=99), some_tokens(5, 6, 9)
    drawn = sampling.resample(gen, asked, given, mask, cfg_scale=2.0, temperature=0)
    assert torch.equal(drawn[:, ~mask], given[:, ~mask])
    conditional, null = full_logits(gen, drawn, asked), full_logits(gen, drawn, gen.condition.nulls(3))
    best = (null + 2.0 * (conditional - null)).argmax(-1)
    assert torch.equal(drawn[:, mask], best[:, mask]) and not torch.equal(drawn[:, mask], given[:, mask])
    behind = given.clone()
    behind[:, 10:] = (behind[:, 10:] + 1) % 64
    again = sampling.resample(gen, asked, behind, mask, cfg_scale=2.0, temperature=0)
    assert torch.equal(again[:, :10], drawn[:, :10]) and torch.equal(again[:, 10:], behind[:, 10:])


def test_one_picture_is_resampled_in_several_ways_and_a_mask_may_differ_by_picture(gen):
    picture = sampling.sample(gen, [4], seed=99)[0]
    masks = torch.stack([some_tokens(*range(4, 16)), some_tokens(*range(4, 16)), some_tokens()])
    one, other, same = sampling.resample(gen, [4, 4, 4], picture, masks, seed=0)
    assert torch.equal(same, picture) and not torch.equal(one, other)
    assert torch.equal(one[:4], picture[:4]) and torch.equal(other[:4], picture[:4])
    *_, last = sampling.resample_by_row(gen, [4, 4, 4], picture, masks, cfg_scale=1.0, seed=0)
    log_p = full_logits(gen, last.indices, torch.tensor([4, 4, 4])).log_softmax(-1)
    chosen = log_p.gather(-1, last.indices[..., None]).squeeze(-1)  # of what is kept, too
    torch.testing.assert_close(last.log_probs, chosen, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"indices": torch.zeros(3, 15, dtype=torch.long)},
            r"indices has shape \(3, 15\); expected \(3, 16\)",
        ),
        ({"mask": some_tokens().expand(2, 16)}, r"mask has shape \(2, 16\)"),
        ({"mask": torch.zeros(16)}, "mask is of torch.float32; expected torch.bool"),
        ({"indices": torch.full((16,), 64)}, r"indices are in 64..64; the generator's codes are 0..63"),
    ],
)
def test_what_does_not_fit_is_not_resampled(gen, bad, message):
    arguments = {"indices": torch.zeros(16, dtype=torch.long), "mask": some_tokens(3)} | bad
    with pytest.raises(ValueError, match=message):
        sampling.resample(gen, LABELS, **arguments)


@pytest.mark.parametrize("kind", ["class", "caption"])
def test_how_far_a_step_looks_back_is_rounded_up_and_changes_nothing(gen, kind, monkeypatch):
    gen, asked = (gen, LABELS) if kind == "class" else (tiny.captioned(), tiny.captions([2, 5, 3]))
    expected = sampling.sample(gen, asked, cfg_interval=5, seed=4)
    seen, decode = [], sampling.Decoder.decode
    monkeypatch.setattr(sampling, "REACH", 4)
    monkeypatch.setattr(sampling.Decoder, "decode", lambda d, *given: seen.append(given) or decode(d, *given))
    assert torch.equal(sampling.sample(gen, asked, cfg_interval=5, seed=4), expected)
    words = gen.condition.positions
    assert seen == [(i < 7, min((words - 1 + i) // 4 * 4 + 4, words + 15)) for i in range(1, 16)]


def test_on_the_cpu_decoding_copies_no_weight():
    gen = tiny.generator().train()
    copied = sampling.copy_for_decoding(gen, torch.float32)
    assert gen.training and not copied.training
    for ours, theirs in zip(gen.parameters(), copied.parameters(), strict=True):
        assert theirs is ours


def test_a_decoder_started_anew_remembers_nothing(gen):
    settings, draws = sampling.SamplingSettings(), sampling.draw_uniforms(3, 3, 16)
    decoder = sampling.Decoder(gen, 3, settings)
    for labels in (torch.tensor([7, 7, 7]), LABELS):
        decoder.start(gen, labels, draws)
        for _ in range(16):
            decoder.step()
    assert torch.equal(decoder.indices, sampling.sample(gen, LABELS, seed=3))


def test_a_step_waits_for_nothing(gen):
    decoder = sampling.Decoder(gen, 3, sampling.SamplingSettings(top_k=9, top_p=0.9, cfg_interval=3))
    decoder.start(gen, LABELS, sampling.draw_uniforms(3, 3, 16))
    with tiny.Waits() as waits:
        for _ in range(16):
            decoder.step()
    assert waits.found == []


def test_compiled_rotation_is_the_same_without_complex_numbers():
    x, angles = torch.randn(2, 17, 16), rotary_table(4, 16)
    compiled = torch.compile(rotate, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, angles), rotate(x, angles), atol=1e-6, rtol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["class", "caption"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_captured_steps_are_the_eager_ones(gen, kind, dtype):
    gen, asked = (
        (tiny.generator(), LABELS) if kind == "class" else (tiny.captioned(), tiny.captions([2, 5, 3]))
    )
    gen, draws = gen.cuda(), sampling.draw_uniforms(3, 3, 16)
    settings = sampling.SamplingSettings(top_k=20, top_p=0.9, cfg_interval=6)
    found = []
    for captured in (False, True, True):
        decoder = sampling.Decoder(gen, 3, settings, dtype, captured)
        for _ in range(2):  # the second batch is replayed from the first token on
            decoder.start(gen, asked, draws)
            for _ in range(16):
                decoder.step()
            found.append(decoder.indices.clone())
        assert bool(decoder.graphs) == captured
    assert all(torch.equal(each, found[0]) for each in found)
    assert torch.equal(sampling.sample(gen, asked, seed=3), sampling.sample(gen, asked, seed=3))
    assert gen in sampling._idle
    sampling.forget(gen)
    assert gen not in sampling._idle
