"""What a generator is asked for, by training and by measurements; and the prompt files of benchmarks.

All `Conditions` have one interface: `of_batch`, what a batch of pictures shows; and `for_samples`, what
samples are asked for: every class in turn, or captions in order. Those of captions also give them as text.
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

from gear_studio.data import Source, shapes
from gear_studio.data.pictures import to_uint8, write_grid, write_png
from gear_studio.models.text_encoders import TextEncoder, split_words


class Conditions(Protocol):
    def of_batch(self, batch: dict) -> Tensor:
        """What the pictures of a source's batch show, as a generator's `condition` takes it."""
        ...

    def for_samples(self, numbers: Sequence[int]) -> Tensor:
        """What samples of these numbers are asked for."""
        ...


class ClassLabels:
    def __init__(self, classes: int):
        self.classes = classes

    def of_batch(self, batch: dict) -> Tensor:
        return batch["label"]

    def for_samples(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(list(numbers)) % self.classes


class SourceCaptions:
    """chosen: the source's pictures whose captions are asked for, in this order; None is all of them."""

    def __init__(self, encoder: TextEncoder, source: Source, chosen: Sequence[int] | None = None):
        self.encoder, self.source = encoder, source
        self.chosen = range(len(source)) if chosen is None else chosen

    def of_batch(self, batch: dict) -> Tensor:
        return self.encoder(batch["caption"])

    def for_samples(self, numbers: Sequence[int]) -> Tensor:
        return self.encoder(self.captions(numbers))

    def captions(self, numbers: Sequence[int]) -> list[str]:
        return self.source.captions([self.chosen[number % len(self.chosen)] for number in numbers])


class WrittenCaptions:
    """Captions that are written out, in this order."""

    def __init__(self, encoder: TextEncoder, captions: Sequence[str]):
        self.encoder, self.texts = encoder, captions

    def of_batch(self, batch: dict) -> Tensor:
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
    told = (
        shapes.describe({key: value}, rng)
        for key, values in shapes.ATTRIBUTES.items()
        for value in values
        for _ in range(50)  # so often that no phrasing is left out
    )
    return frozenset(word for caption in told for word in split_words(caption))


def unknown_words(caption: str) -> list[str]:
    """The words of a caption that no caption of the embedded world has, each once."""
    return [word for word in dict.fromkeys(split_words(caption)) if word not in vocabulary()]


# Prompt files


@dataclass(frozen=True)
class Prompt:
    """text: what is asked for. name: of what is written for it. metadata: GenEval's, where it is one of its
    prompts."""

    text: str
    name: str
    metadata: dict = field(default_factory=dict)


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts in a file of GenEval (.jsonl, an object with "prompt" a line), in a folder of DPG-Bench (.txt
    files of one prompt each), or in any text file, one a line; empty lines count for nothing.

    Raises FileNotFoundError for what is not there, ValueError naming the line or file that is no prompt."""
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        prompts = [Prompt(" ".join(_text(file).split()), file.stem) for file in files]
    elif path.is_file():
        lines = enumerate(_text(path).splitlines(), start=1)
        found = [(number, line.strip()) for number, line in lines if line.strip()]
        objects = [_object(path, *each) if path.suffix == ".jsonl" else {} for each in found]
        prompts = [
            Prompt(metadata.get("prompt", line), f"{i:05d}", metadata)
            for i, ((_, line), metadata) in enumerate(zip(found, objects, strict=True))
        ]
    else:
        raise FileNotFoundError(
            f"no prompts at {path}; expected a .jsonl of GenEval, a folder of .txt files as DPG-Bench has, "
            "or a text file with a prompt a line"
        )
    if not prompts:
        raise ValueError(f"{path} holds no prompts; expected .txt files in a folder, or a prompt a line")
    if empty := [prompt.name for prompt in prompts if not prompt.text]:
        raise ValueError(f"{path}: prompt {empty[0]} is empty")
    return prompts


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it again as UTF-8") from error


def _object(path: Path, number: int, line: str) -> dict:
    try:
        found = json.loads(line)
        if isinstance(found["prompt"], str):
            return found
    except (json.JSONDecodeError, KeyError, TypeError):
        pass
    raise ValueError(f'{path}, line {number}: expected a JSON object with a "prompt", got {line[:60]!r}')


def write_samples(prompt: Prompt, pictures: Tensor, out: Path) -> None:
    """Write pictures (n, 3, H, W) in [-1, 1] where the prompt's benchmark looks for them: of GenEval
    OUT/NAME/metadata.jsonl and OUT/NAME/samples/0000.png, ...; of others one grid, OUT/NAME.png, as square as
    it goes and without borders (DPG-Bench takes four)."""
    if prompt.metadata:
        folder = out / prompt.name
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / "metadata.jsonl").write_text(json.dumps(prompt.metadata))
        for number, picture in enumerate(to_uint8(pictures)):
            write_png(picture, folder / "samples" / f"{number:04d}.png")
    else:
        columns = -(-len(pictures) // max(1, round(len(pictures) ** 0.5)))
        write_grid(pictures, out / f"{prompt.name}.png", columns, padding=0)
