"""Attention: which words of a caption a generator looks at, token by token."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from gear_studio.models.generator import Block, Generator


@torch.no_grad()
def attention(generator: Generator, indices: Tensor, condition: Tensor) -> Tensor:
    """What every token's prediction looks at, teacher-forced: (B, blocks, N, T + N - 1), mean over heads.

    indices: (B, N). condition: encoded captions (B, T, 1 + caption_dim), or labels (B,), where T is 1. Row i
    is the position that predicts token i; its keys are the T positions of the condition and tokens 0 to
    N - 2. A row sums to 1 and is 0 at what the position may not see: padding and the tokens from i on. The
    last position of the condition predicts token 0 and sees itself, be it padding or not.

    These are the softmax weights of the forward pass, computed again, since it keeps none. The generator must
    be in eval mode, as `from_pretrained` returns it."""
    words = generator.condition.positions
    x = torch.cat([generator.condition(condition), generator.tokens(indices[:, :-1])], 1)
    length = x.shape[1]
    angles = cast(Tensor, generator.angles)[:length]
    mask = generator.mask(generator.condition.visible(condition), 0, length)
    seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril() if mask is None else mask
    maps = []
    for block in cast(Iterable[Block], generator.blocks):
        q, k, _ = block.attention.projected(block.normed(x, words), angles, words)
        scores = (q[:, :, words - 1 :] @ k.mT).float() / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~seen[..., words - 1 :, :], float("-inf")).softmax(-1)
        maps.append(weights.mean(1))
        x = block(x, angles, mask=mask, words=words)
    return torch.stack(maps, 1)


def attention_to_words(generator: Generator, indices: Tensor, condition: Tensor) -> Tensor:
    """How much of its attention every token's prediction gives to every word: (B, blocks, N, T), in [0, 1].

    These are the condition's columns of `attention`, which takes the same arguments; the rest of a row goes
    to earlier tokens. Raises ValueError for captions that are not the generator's."""
    generator.condition.check(condition, len(indices))
    return attention(generator, indices, condition)[..., : generator.condition.positions]
