"""Patch features of the three models: how they are taken, and ways to look at them.

Notable here:
- All features are (N, d) or (B, N, d) in raster order, one row a patch, so maps of the three line up.
- The generator is read *teacher-forced*: it is given the true tokens before i, and its hidden state at
  position i is compared with patch i, which it has not seen.
- What a comparison says depends on how features were taken: of which images, under which condition, before or
  after the projector, patch by patch or averaged. `extract` writes that down as `protocol`, one line to be
  printed under every figure. Its defaults are those of REPA's authors: null condition, before the projector.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_studio.analysis.similarity import sample_rows
from gear_studio.models.generator import Generator
from gear_studio.models.projector import Projector, patch_cosine
from gear_studio.models.teachers import Teacher
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.runs import Run

MODULES = {"tokenizer": Tokenizer, "generator": Generator, "projector": Projector, "teacher": Teacher}
PLACES = "tokenizer.z, tokenizer.c_q, generator.BLOCK, teacher or teacher.BLOCK"
LAST = -1  # the teacher's last block

Model = Run | nn.Module | Sequence[nn.Module]


# Taking features


@dataclass(frozen=True, eq=False)
class ByPlace(Mapping[str, Tensor]):
    """Features by place ("generator.3"), float32 on the CPU, and how they were taken.

    protocol: one line for a figure's caption."""

    maps: dict[str, Tensor]
    protocol: str

    def __getitem__(self, place: str) -> Tensor:
        if place not in self.maps:
            raise KeyError(f"no features of {place!r} were taken; there are {', '.join(self.maps)}")
        return self.maps[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self.maps)

    def __len__(self) -> int:
        return len(self.maps)


class Features(ByPlace):
    """Patch features (B, N, d)."""

    def rows(self, level: str = "patch", count: int | None = None, seed: int = 0) -> "Sample":
        """Rows to compare, the same of every place: images averaged over patches (level "image") or patches
        of all images ("patch"). count, seed and errors: as of `similarity.sample_rows`.

        Features that other models have of the same images give rows of the same patches."""
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
    condition: str = "null",
    labels: Tensor | None = None,
    projector: str = "before",
    batch_size: int = 64,
    source: str = "",
) -> Features:
    """Features of `images` (B, 3, H, W), float in [-1, 1], at the places in `where`.

    model: a Run, or the modules that the places need, one or several: Tokenizer, Generator (with the
    Tokenizer that made its tokens), Teacher, Projector; in eval mode, as `from_pretrained` returns them.
    where: "tokenizer.z", the latent before quantization; "tokenizer.c_q", the code vectors after it;
    "generator.3", the hidden state after block 3, teacher-forced, position i standing for patch i; "teacher",
    f(x), or "teacher.2", the same after its block 2.
    condition: what the generator is asked for: "null", "label" with the labels (B,) of the images, or
    "caption" with their captions as labels, encoded (B, T, 1 + caption_dim).
    projector: "before", the hidden state itself; "after", g of it. g was trained on the tap's output alone,
    so then the tap is the only block that may be asked for.
    source: what the images are ("shapes, val"), for the protocol.

    Raises ValueError for a place, condition or projector that does not exist or does not go together, a
    module that is missing or in train mode, and images or labels of another shape; FileNotFoundError where a
    Run holds no such part."""
    where = [where] if isinstance(where, str) else list(where)
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise ValueError(
            f"images have shape {tuple(images.shape)} and type {images.dtype}; expected (B, 3, H, W), float "
            "in [-1, 1]: data.to_float makes them of uint8"
        )
    if not where or len(set(where)) < len(where):
        raise ValueError(f"where is {where}; give one or more places, each once: {PLACES}")
    places = {place: _part_and_detail(place) for place in where}
    parts = {part for part, _ in places.values()}
    modules = {
        part: _module(model, part) for part in parts | ({"tokenizer"} if "generator" in parts else set())
    }
    if "generator" in parts:
        labels = _labels(modules["generator"], condition, labels, len(images))
        _check_projector(modules["generator"], places, projector)
        if projector == "after":
            modules["projector"] = _module(model, "projector")
    elif projector != "before" or condition != "null":
        raise ValueError(
            f"condition {condition!r} and projector {projector!r} are the generator's, and none of "
            f"{', '.join(where)} is of it; leave them out"
        )
    found: dict[str, list[Tensor]] = {place: [] for place in where}
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        asked = None if labels is None else labels[batch]
        for place, features in _read(modules, images[batch], places, asked).items():
            found[place].append(features.float().cpu())
    protocol = f"{len(images)} images" + (f" ({source})" if source else "")
    if "generator" in parts:
        kind = "null condition" if condition == "null" else f"conditioned on the {condition}"
        protocol += f"; generator teacher-forced, {kind}, {projector} the projector"
    return Features({place: torch.cat(batches) for place, batches in found.items()}, protocol)


def reader(model: Model, place: str, projector: str = "before") -> Callable[[Tensor], Tensor]:
    """A place of a model as a function: images (B, 3, H, W) in [-1, 1] -> features (B, N, d), as `probes`
    take it. The generator's condition is null."""
    return lambda images: extract(model, images, [place], projector=projector)[place]


def _part_and_detail(place: str) -> tuple[str, str | int]:
    """ "generator.3" -> ("generator", 3); "teacher" -> ("teacher", LAST)."""
    part, _, detail = place.partition(".")
    if part == "tokenizer" and detail in ("z", "c_q"):
        return part, detail
    if part in ("generator", "teacher") and detail.isdecimal():
        return part, int(detail)
    if place == "teacher":
        return part, LAST
    raise ValueError(f"unknown place {place!r}; choose of {PLACES}")


def _module(model: Model, part: str) -> nn.Module:
    if isinstance(model, Run):
        return getattr(model, part)
    given = [model] if isinstance(model, nn.Module) else list(model)
    fitting = [module for module in given if isinstance(module, MODULES[part])]
    if len(fitting) != 1:
        kinds = ", ".join(type(module).__name__ for module in given)
        raise ValueError(
            f"a {MODULES[part].__name__} is needed and {kinds or 'nothing'} was given; give a Run, or "
            "exactly one of each module that the places need (a Generator goes with its Tokenizer)"
        )
    if fitting[0].training and part != "teacher":
        raise ValueError(f"the {part} is in train mode, where dropout acts; call its eval() first")
    return fitting[0]


def _labels(generator: Generator, condition: str, labels: Tensor | None, count: int) -> Tensor | None:
    kind = generator.condition.kind
    if condition not in ("null", kind):
        raise ValueError(f"condition is {condition!r}; choose null or {kind}")
    if condition == "null":
        if labels is not None:
            raise ValueError(f'labels were given and condition is "null"; with labels it is "{kind}"')
        return None
    generator.condition.check(labels, count)
    return labels


def _check_projector(generator: Generator, places: dict, projector: str) -> None:
    if projector not in ("before", "after"):
        raise ValueError(f"projector is {projector!r}; choose before or after")
    tap, blocks = generator.config.tap, generator.config.blocks
    for place, (part, block) in places.items():
        if part == "generator" and not 1 <= block <= blocks:
            raise ValueError(f"{place} was asked for; this generator has blocks 1 to {blocks}")
        if part == "generator" and projector == "after" and block != tap:
            raise ValueError(
                f"{place} was asked for after the projector, which was trained on the tap alone; take "
                f'generator.{tap}, or projector="before"'
            )


@torch.no_grad()
def _read(modules: dict, images: Tensor, places: dict, labels: Tensor | None) -> dict[str, Tensor]:
    """Features (B, N, d) of one batch, each model run once."""

    def blocks(part: str) -> list[int]:
        return sorted({detail for kind, detail in places.values() if kind == part})

    found: dict[tuple, Tensor] = {}
    if "tokenizer" in modules:
        tokenizer = modules["tokenizer"]
        z = tokenizer.encode(images.to(_device(tokenizer)))
        indices = tokenizer.quantizer.indices(z)
        found |= {("tokenizer", "z"): z, ("tokenizer", "c_q"): tokenizer.quantizer.codes(indices)}
    if "generator" in modules:
        generator = modules["generator"]
        here, numbers = _device(generator), blocks("generator")
        asked = None if labels is None else labels.to(here)
        states = generator_features(generator, indices.to(here), numbers, asked)
        if "projector" in modules:
            projector = modules["projector"]
            states = [projector(state.to(_device(projector))) for state in states]
        found |= {("generator", number): state for number, state in zip(numbers, states, strict=True)}
    if "teacher" in modules:
        teacher, numbers = modules["teacher"], blocks("teacher")
        states = teacher.features(
            images.to(_device(teacher)), [teacher.depth if n == LAST else n for n in numbers]
        )
        found |= {("teacher", number): state for number, state in zip(numbers, states, strict=True)}
    return {place: found[key] for place, key in places.items()}


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


@torch.no_grad()
def tokenizer_features(tokenizer: Tokenizer, images: Tensor, quantized: bool = False) -> Tensor:
    """Latents z (B, N, D) of images (B, 3, H, W) in [-1, 1]; quantized: the code vectors c_q instead."""
    z = tokenizer.encode(images)
    return tokenizer.quantizer.codes(tokenizer.quantizer.assign(z).indices) if quantized else z


@torch.no_grad()
def generator_features(
    generator: Generator, indices: Tensor, blocks: list[int], labels: Tensor | None = None
) -> list[Tensor]:
    """Hidden states (B, N, d) after each of `blocks` (1-based, ascending), teacher-forced on indices (B, N).

    labels: as `Generator.hidden` takes its condition, or None for the null condition. Position i has seen the
    condition and the tokens before i. The generator must be in eval mode, as `from_pretrained` returns it."""
    if labels is None:
        labels = generator.condition.nulls(len(indices), indices.device)
    return generator.hidden(generator.tokens(indices[:, :-1]), labels, blocks)


# Looking at them


@torch.no_grad()
def alignment_map(
    generator: Generator, projector: Projector, indices: Tensor, teacher: Tensor, labels: Tensor | None = None
) -> Tensor:
    """cos(g(h_i), f(x)_i) at the tap, (B, N) in [-1, 1]: what the alignment loss averages (with a minus).

    indices: (B, N); teacher: its patch features (B, N, d_f); labels as in `generator_features`."""
    (hidden,) = generator_features(generator, indices, [generator.config.tap], labels)
    return patch_cosine(projector(hidden), teacher)


def pca_rgb(features: Tensor) -> Tensor:
    """The first three principal components of one picture's features (N, d) as colours (N, 3) in [0, 1].

    Each component is stretched from its 2 % to its 98 % quantile and turned so that its largest loading is
    positive: equal features get equal colours, but colours of two feature spaces mean nothing to each other.
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
        raise ValueError(f"patch {patch} is not one of 0..{len(features) - 1}")
    return F.cosine_similarity(features.float(), features[patch].float(), dim=-1)


def umap_layout(
    features: Tensor | np.ndarray, seed: int = 0, neighbours: int = 15, metric: str = "cosine"
) -> np.ndarray:
    """UMAP (McInnes et al. 2018) of rows (n, d): (n, 2) float32, a function of the features and the seed.

    Distances between far groups and the axes mean nothing. The first call compiles for some seconds; call it
    from one thread at a time."""
    import umap  # here: it takes seconds to import, and only this needs it

    features = np.asarray(features.detach().float().cpu() if isinstance(features, Tensor) else features)
    if features.ndim != 2 or len(features) < 4:
        raise ValueError(f"features have shape {features.shape}; a layout takes (n, d), at least 4 rows")
    neighbours = min(neighbours, len(features) - 1)
    return umap.UMAP(n_neighbors=neighbours, metric=metric, random_state=seed, n_jobs=1).fit_transform(
        features
    )
