"""Sampling from a generator: cached decoding with guidance, temperature, top-k, top-p and seeds, in one go or
row by row.

Picture i of a call with seed s is drawn with random numbers that follow from (s, i) alone, one uniform number
a token. So it does not change with how many pictures are sampled, and two generators with the same seed are
compared on the same numbers.

One token of a batch is one step of fixed shape (`Decoder`): the transformer, guidance, the filters, the draw
and the embedding of what was drawn. On CUDA it can be a captured graph (`CAPTURED`).
"""

import copy
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gear_studio.devices import to_float64
from gear_studio.errors import InputError
from gear_studio.models.generator import Generator
from gear_studio.ranges import Mass, Natural, NonNegative, Number, Seed, check

REACH = 64  # a step looks back over the positions up to the next multiple of this
CAPTURED = False  # on CUDA, until benchmarks/gpu.py has seen captured steps draw the same tokens


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


def draw_codes(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The codes (B,) at which the running sum of probs (B, K) passes the uniform numbers (B, 1)."""
    cumulative = to_float64(probs).cumsum(-1)  # a float32 sum would be off by more than a rare code's mass
    # Scaled by the total, a draw below 1 always lands on a code that has mass.
    target = to_float64(uniforms) * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return token.clamp(max=probs.shape[-1] - 1).to(probs.device)


class Float32Head(nn.Module):
    """An output head of bfloat16 weights whose logits are not rounded to bfloat16. On CUDA only."""

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.weight = head.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight.T, out_dtype=torch.float32)


def copy_for_decoding(gen: Generator, dtype: torch.dtype) -> Generator:
    """A copy of a generator in eval mode, which shares its weights; on CUDA it has its own, of `dtype`."""
    if gen.token_table.device.type != "cuda":
        shared = {id(weight): weight for weight in (*gen.parameters(), *gen.buffers())}
        return copy.deepcopy(gen, shared).eval()
    copied = copy.deepcopy(gen).eval().requires_grad_(False)
    for parameter in copied.parameters():  # buffers, the rotary angles among them, stay float32
        parameter.data = parameter.to(dtype)
    if dtype == torch.bfloat16:
        copied.set_submodule("head", Float32Head(copied.head))
    return copied


class Decoder:
    """Decodes a batch, a token a step.

    Nothing in a step depends on numbers that only Python knows but two: whether it is guided, and how far it
    looks back, which is rounded up to `REACH`. On CUDA, weights are bfloat16, logits float32. Where steps
    are captured, one of each such kind is computed eagerly, captured as a graph and replayed from then on;
    nothing waits for the device.

    batch: pictures. dtype: of the weights on CUDA. captured: whether steps are captured there."""

    def __init__(
        self,
        gen: Generator,
        batch: int,
        settings: SamplingSettings,
        dtype: torch.dtype = torch.bfloat16,
        captured: bool = CAPTURED,
    ):
        self.device = device = gen.token_table.device
        self.batch, self.settings, self.words = batch, settings, gen.condition.positions
        rows = 2 * batch if settings.cfg_scale != 1 else batch
        self.gen = copy_for_decoding(gen, dtype)
        self.cache = self.gen.new_cache(gen.condition.nulls(rows, device))
        self.embeddings = self.gen.token_table.new_zeros(rows, 1, gen.config.dim)
        self.number = torch.zeros(1, dtype=torch.long, device=device)  # of the token that comes next
        self.done = 0  # the same, as Python knows it
        self.draws = torch.zeros(batch, gen.length, device=device)
        self.indices = torch.zeros(batch, gen.length, dtype=torch.long, device=device)
        self.kept = torch.full_like(self.indices, -1)
        self.log_probs, self.entropy = torch.zeros_like(self.draws), torch.zeros_like(self.draws)
        self.captured = captured and device.type == "cuda"
        self.graphs: dict[tuple[bool, int], torch.cuda.CUDAGraph] = {}

    @torch.no_grad()
    def start(self, gen: Generator, condition: Tensor, draws: Tensor, kept: Tensor | None = None) -> None:
        """Begin a batch, with the weights that `gen` has now. draws: see `draw_uniforms`. kept: as in
        `sample_by_row`."""
        if self.device.type == "cuda":
            for own, theirs in zip(self.gen.parameters(), gen.parameters(), strict=True):
                own.copy_(theirs)
        condition = condition.to(self.device)
        if len(self.embeddings) > self.batch:
            condition = torch.cat([condition, gen.condition.nulls(self.batch, self.device)])
        visible = gen.condition.visible(condition)
        if visible is not None and self.cache.visible is not None:
            self.cache.visible.copy_(visible)
        self.draws.copy_(draws)
        self.kept.fill_(-1) if kept is None else self.kept.copy_(kept)
        for filled in (self.cache.buffers, self.number, self.indices, self.log_probs, self.entropy):
            filled.zero_()
        self.done = 0
        self.condition = self.gen.condition(condition)

    @torch.no_grad()
    def step(self) -> None:
        """Decode the next token."""
        interval = self.settings.cfg_interval
        guided = self.settings.cfg_scale != 1 and (interval is None or self.done < interval + 2)
        position = self.words - 1 + self.done
        reach = min((position // REACH + 1) * REACH, self.cache.buffers.shape[-2])
        if self.done == 0:
            self.choose(self.gen.decode(self.condition, self.cache, self.words), guided)
        elif (guided, reach) in self.graphs:
            self.graphs[guided, reach].replay()
        else:
            self.decode(guided, reach)
            if self.captured:
                self.graphs[guided, reach] = self.capture(guided, reach)
        self.done += 1

    def capture(self, guided: bool, reach: int) -> torch.cuda.CUDAGraph:
        graph, others = torch.cuda.CUDAGraph(), list(self.graphs.values())
        pool = others[0].pool() if others else None
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            self.decode(guided, reach)
        return graph

    def decode(self, guided: bool, reach: int) -> None:
        """The step itself, behind the first token."""
        rows = len(self.embeddings) if guided else self.batch
        cache = self.cache.at(self.number + (self.words - 1), reach, rows)
        self.choose(self.gen.decode(self.embeddings[:rows], cache), guided)

    def choose(self, logits: Tensor, guided: bool) -> None:
        """Draw a token from logits (rows, K), note it, and embed it for the next step."""
        settings, logits = self.settings, logits.float()
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + settings.cfg_scale * (conditional - unconditional)
        if settings.temperature == 0:
            token = logits.argmax(-1)
        else:
            filtered = filter_logits(logits / settings.temperature, settings.top_k, settings.top_p)
            token = draw_codes(filtered.softmax(-1), self.draws.index_select(1, self.number))
        kept = self.kept.index_select(1, self.number)[:, 0]
        token = torch.where(kept < 0, token, kept)
        log_p = logits.log_softmax(-1)
        self.indices.index_copy_(1, self.number, token[:, None])
        self.log_probs.index_copy_(1, self.number, log_p.gather(-1, token[:, None]))
        self.entropy.index_copy_(1, self.number, -(log_p.exp() * log_p).sum(-1, keepdim=True))
        embedded = self.gen.token_table[token][:, None]
        self.embeddings.copy_(embedded.repeat(len(self.embeddings) // self.batch, 1, 1))
        self.number.add_(1)


# Decoders with their graphs, for the next batch of the same kind, while their generators live. Who decodes
# takes one out, so that two who sample from one generator at a time do not share it.
_idle: WeakKeyDictionary[Generator, Decoder] = WeakKeyDictionary()


def _take_decoder(gen: Generator, batch: int, settings: SamplingSettings) -> Decoder:
    found = _idle.pop(gen, None)
    if found and (found.batch, found.settings, found.device) == (batch, settings, gen.token_table.device):
        return found
    return Decoder(gen, batch, settings)


def forget(gen: Generator) -> None:
    """Free what is kept on CUDA for the next sampling from a generator: a copy of its weights, and caches."""
    _idle.pop(gen, None)


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
    say how sure the model was, whatever was done to its logits afterwards. The generator is not touched: a
    copy of it samples, in eval mode and on CUDA with weights in bfloat16, and shares what it can."""
    settings = SamplingSettings(cfg_scale, temperature, top_k, top_p, seed, cfg_interval)
    check(settings)
    condition = _as_condition(gen, condition)
    seed = secrets.randbits(31) if seed is None else seed
    decoder = _take_decoder(gen, len(condition), replace(settings, seed=None))
    decoder.start(gen, condition, draw_uniforms(seed, len(condition), gen.length, first), kept)
    try:
        for done in range(1, gen.length + 1):
            decoder.step()
            if done % gen.config.grid == 0:
                yield Progress(
                    decoder.indices.clone(), decoder.log_probs.clone(), decoder.entropy.clone(), done
                )
    finally:  # a consumer who stops early comes here too
        if decoder.captured:
            _idle[gen] = decoder


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
