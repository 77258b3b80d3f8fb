"""Does a sample show what its caption asks for? A score like GenEval's, made exact by the small world: every
picture has a shape, a texture, a colour and a place, a caption names all four, and `AttributeJudge` says
which four it sees.

The captions are those of held-out pictures of `shapes`. In one kind ("seen") texture, shape and colour are
combined as in training. In the other ("unseen") training never showed the three together, though it showed
each two of them.
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
SAMPLES = 480  # of each kind, for a score
CHANCE = {name: 1 / count for name, count in ATTRIBUTES.items()}  # the score of guessing
CHANCE["all"] = math.prod(CHANCE.values())


def make_prompts(kind: str, count: int) -> tuple[list[str], dict[str, Tensor]]:
    """`count` captions that each name shape, texture, colour and position, in several phrasings, and the ids
    that they ask for, int64 (count,) by attribute. The same on every call. kind: of `KINDS`."""
    truth = Shapes("val", combinations=kind).truth(range(count))
    wanted = {name: truth[name] for name in ATTRIBUTES}
    rng = np.random.default_rng(0)
    captions = [
        describe({name: NAMES[name][int(ids[i])] for name, ids in wanted.items()}, rng) for i in range(count)
    ]
    return captions, wanted


def score(seen: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """The share of pictures in which a judge has seen the attribute that was wanted, by attribute, and "all"
    of them at once."""
    right = {name: seen[name].cpu() == wanted[name] for name in wanted}
    right["all"] = torch.stack(list(right.values())).all(0)
    return {name: hits.float().mean().item() for name, hits in right.items()}


def shuffle(wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is wanted, given to other pictures. Against it score samples that ignore their captions."""
    order = torch.randperm(len(wanted["shape"]), generator=torch.Generator().manual_seed(0))
    return {name: ids[order] for name, ids in wanted.items()}


@torch.no_grad()
def score_ceiling(
    judge: AttributeJudge, kind: str, count: int, image_size: int, tokenizer: Tokenizer | None = None
) -> dict[str, float]:
    """The score of the real pictures that the captions of `make_prompts` were written for. With a tokenizer,
    that of its reconstructions of them, which no generator on it should be expected to pass."""
    truth = Shapes("val", image_size, combinations=kind).truth(range(count))
    images = data.to_float(truth["image"])
    if tokenizer:
        images = data.to_float(to_uint8(tokenizer.reconstruct(images)))
    return score(judge.says(images), {name: truth[name] for name in ATTRIBUTES})
