"""Does a sample show what its caption asked for? A score like GenEval's, made exact by the small world: every
picture has a shape, a texture, a colour and a place, a caption names all four, and `AttributeJudge` looks.

Prompts are of held-out pictures of `shapes`: with combinations of texture, shape and colour as in training
("seen"), and with those that training never showed together ("unseen"; each two of the three were).
"""

import numpy as np
import torch
from torch import Tensor

from gear_studio.analysis.judge import ATTRIBUTES
from gear_studio.data.shapes import COLORS, POSITIONS, SHAPES, TEXTURES, Shapes, describe

NAMES = {"shape": SHAPES, "texture": TEXTURES, "color": COLORS, "position": POSITIONS}
KINDS = ("seen", "unseen")


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
