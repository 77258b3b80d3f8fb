"""Where a generator's conditions come from, in training and measuring; and the prompt files of benchmarks.

All `Conditions` have one interface: `of_batch` gives the conditions of a batch of pictures; `for_samples`
gives those of samples: classes in turn, in given proportions or at random, or captions in order. Those of
captions also give the text.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gear_studio.data import shapes
from gear_studio.data.images import to_uint8
from gear_studio.data.picture_output import write_grid, write_png
from gear_studio.data.source import Batch, Captioned, Source
from gear_studio.errors import InputError, MissingError
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
    """A prompt of a file. name: of the files written for it. metadata: GenEval's, where it is one of its."""

    text: str
    name: str
    metadata: dict = field(default_factory=dict)


def read_prompts(path: Path) -> list[Prompt]:
    """Read prompts: a file of GenEval (.jsonl, an object with "prompt" a line), a folder of DPG-Bench (.txt
    files of one prompt each), or any text file, one a line. Empty lines are passed over.

    Raises FileNotFoundError for what is not there, ValueError naming the line or file that is no prompt."""
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        prompts = [Prompt(" ".join(_read_text(file).split()), file.stem) for file in files]
    elif path.is_file():
        numbered = enumerate(_read_text(path).splitlines(), start=1)
        lines = [(number, line.strip()) for number, line in numbered if line.strip()]
        objects = [_parse_object(path, *line) if path.suffix == ".jsonl" else {} for line in lines]
        prompts = [
            Prompt(metadata.get("prompt", line), f"{i:05d}", metadata)
            for i, ((_, line), metadata) in enumerate(zip(lines, objects, strict=True))
        ]
    else:
        raise MissingError(
            f"no prompts at {path}; expected a .jsonl of GenEval, a folder of .txt files as DPG-Bench has, "
            "or a text file with a prompt a line"
        )
    if not prompts:
        raise InputError(f"{path} holds no prompts; expected .txt files in a folder, or a prompt a line")
    if empty := [prompt.name for prompt in prompts if not prompt.text]:
        raise InputError(f"{path}: prompt {empty[0]} is empty")
    return prompts


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); save it again as UTF-8") from error


def _parse_object(path: Path, number: int, line: str) -> dict:
    """A GenEval prompt's metadata, from line `number` of its file. Raises ValueError for another line."""
    try:
        metadata = json.loads(line)
        if isinstance(metadata["prompt"], str):
            return metadata
    except (json.JSONDecodeError, KeyError, TypeError):
        pass
    raise InputError(f'{path}, line {number}: expected a JSON object with a "prompt", got {line[:60]!r}')


def write_samples(prompt: Prompt, pictures: Tensor, out: Path) -> None:
    """Write pictures (n, 3, H, W) in [-1, 1] where the prompt's benchmark looks for them.

    A prompt of GenEval gets OUT/NAME/metadata.jsonl and OUT/NAME/samples/0000.png, ...; any other one grid,
    OUT/NAME.png, without borders and with about as many rows as columns (DPG-Bench takes four pictures)."""
    if prompt.metadata:
        folder = out / prompt.name
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / "metadata.jsonl").write_text(json.dumps(prompt.metadata))
        for number, picture in enumerate(to_uint8(pictures)):
            write_png(picture, folder / "samples" / f"{number:04d}.png")
    else:
        columns = -(-len(pictures) // max(1, round(len(pictures) ** 0.5)))
        write_grid(pictures, out / f"{prompt.name}.png", columns, padding=0)
