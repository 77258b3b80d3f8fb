"""Which picture a visitor looks at, and the collections to choose it from."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gear_studio.data.images import to_uint8
from gear_studio.errors import InputError
from gear_studio.looking.pictures import (
    NAMES,
    SMALL,
    Picture,
    SourcePictures,
    Upload,
    pictures_of,
    pictures_of_folder,
    pictures_of_source,
)
from gear_studio.looking.view import Kept
from gear_studio.runs import Run

OWN = "this run's own"
YOURS = "yours"
STRIP = 12  # pictures in a row to choose from
UPLOADS = 20  # of a visitor's pictures that are kept, while the page is open
WORLD = ("shapes",)  # the key of the embedded world's
FOREIGN = (
    "This tokenizer has only ever seen the embedded world: another picture comes out as the nearest that it "
    "can draw."
)


@dataclass(frozen=True)
class Choice:
    """What a visitor chose: picture number `index` of a collection by its name, or of their own `uploads`.

    surveyed: the collection that stands beside the picture, for what is said of many pictures."""

    source: str = OWN
    index: int = 0
    uploads: tuple[Upload, ...] = ()
    surveyed: str = OWN

    def of_source(self, source: str, index: int = 0) -> "Choice":
        return replace(
            self, source=source, index=index, surveyed=self.surveyed if source == YOURS else source
        )

    def with_upload(self, upload: Upload) -> "Choice":
        uploads = (*self.uploads, upload)[-UPLOADS:]
        return replace(self, uploads=uploads).of_source(YOURS, len(uploads) - 1)


class PicturesOnOffer:
    """The collections by name. folder: of more pictures; raises ValueError where it holds none."""

    def __init__(self, folder: Path | None = None):
        self._folder = pictures_of_folder(folder) if folder else None
        self._kept = Kept()  # a collection is made on first use
        self.names = [OWN, *NAMES]
        if self._folder:
            self.names.append(f"folder {self._folder.name}")
        self.names.append(YOURS)

    def collection(self, source: str, run: Run) -> SourcePictures:
        """The collection `source`, for looking at a Run. Raises ValueError for an unknown name."""
        if source not in self.names[:-1]:
            raise InputError(f"There are no pictures {source!r}; choose {', '.join(self.names[:-1])}.")
        if self._folder and source == self.names[-2]:
            return self._folder
        if source == OWN:
            return self._kept.get((OWN, str(run.folder)), lambda: self._same(pictures_of(run)))
        return self._kept.get(source, lambda: pictures_of_source(source))

    def count(self, choice: Choice, run: Run) -> int:
        """How many pictures there are to choose from where the visitor is."""
        return len(choice.uploads if choice.source == YOURS else self.collection(choice.source, run))

    def picture(self, choice: Choice, run: Run) -> Picture:
        """The picture chosen. Beyond the last of a collection it is the last. Raises ValueError where the
        visitor has given none."""
        last = self.count(choice, run) - 1
        index = min(max(choice.index, 0), last)
        if choice.source != YOURS:
            return Picture(self.collection(choice.source, run), index)
        if last < 0:
            raise InputError("You have not given a picture yet; press “Your own picture”.")
        return Picture(choice.uploads[index])

    def strip(self, choice: Choice, run: Run) -> tuple[int, Tensor]:
        """The STRIP pictures among which the chosen one is: the number of the first, and all of them, uint8
        (n, 3, SMALL, SMALL)."""
        last = self.count(choice, run) - 1
        first = min(max(choice.index, 0), last) // STRIP * STRIP
        numbers = range(first, min(first + STRIP, last + 1))
        if choice.source == YOURS:
            own = torch.cat([choice.uploads[number].tensor(0, SMALL) for number in numbers])
            return first, to_uint8(own)
        pictures = self.collection(choice.source, run)
        source = pictures.source(SMALL)
        return first, self._kept.get(
            ("strip", *pictures.key, first), lambda: source.read(list(numbers))["image"]
        )

    def _same(self, pictures: SourcePictures) -> SourcePictures:
        """Of collections with the same key, one for all Runs."""
        return self._kept.get(("key", *pictures.key), lambda: pictures)


def is_foreign(picture: Picture, run: Run) -> bool:
    """Whether the Run was trained on the embedded world alone and the picture is not of it."""
    return run.config["source"] == "shapes" and picture.pictures.key != WORLD
