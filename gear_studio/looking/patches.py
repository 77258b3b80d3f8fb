"""Patches of many pictures, each with its features at one place of a model: what a map of patches shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gear_studio.analysis.features import extract
from gear_studio.data.images import to_float
from gear_studio.looking.pictures import SMALL, SourcePictures


@dataclass(frozen=True)
class Patches:
    """m patches of n pictures, on the CPU.

    images: uint8 (n, 3, S, S). numbers: of the pictures in their collection. grid: tokens along a side.
    picture, token: int64 (m,), which of the images, and where in it. features: float32 (m, d)."""

    images: Tensor
    numbers: Sequence[int]
    grid: int
    picture: Tensor
    token: Tensor
    features: Tensor

    def __len__(self) -> int:
        return len(self.token)


def grow_patches(
    models: Sequence[nn.Module],
    place: str,
    pictures: SourcePictures,
    image_size: int,
    grid: int,
    count: int,
    patches: int,
) -> Iterator[Patches]:
    """Yields patches of the first few of `count` pictures, then of more; the last has about `patches`: as
    many of each picture, drawn at random, the same ones whatever the place.

    models, place: as for `features.extract`. image_size: pixels a side that the models take."""
    numbers, source = pictures.numbers(count), pictures.source(image_size)
    of_each = min(grid**2, -(-patches // len(numbers)))
    at_once = 16 if image_size <= SMALL else 2
    images, tokens, rows = [], [], []
    for start in range(0, len(numbers), at_once):
        some = list(numbers[start : start + at_once])
        images.append(source.read(some)["image"])
        found = extract(models, to_float(images[-1]), place)[place]
        for number, features in zip(some, found, strict=True):
            order = torch.randperm(grid**2, generator=torch.Generator().manual_seed(number))
            tokens.append(order[:of_each].sort().values)
            rows.append(features[tokens[-1]])
        seen = len(tokens)
        yield Patches(
            torch.cat(images),
            numbers[:seen],
            grid,
            torch.arange(seen).repeat_interleave(of_each),
            torch.cat(tokens),
            torch.cat(rows),
        )
