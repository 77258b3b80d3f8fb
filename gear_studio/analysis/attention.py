"""Attention: which words of a caption a generator looks at, token by token."""

import torch
from torch import Tensor

from gear_studio.models.generator import Generator, attention_mask


@torch.no_grad()
def attention(generator: Generator, indices: Tensor, given: Tensor) -> Tensor:
    """What every token's prediction looks at, teacher-forced: (B, blocks, N, T + N - 1), mean over heads.

    indices: (B, N). given: encoded captions (B, T, 1 + caption_dim), or labels (B,), where T is 1. Row i is
    the position that predicts token i; its keys are the T positions of the condition and tokens 0 to N - 2.
    A row sums to 1 and is 0 at what the position may not see: padding and the tokens from i on. The last
    position of the condition predicts token 0 and sees itself, be it padding or not.

    These are the softmax weights of the forward pass, computed again: it keeps none. The generator must be in
    eval mode, as `from_pretrained` returns it."""
    words = generator.condition.positions
    x = torch.cat([generator.condition(given), generator.tokens(indices[:, :-1])], 1)
    length = x.shape[1]
    mask, angles = attention_mask(generator.condition.visible(given), 0, length), generator.angles[:length]
    seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril() if mask is None else mask
    maps = []
    for block in generator.blocks:
        q, k, _ = block.attention.projected(block.normed(x, words), angles, words)
        scores = (q[:, :, words - 1 :] @ k.mT).float() / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~seen[..., words - 1 :, :], float("-inf")).softmax(-1)
        maps.append(weights.mean(1))
        x = block(x, angles, mask=mask, words=words)
    return torch.stack(maps, 1)


def attention_to_words(generator: Generator, indices: Tensor, given: Tensor) -> Tensor:
    """How much of its attention every token's prediction gives to every word: (B, blocks, N, T), in [0, 1].

    Arguments as of `attention`, of which these are the condition's columns; what is missing to 1 went to
    earlier tokens. Raises ValueError for captions that are not the generator's."""
    generator.condition.check(given, len(indices))
    return attention(generator, indices, given)[..., : generator.condition.positions]
