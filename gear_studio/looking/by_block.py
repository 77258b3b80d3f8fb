"""What features at every place of a Run hold, from the tokenizer to the generator's last block, measured over
more and more pictures.

Likeness to a teacher (CKNNA, CKA), how local features are (Moran's I, high-frequency ratio) and, of pictures
with labels, what a linear probe reads off them. Every value has an interval and its chance level.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from gear_studio.analysis import spatial
from gear_studio.analysis.features import extract
from gear_studio.analysis.probes import linear_probe
from gear_studio.analysis.similarity import Estimate, Null, cka, cknna, interval
from gear_studio.analysis.spatial import white_ratio
from gear_studio.data.images import to_float
from gear_studio.data.shapes import GRID, SHAPES, TEXTURES, Shapes
from gear_studio.errors import InputError
from gear_studio.looking.pictures import SMALL, SourcePictures
from gear_studio.models.generator import Generator
from gear_studio.models.teachers import Teacher
from gear_studio.models.tokenizer import Tokenizer

ROWS = 1024  # patches that are compared with the teacher's
PATCHES = 16  # at least so many of every picture are kept
LAID_OUT = 2048  # patches of a map
FIRST, FASTER = 16, 4  # pictures of the first measures; then so many times as many
TOKENIZER = ("tokenizer.z", "tokenizer.c_q")
QUICK = {"halves": 15, "permutations": 5}
SIMILARITIES = {"CKNNA": cknna, "CKA": cka}
MORAN, HIGH = "Moran's I", "high-frequency ratio"
ATTRIBUTES = {"texture": len(TEXTURES), "shape": len(SHAPES)}  # of the embedded world's objects

Value = Estimate | str  # a measured value with its chance level, or in words why there is none


@dataclass(frozen=True)
class Patches:
    """m patches of n pictures, on the CPU, drawn at random, as many of each picture.

    images: uint8 (n, 3, S, S). numbers: of the pictures in their collection. grid: tokens along a side.
    picture, token: int64 (m,), which of the images, and where in it. features: place -> float32 (m, d)."""

    images: Tensor
    numbers: Sequence[int]
    grid: int
    picture: Tensor
    token: Tensor
    features: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True)
class ByBlock:
    """Measures over the first `count` pictures; 0 before the first measures.

    values: measure -> place, named as in `features.extract`. protocol: how they were taken. patches: some of
    all pictures, with their features in the teacher, the tokenizer and at the tap; None until the end."""

    count: int = 0
    values: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    protocol: str = ""
    patches: Patches | None = None


def places_of(generator: Generator | None, teacher: Teacher | None) -> list[str]:
    """The places that are measured: the teacher, the tokenizer's, then block after block."""
    blocks = range(1, generator.config.blocks + 1) if generator else ()
    first = ["teacher"] if teacher else []
    return [*first, *TOKENIZER, *(f"generator.{block}" for block in blocks)]


def grow_by_block(
    tokenizer: Tokenizer,
    generator: Generator | None,
    teacher: Teacher | None,
    pictures: SourcePictures,
    count: int,
) -> Iterator[tuple[int, ByBlock]]:
    """Yields how many of at most `count` pictures have been read, and the last measures: those over the first
    FIRST pictures, then over FASTER times as many each time, in the end over all.

    CKNNA and CKA are taken of at most ROWS patches, as `interval` takes them. Moran's I and the
    high-frequency ratio are means over pictures with Student's 95 % interval. Probes are linear: of texture
    and shape from patches on the object where the world says them for every token, else of a picture's class
    from the mean of its patches. They learn from every second picture and are tested on the others, then the
    other way round; low and high are these two accuracies.

    generator: None where there is none. teacher: with one vector a token; without it there is no likeness."""
    models = [model for model in (tokenizer, generator, teacher) if model is not None]
    places, size = places_of(generator, teacher), tokenizer.config.image_size
    numbers, source = pictures.numbers(count), pictures.source(size)
    attributes = isinstance(source, Shapes) and tokenizer.grid == GRID
    tasks = ATTRIBUTES if attributes else {"class": len(pictures.class_names)} if pictures.class_names else {}
    seen = _Seen(tokenizer.grid, max(PATCHES, ROWS // len(numbers)), tasks)
    at_once, goal, measured = 16 if size <= SMALL else 2, FIRST, ByBlock()
    for start in range(0, len(numbers), at_once):
        some = numbers[start : start + at_once]
        batch = source.truth(some) if isinstance(source, Shapes) and attributes else source.read(some)
        seen.add(extract(models, to_float(batch["image"]), places), batch)
        yield seen.count, measured
        if seen.count >= min(goal, len(numbers)):
            goal *= FASTER
            said = f"{seen.count} pictures of {pictures.name}"
            said += f"; teacher {teacher.name}" if teacher else ""
            said += "; generator teacher-forced, null condition, before the projector" if generator else ""
            tap = generator.config.tap if generator else None
            patches = seen.take_patches(numbers, tap) if seen.count == len(numbers) else None
            measured = ByBlock(seen.count, seen.measure(), f"{said}; {seen.protocol}", patches)
            yield seen.count, measured


@dataclass
class _Seen:
    """What is kept of the pictures seen so far. grid: tokens along a side. most: patches kept of a picture,
    drawn at random. tasks: of probes, with their numbers of classes."""

    grid: int
    most: int
    tasks: Mapping[str, int]
    count: int = 0
    rows: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))  # place -> (b, most, d)
    means: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))  # place -> (b, d)
    morans: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))  # place -> (b,)
    high: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))  # place -> (b,)
    truth: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))  # task -> (b, ...)
    images: list[Tensor] = field(default_factory=list)  # (b, 3, S, S)
    tokens: list[Tensor] = field(default_factory=list)  # (b, most), which patches are kept

    def add(self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """features: (b, N, d) by place. batch: the pictures, and what is known of them."""
        numbers = range(self.count, self.count + len(batch["image"]))
        orders = [
            torch.randperm(self.grid**2, generator=torch.Generator().manual_seed(number))
            for number in numbers
        ]
        drawn = torch.stack(orders)[:, : self.most]
        self.images.append(batch["image"])
        self.tokens.append(drawn)
        for place, x in features.items():
            self.rows[place].append(x.gather(1, drawn[..., None].expand(-1, -1, x.shape[2])))
            self.means[place].append(x.mean(1))
            self.morans[place].append(spatial.morans_i(x, self.grid))
            self.high[place].append(spatial.high_frequency_ratio(x, self.grid))
        for task in self.tasks:
            known = batch["label"] if task == "class" else batch[f"patch_{task}"].flatten(1).gather(1, drawn)
            self.truth[task].append(known)
        self.count += len(numbers)

    def take_patches(self, numbers: Sequence[int], tap: int | None) -> Patches:
        """About LAID_OUT of the patches that are kept. numbers: of the pictures. tap: None without a
        generator."""
        tokens = torch.cat(self.tokens)[:, : -(-LAID_OUT // self.count)]
        count, of_each = tokens.shape
        places = [place for place in self.rows if place in ("teacher", *TOKENIZER, f"generator.{tap}")]
        return Patches(
            torch.cat(self.images),
            numbers,
            self.grid,
            torch.arange(count).repeat_interleave(of_each),
            tokens.flatten(),
            {place: torch.cat(self.rows[place])[:, :of_each].flatten(0, 1) for place in places},
        )

    @property
    def compared(self) -> int:
        """Patches of each picture that are compared with the teacher's."""
        return min(self.most, self.grid**2, max(1, ROWS // self.count))

    @property
    def protocol(self) -> str:
        said = f"CKNNA (k=10) and CKA of {self.compared * self.count:,} patches"
        if "class" in self.tasks:
            return f"{said}; linear probe of the class, from the mean of a picture's patches, two halves"
        return said + ("; linear probes of patches on the object, two halves" if self.tasks else "")

    def measure(self) -> dict[str, dict[str, Value]]:
        local = {MORAN: (self.morans, -1 / (self.grid**2 - 1)), HIGH: (self.high, white_ratio(self.grid))}
        values: dict[str, dict[str, Value]] = self._likeness() if "teacher" in self.rows else {}
        for name, (found, chance) in local.items():
            values[name] = {
                place: _or_reason(_over_pictures, torch.cat(each), chance) for place, each in found.items()
            }
        for task, classes in self.tasks.items():
            values[f"probe of {task}"] = {
                place: _or_reason(self._probe, task, place, classes) for place in self.rows
            }
        return values

    def _likeness(self) -> dict[str, dict[str, Value]]:
        groups = torch.arange(self.count).repeat_interleave(self.compared)
        rows = {
            place: torch.cat(parts)[:, : self.compared].flatten(0, 1) for place, parts in self.rows.items()
        }
        target = rows.pop("teacher")
        return {
            name: {
                place: _or_reason(interval, measure, each, target, groups, **QUICK)
                for place, each in rows.items()
            }
            for name, measure in SIMILARITIES.items()
        }

    def _probe(self, task: str, place: str, classes: int) -> Estimate:
        of_place = (self.means if task == "class" else self.rows)[place]
        truth, x = torch.cat(self.truth[task]), torch.cat(of_place)
        scores = []
        for first in (0, 1):
            learn, test = ((x[half::2], truth[half::2]) for half in (first, 1 - first))
            scores.append(linear_probe(*_known(*learn), *_known(*test)))
        chance = 1 / classes
        return Estimate(sum(scores) / 2, min(scores), max(scores), Null(chance, chance, chance))


def _known(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The rows whose truth is known: background is -1."""
    return x[truth >= 0], truth[truth >= 0]


def _over_pictures(values: Tensor, chance: float) -> Estimate:
    """The mean of a number a picture (b,). Raises ValueError where fewer than two pictures have one."""
    values = values[~values.isnan()]
    if len(values) < 2:
        raise InputError("its features are constant over every picture")
    reach = float(stdtrit(len(values) - 1, 0.975) * values.std() / len(values) ** 0.5)
    mean = float(values.mean())
    return Estimate(mean, mean - reach, mean + reach, Null(chance, chance, chance))


def _or_reason(measure: Callable[..., Estimate], *given: Any, **settings: Any) -> Value:
    try:
        return measure(*given, **settings)
    except ValueError as error:  # too few pictures or classes, rows that do not vary or cannot be told apart
        return str(error)
