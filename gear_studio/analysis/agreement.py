"""Does a sample show what its caption asked for? A score like GenEval's, made exact by the small world: every
picture has a shape, a texture, a colour and a place, a caption names all four, and `AttributeJudge` looks.

Prompts are of held-out pictures of `shapes`: with combinations of texture, shape and colour as in training
("seen"), and with those that training never showed together ("unseen"; each two of the three were).
"""

import math

import numpy as np
import torch
from torch import Tensor

from gear_studio import data
from gear_studio.data.images import to_uint8
from gear_studio.data.shapes import COLORS, POSITIONS, SHAPES, TEXTURES, Shapes, describe
from gear_studio.models.judges import ATTRIBUTES, AttributeJudge
from gear_studio.models.tokenizer import Tokenizer

NAMES = {"shape": SHAPES, "texture": TEXTURES, "color": COLORS, "position": POSITIONS}
KINDS = ("seen", "unseen")
SAMPLES = 480  # of each kind, behind a score
CHANCE = {name: 1 / count for name, count in ATTRIBUTES.items()}  # of guessing among all values alike
CHANCE["all"] = math.prod(CHANCE.values())


def prompts(kind: str, count: int) -> tuple[list[str], dict[str, Tensor]]:
    """`count` captions that each name shape, texture, colour and position, in several phrasings, always the
    same; and the ids they ask for, int64 (count,) by attribute. kind: of `KINDS`."""
    truth = Shapes("val", combinations=kind).truth(range(count))
    asked = {name: truth[name] for name in ATTRIBUTES}
    rng = np.random.default_rng(0)
    captions = [
        describe({name: NAMES[name][int(ids[i])] for name, ids in asked.items()}, rng) for i in range(count)
    ]
    return captions, asked


def agreement(said: dict[str, Tensor], asked: dict[str, Tensor]) -> dict[str, float]:
    """The share of pictures in which each attribute is the one asked for, and "all" of them at once."""
    right = {name: said[name].cpu() == asked[name] for name in asked}
    right["all"] = torch.stack(list(right.values())).all(0)
    return {name: hits.float().mean().item() for name, hits in right.items()}


def shuffled(asked: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the captions ask for, of other pictures: what samples score that do not listen."""
    order = torch.randperm(len(asked["shape"]), generator=torch.Generator().manual_seed(0))
    return {name: ids[order] for name, ids in asked.items()}


@torch.no_grad()
def ceiling(
    judge: AttributeJudge, kind: str, count: int, image_size: int, tokenizer: Tokenizer | None = None
) -> dict[str, float]:
    """What pictures score that show exactly what `prompts` ask for, those that the captions are of; given a
    tokenizer, its reconstructions of them, which no generator on it should be expected to pass."""
    truth = Shapes("val", image_size, combinations=kind).truth(range(count))
    images = data.to_float(truth["image"])
    if tokenizer:
        images = data.to_float(to_uint8(tokenizer.reconstruct(images)))
    return agreement(judge.says(images), {name: truth[name] for name in ATTRIBUTES})
