"""How alike a tokenizer's features are to a teacher's, over some pictures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from gear_studio.analysis.features import extract
from gear_studio.analysis.similarity import Estimate, cka, cknna, interval
from gear_studio.data.images import to_float
from gear_studio.data.source import Source
from gear_studio.models.teachers import Teacher
from gear_studio.models.tokenizer import Tokenizer

PLACES = {"z": "tokenizer.z", "c_q": "tokenizer.c_q"}
MEASURES = {"CKA": cka, "CKNNA": cknna}
ROWS = 640  # patches compared, drawn from all


@dataclass(frozen=True)
class Likeness:
    """values: features -> measure -> Estimate, or in words why there is none. protocol: how they were taken,
    one line."""

    values: Mapping[str, Mapping[str, Estimate | str]]
    protocol: str


def compare(tokenizer: Tokenizer, teacher: Teacher, pictures: Source, name: str) -> Likeness:
    """Patch-level CKA and CKNNA of z and c_q with f(x), with interval and chance.

    pictures: at the tokenizer's size. name: of the pictures, for the protocol. teacher: with one vector a
    token. Where a measure cannot be taken, of too few pictures or of equal features, say, the reason stands
    for it."""
    images = to_float(pictures.read(range(len(pictures)))["image"])
    at_once = 32 if tokenizer.config.image_size <= 64 else 2
    places = [*PLACES.values(), "teacher"]
    taken = extract([tokenizer, teacher], images, places, batch_size=at_once, source=name)
    rows = taken.rows("patch", count=min(ROWS, len(images) * tokenizer.grid**2))
    values = {
        features: {
            measure: _estimate(function, rows[place], rows["teacher"], rows.groups)
            for measure, function in MEASURES.items()
        }
        for features, place in PLACES.items()
    }
    return Likeness(values, f"{rows.protocol}; teacher {teacher.name}")


def _estimate(measure: Callable, x: Tensor, y: Tensor, groups: Tensor) -> Estimate | str:
    try:
        return interval(measure, x, y, groups)
    except ValueError as error:
        return str(error)
