"""What sources of picture files share (`Folder`, `Shards`): reading them by number, whatever their state.

Notable: a file that does not decode costs a warning with its name, not the run; one that the disk does not
give is asked for a few times more first (`files.read_patiently`). The next readable one stands
in for it, so the stream stays a pure function of (seed, step). The same goes for a caption that is empty or
not UTF-8. Names and labels are arrays, not lists of objects: a million of them cost some 40 MB, and loading
processes share them instead of copying.
"""

import io
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gear_studio.data.images import UnreadableImage, crop_and_resize, open_rgb
from gear_studio.data.source import Batch, ListedSource
from gear_studio.errors import InputError
from gear_studio.files import read_patiently


class UnreadableCaption(InputError):
    """The caption is empty or not UTF-8; the message names its picture."""


class PictureFiles(ListedSource, ABC):
    """The base of sources whose pictures are files; satisfies `Source`, `Captioned`, `OnDisk` and `Skipping`.

    skipped: the files that this process has found unreadable so far, or without a readable caption where
    captions are asked for (`with_captions`); its loading processes' too, once `stream` has given their batch.
    """

    on_disk = True
    has_captions = True

    folder: Path
    classes: list[str]
    image_size: int
    with_captions: bool
    skipped: set[str]
    interpolation: str = "bicubic"  # of `INTERPOLATIONS`: how pictures are resized

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def identity(self) -> str: ...

    @abstractmethod
    def _name(self, index: int) -> str:
        """What to call file `index` in a message."""

    @abstractmethod
    def _read_bytes(self, index: int) -> bytes:
        """The file as it is stored."""

    @abstractmethod
    def _read_caption_bytes(self, index: int) -> bytes:
        """The caption of file `index` as it is stored."""

    @abstractmethod
    def _label(self, index: int) -> int: ...

    def read(self, indices: Sequence[int], rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        """{"image": uint8 (B,3,H,W), "label": int64 (B,)}, with captions also {"caption": B strings}.

        With rngs the square lies at random and is mirrored half the time; without, it is the middle one.
        An unreadable file is replaced, label and caption included, by the next readable one.
        Raises IndexError for an index that is not there, ValueError when no file is readable.
        """
        images, labels, captions = [], [], []
        for row, index in enumerate(indices):
            if row == 0 or index != indices[row - 1]:  # several views of one picture need one decoding
                picture, label, caption = self._decode(index)
            rng = None if rngs is None else rngs[row]
            images.append(crop_and_resize(picture, self.image_size, rng, self.interpolation))
            labels.append(label)
            captions.append(caption)
        batch: Batch = {"image": torch.stack(images), "label": torch.tensor(labels)}
        return batch | ({"caption": captions} if self.with_captions else {})

    def captions(self, indices: Sequence[int]) -> list[str]:
        """The captions that `read` gives with these pictures."""
        return [self._decode(index)[2] for index in indices]

    def _decode(self, index: int) -> tuple[Image.Image, int, str]:
        """Picture, label and caption of file `index`, or of the next one that can be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder} has pictures 0 to {len(self) - 1}, asked for {index}")
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            name = self._name(candidate)
            if name in self.skipped:
                continue
            try:
                caption = ""
                if self.with_captions:
                    stored = read_patiently(partial(self._read_caption_bytes, candidate))
                    caption = decode_caption(stored, name)
                content = read_patiently(partial(self._read_bytes, candidate))
                picture = open_rgb(io.BytesIO(content), self.image_size, name)
                return picture, self._label(candidate), caption
            except (UnreadableImage, UnreadableCaption, OSError) as error:
                self.skipped.add(name)
                warnings.warn(f"skipped {error}", stacklevel=2)
        raise InputError(f"{self.folder}: none of the {len(self)} pictures can be read")


def decode_caption(stored: bytes, name: str) -> str:
    """A caption's text, its line breaks made spaces. name: of its picture. Raises UnreadableCaption."""
    try:
        caption = " ".join(stored.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise UnreadableCaption(f"{name}: its caption is not UTF-8: {error}") from error
    if not caption:
        raise UnreadableCaption(f"{name}: its caption is empty")
    return caption


def warn_of_single(folder: Path, classes: Sequence[Any]) -> None:
    """Warn, naming the first, of classes that have a single picture. classes: one a picture."""
    counts = Counter(classes)
    if single := [name for name, count in counts.items() if count == 1]:
        warnings.warn(
            f"{len(single)} of {len(counts)} classes in {folder} have a single picture, which is trained on; "
            f"none of theirs is held out; the first is {single[0]!r}",
            stacklevel=2,
        )


def warn_passed_over(folder: Path, count: int, total: int) -> None:
    """Warn that `count` of the `total` pictures in a folder are not used, since they have no caption."""
    warnings.warn(f"passed over {count} of {total} pictures in {folder}: they have no caption", stacklevel=2)
