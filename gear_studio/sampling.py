"""Sampling from a generator: cached decoding with guidance, temperature, top-k, top-p and seeds, in one go or
row by row.

Picture i of a call with seed s is drawn with random numbers that follow from (s, i) alone, one uniform number
a token. So it does not change with how many pictures are sampled, and two generators with the same seed are
compared on the same numbers.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gear_studio.devices import to_float64
from gear_studio.errors import InputError
from gear_studio.models.generator import Generator
from gear_studio.ranges import Mass, Natural, NonNegative, Number, Seed, check


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen."""

    cfg_scale: Number = 1.5
    """Guidance; 1 is none."""
    temperature: NonNegative = 1.0
    """0 is greedy."""
    top_k: Natural = 0
    """Keep the k likeliest codes; 0 keeps all."""
    top_p: Mass = 1.0
    """Keep the likeliest codes of this mass; 1 keeps all."""
    seed: Seed | None = None
    """The same seed gives the same pictures."""
    cfg_interval: Natural | None = None
    """Guidance ends with the token of this number, counted from 0 behind the first token, as in GEAR's and
    LlamaGen's code: with 0 two tokens are guided. Default: all are."""


@dataclass(frozen=True)
class Progress:
    """How far a sampling is. indices: (B, N) int64. log_probs, entropy: (B, N), in nats. Only [:, :done] is
    filled."""

    indices: Tensor
    log_probs: Tensor
    entropy: Tensor
    done: int


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Put -inf on all but the top_k logits (0: all), and on those outside the smallest set of mass top_p. Of
    equal logits the first are kept. logits: (B, K)."""
    if top_k > 0:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        above, equal = logits > least, logits == least
        places = top_k - above.sum(-1, keepdim=True)
        kept = above | (equal & (equal.cumsum(-1) <= places))
        logits = logits.masked_fill(~kept, float("-inf"))
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        outside = (mass_before >= top_p).scatter(-1, order, mass_before >= top_p)
        logits = logits.masked_fill(outside, float("-inf"))
    return logits


def draw_uniforms(seed: int, batch: int, length: int, first: int | Sequence[int] = 0) -> Tensor:
    """Draw random numbers (batch, length) in [0, 1). Row i is of the picture with number first + i, or
    first[i] of a sequence, and depends on the seed and that number only."""
    rows = []
    for i in range(first, first + batch) if isinstance(first, int) else first:
        rng = torch.Generator().manual_seed((seed * 1_000_003 + i) % 2**63)
        rows.append(torch.rand(length, generator=rng))
    return torch.stack(rows)


@torch.no_grad()
def sample_by_row(
    gen: Generator,
    condition: Tensor | Sequence[int],
    cfg_scale: float = 1.5,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    first: int | Sequence[int] = 0,
    cfg_interval: int | None = None,
    kept: Tensor | None = None,
) -> Iterator[Progress]:
    """Sample, yielding `Progress` after every row of tokens. Arguments as in `sample`.

    first may also be a number for each picture: pictures with the same number share their random numbers.
    kept: (B, N) int64, codes that are taken as they are, and -1 where one is drawn; `resample` makes it.

    Log-probability and entropy are of the guided distribution at temperature 1, before top-k and top-p: they
    say how sure the model was, whatever was done to its logits afterwards. The generator samples in eval
    mode, and is left in the mode it was in."""
    check(SamplingSettings(cfg_scale, temperature, top_k, top_p, seed, cfg_interval))
    condition = _as_condition(gen, condition)
    batch, device, guided = len(condition), gen.token_table.device, cfg_scale != 1.0
    was_training = gen.training
    gen.eval()
    try:
        seed = secrets.randbits(31) if seed is None else seed
        draws = draw_uniforms(seed, batch, gen.length, first).to(device)
        condition = condition.to(device)
        if guided:
            condition = torch.cat([condition, gen.condition.nulls(batch, device)])
        cache = gen.new_cache(condition)
        embeddings = gen.condition(condition)
        indices = torch.zeros(batch, gen.length, dtype=torch.long, device=device)
        log_probs = torch.zeros_like(indices, dtype=torch.float)
        entropy = torch.zeros_like(log_probs)
        for i in range(gen.length):
            if guided and cfg_interval is not None and i == cfg_interval + 2:
                guided, embeddings = False, embeddings[:batch]
                cache.keep(batch)
            logits = gen.decode(embeddings, cache).float()
            if guided:
                conditional, unconditional = logits.chunk(2)
                logits = unconditional + cfg_scale * (conditional - unconditional)
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                probs = filter_logits(logits / temperature, top_k, top_p).softmax(-1)
                cumulative = to_float64(probs).cumsum(-1)
                # Scaled by the total, a draw below 1 always lands on a code that has mass.
                target = to_float64(draws[:, i : i + 1]) * cumulative[:, -1:]
                token = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
                token = token.clamp(max=probs.shape[-1] - 1).to(device)
            if kept is not None:
                token = torch.where(kept[:, i] < 0, token, kept[:, i])
            log_p = logits.log_softmax(-1)
            indices[:, i] = token
            log_probs[:, i] = log_p.gather(-1, token[:, None]).squeeze(-1)
            entropy[:, i] = -(log_p.exp() * log_p).sum(-1)
            embeddings = gen.token_table[token.repeat(2) if guided else token][:, None]
            if (i + 1) % gen.config.grid == 0:
                yield Progress(indices.clone(), log_probs.clone(), entropy.clone(), i + 1)
    finally:  # a consumer who stops early comes here too
        gen.train(was_training)


def _as_condition(gen: Generator, condition: Any) -> Tensor:
    """A condition as a tensor: of classes any list of numbers will do. Raises ValueError for what the
    generator cannot be asked for; nothing at all, the null, is a class here."""
    if not isinstance(condition, Tensor):
        try:
            condition = torch.as_tensor(condition)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"condition is {str(condition)[:60]}; expected numbers of classes (of names: "
                "Run.class_numbers), or encoded captions (Run.encode)"
            ) from error
    if gen.condition.kind == "label":
        classes = gen.config.classes
        whole = condition.ndim == 1 and not condition.is_floating_point() and condition.dtype != torch.bool
        if not whole or not len(condition) or condition.min() < 0 or condition.max() > classes:
            raise InputError(
                f"condition is {condition.tolist()!s:.60}; expected whole numbers 0..{classes - 1}, "
                f"one a picture ({classes} asks for no class)"
            )
    return condition


def sample(
    gen: Generator,
    condition: Tensor | Sequence[int],
    cfg_scale: float = 1.5,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    first: int | Sequence[int] = 0,
    cfg_interval: int | None = None,
) -> Tensor:
    """Sample token indices (B, N) for `condition`: labels (B,), a list or a tensor, or encoded
    captions (B, T, 1 + caption_dim).

    cfg_scale s: logits = u + s (c - u); 1.0 is no guidance and costs half. temperature 0 is greedy. top_k 0
    and top_p 1 keep every code. seed None draws a fresh one. first: the number of the first picture, or one
    for each, so that a slice of a long series gets the pictures that the whole series would have there.
    cfg_interval: see `SamplingSettings`.
    Raises ValueError for settings out of range (`SamplingSettings`), and for classes that there are not.
    Source: paper, sampling for gFID (temperature 1, s = 1.5 or 1.0)."""
    rows = sample_by_row(gen, condition, cfg_scale, temperature, top_k, top_p, seed, first, cfg_interval)
    *_, last = rows
    return last.indices


def resample(
    gen: Generator, condition: Tensor | Sequence[int], indices: Tensor, mask: Tensor, **settings: Any
) -> Tensor:
    """Draw some tokens of pictures anew, each conditioned on all tokens before it, and keep the others.
    Returns indices (B, N).

    A token does not know of those after it: a kept token behind a drawn one stays, whether it fits or not.
    condition: B rows, as in `sample`. indices: (B, N), or (N,) for B times the same picture. mask: bool, of
    either shape, True where a token is drawn. settings: those of `sample`. A token is drawn with the random
    number that it has in `sample`: with all drawn, the result is that of `sample`.
    Raises ValueError for shapes and codes that do not fit, and as `sample`."""
    *_, last = resample_by_row(gen, condition, indices, mask, **settings)
    return last.indices


def resample_by_row(
    gen: Generator, condition: Tensor | Sequence[int], indices: Tensor, mask: Tensor, **settings: Any
) -> Iterator[Progress]:
    """Resample, yielding `Progress` after every row of tokens. Arguments as in `resample`.

    Log-probability and entropy are of kept tokens, too: how likely each is after those before it."""
    shape = len(condition), gen.length
    for name, given in (("indices", indices), ("mask", mask)):
        if given.shape not in (shape, shape[1:]):
            raise InputError(f"{name} has shape {tuple(given.shape)}; expected {shape}, or {shape[1:]}")
    if mask.dtype != torch.bool:
        raise InputError(f"mask is of {mask.dtype}; expected torch.bool, True where a token is drawn")
    if indices.min() < 0 or indices.max() >= gen.config.codes:
        raise InputError(
            f"indices are in {int(indices.min())}..{int(indices.max())}; the generator's codes are "
            f"0..{gen.config.codes - 1}"
        )
    device = gen.token_table.device
    kept = torch.where(mask.to(device), -1, indices.to(device)).expand(shape)
    yield from sample_by_row(gen, condition, **settings, kept=kept)
