"""Where a generator's conditions come from, in training and measuring; and the prompt files of benchmarks.

All `Conditions` have one interface: `of_batch` gives the conditions of a batch of pictures; `for_samples`
gives those of samples: classes in turn, in given proportions or at random, or captions in order. Those of
captions also give the text.
"""

import functools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gear_studio.data import shapes
from gear_studio.data.images import to_float, to_uint8
from gear_studio.data.parquet import ParquetPictures, holds_parquet
from gear_studio.data.picture_output import write_grid, write_png
from gear_studio.data.source import Batch, Captioned, Source
from gear_studio.errors import InputError, MissingError
from gear_studio.files import one_line
from gear_studio.models.teachers import to_size
from gear_studio.models.text_encoders import TextEncoder, split_words


class Conditions(Protocol):
    """Where conditions come from: tensors as a generator's `condition` takes them."""

    def of_batch(self, batch: Batch) -> Tensor:
        """The conditions of a source's batch: what its pictures show."""
        ...

    def for_samples(self, numbers: Sequence[int]) -> Tensor:
        """The conditions of samples by number."""
        ...


class ClassLabels:
    """Labels (B,): a batch's own; for samples every class in turn, or in proportion.

    classes: how many there are. counts: how often each is asked for in a round, spread evenly over it; None:
    once. at_random: draw each sample's class instead, all equally likely; always the same draws."""

    def __init__(self, classes: int, counts: Sequence[int] | None = None, at_random: bool = False):
        self.classes, self.at_random = classes, at_random
        counts = [1] * classes if counts is None else counts
        # The k-th of n stands in the middle of the k-th n-th of the round; of equals the lower class first.
        places = [((k + 0.5) / n, label) for label, n in enumerate(counts) for k in range(n)]
        self.round = torch.tensor([label for _, label in sorted(places)])

    def of_batch(self, batch: Batch) -> Tensor:
        return batch["label"]

    def for_samples(self, numbers: Sequence[int]) -> Tensor:
        if self.at_random:
            draws = [
                int(np.random.default_rng((0x6C61, number)).integers(self.classes)) for number in numbers
            ]
            return torch.tensor(draws)
        return self.round[torch.tensor(list(numbers)) % len(self.round)]


class SourceCaptions:
    """The captions of a source's pictures, encoded.

    pictures: the numbers of those whose captions samples get, in this order; None: all of them. Raises
    ValueError for a source without captions."""

    def __init__(self, encoder: TextEncoder, source: Source, pictures: Sequence[int] | None = None):
        if not isinstance(source, Captioned):
            raise InputError(f"the data source {source.name!r} has no captions")
        self.encoder, self.source = encoder, source
        self.pictures = range(len(source)) if pictures is None else pictures

    def of_batch(self, batch: Batch) -> Tensor:
        return self.encoder(batch["caption"])

    def for_samples(self, numbers: Sequence[int]) -> Tensor:
        return self.encoder(self.captions(numbers))

    def captions(self, numbers: Sequence[int]) -> list[str]:
        return self.source.captions([self.pictures[number % len(self.pictures)] for number in numbers])


class WrittenCaptions:
    """Captions given as text, encoded; samples get them in this order."""

    def __init__(self, encoder: TextEncoder, captions: Sequence[str]):
        self.encoder, self.texts = encoder, captions

    def of_batch(self, batch: Batch) -> Tensor:
        return self.encoder(batch["caption"])

    def for_samples(self, numbers: Sequence[int]) -> Tensor:
        return self.encoder(self.captions(numbers))

    def captions(self, numbers: Sequence[int]) -> list[str]:
        return [self.texts[number % len(self.texts)] for number in numbers]


# Words


@functools.cache
def vocabulary() -> frozenset[str]:
    """Every word that a caption of the embedded world may have."""
    rng = np.random.default_rng(0)
    captions = (
        shapes.describe({key: value}, rng)
        for key, values in shapes.ATTRIBUTES.items()
        for value in values
        for _ in range(50)  # so often that no phrasing is left out
    )
    return frozenset(word for caption in captions for word in split_words(caption))


def unknown_words(caption: str) -> list[str]:
    """The words of a caption that no caption of the embedded world has, each once."""
    return [word for word in dict.fromkeys(split_words(caption)) if word not in vocabulary()]


# Prompt files


@dataclass(frozen=True)
class Prompt:
    """A prompt of a file. name: of the files written for it. metadata: GenEval's, where it is one of its.
    pictures: how many its benchmark takes."""

    text: str
    name: str
    metadata: dict = field(default_factory=dict)
    pictures: int = 4


def read_prompts(path: Path) -> list[Prompt]:
    """Read prompts as benchmarks publish them. Empty lines are passed over.

    - GenEval: .jsonl, an object with "prompt" a line. GPIC: .jsonl, an object with "caption" a line.
    - DPG-Bench: a folder of .txt files of one prompt each, or a .json {file name: prompt}.
    - WISE: a .json list of objects with "Prompt" and "prompt_id", or a folder of such *_verified.json files.
    - COCO: a .parquet file or a folder of such files, with a column caption (see `ParquetPictures`).
    - Any other file is text with a prompt a line.

    Raises FileNotFoundError for what is not there, ValueError naming the line or file that is no prompt."""
    if not path.exists():
        raise MissingError(
            f"no prompts at {path}; expected a .jsonl of GenEval or GPIC, a folder of .txt files or a .json "
            "as DPG-Bench has, WISE's *_verified.json, COCO's .parquet, or a text file with a prompt a line"
        )
    if holds_parquet(path):
        captions = ParquetPictures(path).captions()
        prompts = [Prompt(" ".join(text.split()), f"{i:06d}", pictures=1) for i, text in enumerate(captions)]
    elif path.is_dir() and (files := sorted(path.glob("*_verified.json"))):
        prompts = [prompt for file in files for prompt in _read_json(file)]
    elif path.is_dir():
        texts = sorted(path.glob("*.txt"))
        prompts = [Prompt(" ".join(_read_text(file).split()), file.stem) for file in texts]
    elif path.suffix == ".json":
        prompts = _read_json(path)
    else:
        numbered = enumerate(_read_text(path).splitlines(), start=1)
        lines = [(number, line.strip()) for number, line in numbered if line.strip()]
        is_jsonl = path.suffix == ".jsonl"
        prompts = [
            _parse_line(path, number, line, i) if is_jsonl else Prompt(line, f"{i:05d}")
            for i, (number, line) in enumerate(lines)
        ]
    if not prompts:
        raise InputError(f"{path} holds no prompts; expected .txt files in a folder, or a prompt a line")
    if empty := [prompt.name for prompt in prompts if not prompt.text]:
        raise InputError(f"{path}: prompt {empty[0]} is empty")
    if twice := [name for name, count in Counter(p.name for p in prompts).items() if count > 1]:
        raise InputError(f"{path}: {twice[0]} names two prompts, and one would replace the other")
    return prompts


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); save it again as UTF-8") from error


def _read_json(path: Path) -> list[Prompt]:
    """DPG-Bench's or WISE's prompts of one .json. Raises ValueError for anything else."""
    expected = "expected {file name: prompt} as DPG-Bench, or a list of {Prompt, prompt_id} as WISE"
    try:
        held = json.loads(_read_text(path))
        if isinstance(held, dict):
            pairs = [(name.removesuffix(".txt"), text, 4) for name, text in held.items()]
        else:
            by_number = sorted(held, key=lambda each: int(each["prompt_id"]))
            pairs = [(str(int(each["prompt_id"])), each["Prompt"], 1) for each in by_number]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} holds no prompts ({one_line(error)}); {expected}") from error
    for name, text, _ in pairs:
        if not isinstance(text, str) or Path(name).name != name or name.startswith("."):
            raise InputError(f"{path}: {name[:60]!r} is no file's name, or what it names no text; {expected}")
    return [Prompt(" ".join(text.split()), name, pictures=count) for name, text, count in pairs]


def _parse_line(path: Path, number: int, line: str, place: int) -> Prompt:
    """A prompt of GenEval or GPIC, from line `number` of its file. place: which of the prompts it is. Raises
    ValueError for another line."""
    try:
        held = json.loads(line)
        if isinstance(held.get("prompt"), str):
            return Prompt(held["prompt"], f"{place:05d}", held)
        if isinstance(held["caption"], str):
            return Prompt(" ".join(held["caption"].split()), f"{place:06d}", pictures=1)
    except (json.JSONDecodeError, RecursionError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(
        f'{path}, line {number}: expected a JSON object with a "prompt" or a "caption", got {line[:60]!r}'
    )


def write_samples(prompt: Prompt, pictures: Tensor, out: Path, size: int | None = None) -> None:
    """Write pictures (n, 3, H, W) in [-1, 1] where the prompt's benchmark looks for them.

    A prompt of GenEval gets OUT/NAME/metadata.jsonl and OUT/NAME/samples/0000.png, ...; any other one grid,
    OUT/NAME.png, without borders and with about as many rows as columns (DPG-Bench takes four pictures; a
    single one is the file). size: pixels along a side that each is resized to (bicubic); None: as it is."""
    small = to_uint8(pictures).cpu()
    shown = small if size is None else to_size(small, size)  # of bytes: as Pillow resizes
    if prompt.metadata:
        folder = out / prompt.name
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / "metadata.jsonl").write_text(json.dumps(prompt.metadata))
        for number, picture in enumerate(shown):
            write_png(picture, folder / "samples" / f"{number:04d}.png")
    else:
        columns = -(-len(shown) // max(1, round(len(shown) ** 0.5)))
        write_grid(to_float(shown), out / f"{prompt.name}.png", columns, padding=0)
