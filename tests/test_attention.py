"""Attention to words: against the generator's own outputs, by hand."""

import pytest
import tiny
import torch

from gear_studio.analysis.attention import attention, attention_to_words
from gear_studio.models.generator import rotate

CAPTIONS = tiny.captions([3, 0, 5, 1])


def drawn(batch: int = 4) -> torch.Tensor:
    return torch.randint(64, (batch, 16), generator=torch.Generator().manual_seed(1))


def test_rows_sum_to_one_over_what_may_be_seen_and_nothing_else():
    made, indices = tiny.captioned(), drawn()
    whole = attention(made, indices, CAPTIONS)
    assert whole.shape == (4, 3, 16, 5 + 15)
    torch.testing.assert_close(whole.sum(-1), torch.ones(4, 3, 16))
    for row, words in enumerate([3, 0, 5, 1]):
        for i in range(16):
            seen = [k < words for k in range(5)] + [k < i for k in range(15)]
            seen[4] |= i == 0  # the last position of the caption sees itself, padding or not
            assert ((whole[row, :, i] > 0) == torch.tensor(seen)).all()
    assert torch.equal(attention_to_words(made, indices, CAPTIONS), whole[..., :5])


def test_it_is_the_attention_that_the_forward_pass_pays():
    """Weights by hand in the first block, one picture and head after the other; in every block, weights that
    give the attention's own output from its values."""
    made, indices = tiny.captioned(heads=1), drawn()
    inputs, outputs = [], []

    def keep(module, given, out):
        inputs.append(given[0])
        outputs.append(out)

    for block in made.blocks:
        block.attention.register_forward_hook(keep)
    found = attention(made, indices, CAPTIONS)

    first, width = made.blocks[0].attention, 32
    for row, words in enumerate([3, 0, 5, 1]):
        x = inputs[0][row]
        text, image = first.qkv_text(x[:5]).detach(), first.qkv(x[5:]).detach()
        q, k, _ = torch.cat([text, image]).split(width, -1)
        q, k = rotate(q, made.angles[: len(x)]), rotate(k, made.angles[: len(x)])
        for i in range(16):
            keys = [*range(words), *range(5, 5 + i)] + ([4] if i == 0 and words < 5 else [])
            scores = torch.stack([q[4 + i] @ k[key] for key in keys]) / width**0.5
            expected = torch.zeros(20)
            expected[keys] = scores.exp() / scores.exp().sum()
            torch.testing.assert_close(found[row, 0, i], expected, atol=1e-5, rtol=1e-4)

    for number, block in enumerate(made.blocks):
        x = inputs[number]
        own = block.attention
        _, _, v = own.projected(x, made.angles[: x.shape[1]], 5)
        expected = own.out(found[:, number] @ v[:, 0])
        if own.out_text is not None:  # position 0 is the caption's last
            expected[:, 0] = own.out_text(found[:, number] @ v[:, 0])[:, 0]
        torch.testing.assert_close(outputs[number][:, 4:], expected, atol=1e-5, rtol=1e-4)


def test_it_is_the_mean_over_heads():
    made, indices = tiny.captioned(heads=2), drawn()
    own = made.blocks[0].attention
    with torch.no_grad():  # the second head's queries are zero: it looks at all it may see alike
        for projection in (own.qkv, own.qkv_text):
            projection.weight[16:32] = 0
    found = attention(made, indices, CAPTIONS)[2, 0, 0]  # a caption of 5 words, all seen
    assert (found[:5] >= 0.1 - 1e-6).all() and found[:5].std() > 0


def test_a_class_is_one_word():
    made, labels = tiny.generator(), torch.arange(4)
    found = attention(made, drawn(), labels)
    torch.testing.assert_close(found.sum(-1), torch.ones(4, 3, 16))
    assert (found[:, :, 0, 0] == 1).all()


def test_captions_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r'condition is "caption" and captions have shape'):
        attention_to_words(tiny.captioned(), drawn(), CAPTIONS[:, :3])
