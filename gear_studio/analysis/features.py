"""Patch features of the three models: how they are taken, and ways to look at them.

Notable here:
- All features are (N, d) or (B, N, d) in raster order, one row a patch, so maps of the three line up.
- The generator is read *teacher-forced*: it is given the true tokens before i, and its hidden state at
  position i is compared with patch i, which it has not seen.
- What a comparison says depends on how features were taken: of which images, under which condition, before or
  after the projector, patch by patch or averaged. `extract` writes that down as `protocol`, one line that
  figures print below themselves. Its defaults are those of REPA's authors: null condition, before the
  projector.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_studio.analysis.similarity import sample_rows
from gear_studio.errors import InputError, UnknownNameError
from gear_studio.models.generator import Generator
from gear_studio.models.projector import Projector
from gear_studio.models.teachers import Teacher
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.runs import Run

PLACES = "tokenizer.z, tokenizer.c_q, generator.BLOCK, teacher or teacher.BLOCK"
OWN = -1  # of a teacher: what it was loaded for, its last block or a recipe's `teacher_block`

Model = Run | nn.Module | Sequence[nn.Module]
Module = TypeVar("Module", bound=nn.Module)


# Taking features


@dataclass(frozen=True, eq=False)
class ByPlace(Mapping[str, Tensor]):
    """Features by place ("generator.3"), float32 on the CPU, and how they were taken.

    protocol: one line for a figure's caption."""

    maps: dict[str, Tensor]
    protocol: str

    def __getitem__(self, place: str) -> Tensor:
        if place not in self.maps:
            raise UnknownNameError(f"no features of {place!r} were taken; there are {', '.join(self.maps)}")
        return self.maps[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self.maps)

    def __len__(self) -> int:
        return len(self.maps)


class Features(ByPlace):
    """Patch features (B, N, d)."""

    def rows(self, level: str = "patch", count: int | None = None, seed: int = 0) -> "Sample":
        """Rows to compare, the same of every place: images averaged over patches (level "image") or patches
        of all images ("patch"). count, seed and errors: as in `similarity.sample_rows`.

        The same call on other models' features of the same images returns rows of the same patches."""
        rows, groups = sample_rows(*self.maps.values(), level=level, count=count, seed=seed)
        drawn = f", {len(groups)} drawn (seed {seed})" if count is not None else ""
        what = {"image": "image level (mean of patches)", "patch": "patch level"}[level]
        return Sample(dict(zip(self.maps, rows, strict=True)), f"{self.protocol}; {what}{drawn}", groups)


@dataclass(frozen=True, eq=False)
class Sample(ByPlace):
    """Rows (n, d), and the image that each came from: groups, int64 (n,), for `similarity.interval`."""

    groups: Tensor


def extract(
    model: Model,
    images: Tensor,
    where: str | Sequence[str],
    condition: Tensor | None = None,
    projector: str = "before",
    batch_size: int = 64,
    source: str = "",
) -> Features:
    """Features of `images` (B, 3, H, W), float in [-1, 1], at the places in `where`.

    model: a Run, or the modules that the places need, one or several: Tokenizer, Generator (with the
    Tokenizer that made its tokens), Teacher, Projector; in eval mode, as `from_pretrained` returns them.
    where: "tokenizer.z", the latent before quantization; "tokenizer.c_q", the code vectors after it;
    "generator.3", the hidden state after block 3, teacher-forced, position i standing for patch i; "teacher",
    f(x), of a Run what it was aligned with (`teacher_block`); or "teacher.2", its block 2 after the final
    norm.
    condition: the generator's, of each image: labels (B,) or encoded captions (B, T, 1 + caption_dim),
    whichever it takes; None is the null condition.
    projector: "before", the hidden state itself; "after", g of it. g was trained on the tap's output alone,
    so then the tap is the only block that may be asked for.
    source: what the images are ("shapes, val"), for the protocol.

    Raises ValueError for a place or projector that does not exist, a condition or projector where no place is
    of the generator, a module that is missing or in train mode, and images or a condition of another shape;
    FileNotFoundError where a Run holds no such part."""
    where = [where] if isinstance(where, str) else list(where)
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise InputError(
            f"images have shape {tuple(images.shape)} and type {images.dtype}; expected (B, 3, H, W), float "
            "in [-1, 1]: data.to_float makes them of uint8"
        )
    if not where or len(set(where)) < len(where):
        raise InputError(f"where is {where}; give one or more places, each once: {PLACES}")
    places = {place: _parse_place(place) for place in where}
    parts = {part for part, _ in places.values()}
    modules = _Modules()
    if parts & {"tokenizer", "generator"}:
        tokenizer = modules.tokenizer = _find_module(model, Tokenizer)
    if "teacher" in parts:
        modules.teacher = _find_module(model, Teacher)
    if "generator" in parts:
        modules.generator = _find_module(model, Generator)
        side = modules.generator.config.grid * tokenizer.config.factor
        if images.shape[2:] != (side, side):
            raise InputError(
                f"images have shape {tuple(images.shape)}; this generator's are (B, 3, {side}, {side})"
            )
        if condition is not None:
            modules.generator.condition.check(condition, len(images))
        _check_projector(modules.generator, places, projector)
        if projector == "after":
            modules.projector = _find_module(model, Projector)
    elif projector != "before" or condition is not None:
        raise InputError(
            f"condition and projector are the generator's, and none of {', '.join(where)} is of it; leave "
            "them out"
        )
    batches: dict[str, list[Tensor]] = {place: [] for place in where}
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        of_batch = None if condition is None else condition[batch]
        for place, features in _read_places(modules, images[batch], places, of_batch).items():
            batches[place].append(features.float().cpu())
    protocol = f"{len(images)} images" + (f" ({source})" if source else "")
    if modules.generator:
        kind = modules.generator.condition.kind
        conditioned = "null condition" if condition is None else f"conditioned on the {kind}"
        protocol += f"; generator teacher-forced, {conditioned}, {projector} the projector"
    return Features({place: torch.cat(each) for place, each in batches.items()}, protocol)


def to_function(model: Model, place: str, projector: str = "before") -> Callable[[Tensor], Tensor]:
    """A place of a model as a function: images (B, 3, H, W) in [-1, 1] -> features (B, N, d), as `probes`
    take it. The generator's condition is null."""
    return lambda images: extract(model, images, [place], projector=projector)[place]


@dataclass
class _Modules:
    """The modules that the places need."""

    tokenizer: Tokenizer | None = None
    generator: Generator | None = None
    projector: Projector | None = None
    teacher: Teacher | None = None


def _parse_place(place: str) -> tuple[str, str | int]:
    """ "generator.3" -> ("generator", 3); "teacher" -> ("teacher", OWN)."""
    part, _, detail = place.partition(".")
    if part == "tokenizer" and detail in ("z", "c_q"):
        return part, detail
    if part in ("generator", "teacher") and detail.isdecimal():
        return part, int(detail)
    if place == "teacher":
        return part, OWN
    raise InputError(f"unknown place {place!r}; choose of {PLACES}")


def _find_module(model: Model, kind: type[Module]) -> Module:
    if isinstance(model, Run):
        return getattr(model, kind.__name__.lower())
    candidates = [model] if isinstance(model, nn.Module) else list(model)
    fitting = [module for module in candidates if isinstance(module, kind)]
    if len(fitting) != 1:
        kinds = ", ".join(type(module).__name__ for module in candidates)
        raise InputError(
            f"a {kind.__name__} is needed and {kinds or 'nothing'} was given; give a Run, or "
            "exactly one of each module that the places need (a Generator goes with its Tokenizer)"
        )
    if fitting[0].training and kind is not Teacher:
        name = kind.__name__.lower()
        raise InputError(f"the {name} is in train mode, where dropout acts; call its eval() first")
    return fitting[0]


def _check_projector(generator: Generator, places: dict, projector: str) -> None:
    if projector not in ("before", "after"):
        raise InputError(f"projector is {projector!r}; choose before or after")
    tap, blocks = generator.config.tap, generator.config.blocks
    for place, (part, block) in places.items():
        if part == "generator" and not 1 <= block <= blocks:
            raise InputError(f"{place} was asked for; this generator has blocks 1 to {blocks}")
        if part == "generator" and projector == "after" and block != tap:
            raise InputError(
                f"{place} was asked for after the projector, which was trained on the tap alone; take "
                f'generator.{tap}, or projector="before"'
            )


@torch.no_grad()
def _read_places(
    modules: _Modules, images: Tensor, places: dict, condition: Tensor | None
) -> dict[str, Tensor]:
    """Features (B, N, d) of one batch by place. Each model runs once, whatever the number of its places."""

    def blocks(part: str) -> list[int]:
        return sorted({detail for kind, detail in places.values() if kind == part})

    features: dict[tuple, Tensor] = {}
    if tokenizer := modules.tokenizer:
        z = tokenizer.encode(images.to(_device(tokenizer)))
        indices = tokenizer.quantizer.indices(z)
        features |= {("tokenizer", "z"): z, ("tokenizer", "c_q"): tokenizer.quantizer.codes(indices)}
    if generator := modules.generator:
        device, numbers = _device(generator), blocks("generator")
        condition = None if condition is None else condition.to(device)
        states = generator_features(generator, indices.to(device), numbers, condition)
        if projector := modules.projector:
            states = [projector(state.to(_device(projector))) for state in states]
        features |= {("generator", number): state for number, state in zip(numbers, states, strict=True)}
    if teacher := modules.teacher:
        numbers = blocks("teacher")
        inner = [number for number in numbers if number != OWN]
        states = teacher.features(images.to(_device(teacher)), inner, own=OWN in numbers)
        features |= {("teacher", place): state for place, state in zip([*inner, OWN], states, strict=False)}
    return {place: features[key] for place, key in places.items()}


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


@torch.no_grad()
def tokenizer_features(tokenizer: Tokenizer, images: Tensor, quantized: bool = False) -> Tensor:
    """Latents z (B, N, D) of images (B, 3, H, W) in [-1, 1]; quantized: the code vectors c_q instead."""
    z = tokenizer.encode(images)
    return tokenizer.quantizer.codes(tokenizer.quantizer.assign(z).indices) if quantized else z


@torch.no_grad()
def generator_features(
    generator: Generator, indices: Tensor, blocks: list[int], condition: Tensor | None = None
) -> list[Tensor]:
    """Hidden states (B, N, d) after each of `blocks` (1-based, ascending), teacher-forced on indices (B, N).

    condition: labels (B,) or encoded captions (B, T, 1 + caption_dim); None is the null condition. Position i
    has seen the condition and the tokens before i. The generator must be in eval mode, as `from_pretrained`
    returns it."""
    if condition is None:
        condition = generator.condition.nulls(len(indices), indices.device)
    return generator.hidden(generator.tokens(indices[:, :-1]), condition, blocks)


# Looking at them


@torch.no_grad()
def alignment_matrix(
    generator: Generator,
    projector: Projector,
    indices: Tensor,
    teacher: Tensor,
    condition: Tensor | None = None,
) -> Tensor:
    """cos(g(h_i), f(x)_j) at the tap, (B, N, N) in [-1, 1]. The alignment loss is minus the mean of the
    diagonals.

    indices: (B, N). teacher: its patch features (B, N, d_f). condition: as in `generator_features`."""
    (hidden,) = generator_features(generator, indices, [generator.config.tap], condition)
    rows, columns = (F.normalize(each.float(), dim=-1) for each in (projector(hidden), teacher))
    return rows @ columns.mT


def pca_rgb(features: Tensor) -> Tensor:
    """The first three principal components of one picture's features (N, d) as colours (N, 3) in [0, 1].

    Each component is stretched from its 2 % to its 98 % quantile and turned so that its largest loading is
    positive. So equal features get equal colours; colours of two feature spaces cannot be compared.
    Where features have fewer than three components, the missing ones are 0.5."""
    x = features.float() - features.float().mean(0)
    _, values, axes = torch.linalg.svd(x, full_matrices=False)
    axes = axes[:3]
    signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    scores = x @ (axes * signs).T
    low, high = scores.quantile(torch.tensor([0.02, 0.98], device=x.device), dim=0)
    real = values[:3] > 1e-5 * values[0].clamp_min(1e-12)
    stretched = torch.where(real, ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1), 0.5)
    return F.pad(stretched, (0, 3 - stretched.shape[1]), value=0.5)


def similarity(features: Tensor, patch: int) -> Tensor:
    """Cosine of every patch of one picture with patch number `patch`: (N, d) -> (N,) in [-1, 1]."""
    if not 0 <= patch < len(features):
        raise InputError(f"patch {patch} is not one of 0..{len(features) - 1}")
    return F.cosine_similarity(features.float(), features[patch].float(), dim=-1)


def umap_layout(
    features: Tensor | np.ndarray, seed: int = 0, neighbours: int = 15, metric: str = "cosine"
) -> np.ndarray:
    """UMAP (McInnes et al. 2018) of rows (n, d): (n, 2) float32, the same for the same features and seed.

    The axes mean nothing, nor do distances between groups that lie far apart. The first call compiles for
    some seconds; call it from one thread at a time."""
    import umap  # here: it takes seconds to import, and only this needs it

    features = np.asarray(features.detach().float().cpu() if isinstance(features, Tensor) else features)
    if features.ndim != 2 or len(features) < 4:
        raise InputError(f"features have shape {features.shape}; a layout takes (n, d), at least 4 rows")
    neighbours = min(neighbours, len(features) - 1)
    layout = umap.UMAP(n_neighbors=neighbours, metric=metric, random_state=seed, n_jobs=1)
    threads = torch.get_num_threads()
    try:
        return layout.fit_transform(features)
    finally:
        torch.set_num_threads(threads)  # numba takes all cores, for torch too where both use one OpenMP
