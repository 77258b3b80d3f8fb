"""Which picture a visitor looks at, and the collections to choose it from."""

from dataclasses import dataclass
from pathlib import Path

from gear_studio.looking.pictures import (
    Picture,
    Pictures,
    SourcePictures,
    Upload,
    pictures_of,
    pictures_of_folder,
    pictures_of_source,
)
from gear_studio.looking.view import Kept
from gear_studio.runs import Run

OWN = "this run's own"
SOURCES = ("photos", "shapes", "digits")  # offered beside them, and beside the folder of --pictures
WORLD = ("shapes",)  # the key of the embedded world's


@dataclass(frozen=True)
class Choice:
    """What a visitor chose: picture number `index` of a collection by its name, or a picture of their own."""

    source: str = OWN
    index: int = 0
    upload: Upload | None = None


class PicturesOnOffer:
    """The collections by name. folder: of more pictures; raises ValueError where it holds none."""

    def __init__(self, folder: Path | None = None):
        self._folder = pictures_of_folder(folder) if folder else None
        self._kept = Kept()  # a collection is made on first use
        self.names = [OWN, *SOURCES]
        if self._folder:
            self.names.append(f"folder {self._folder.name}")

    def collection(self, source: str, run: Run) -> SourcePictures:
        """The collection `source`, for looking at a Run. Raises ValueError for an unknown name."""
        if source not in self.names:
            raise ValueError(f"There are no pictures {source!r}; choose {', '.join(self.names)}.")
        if self._folder and source == self.names[-1]:
            return self._folder
        if source == OWN:
            return self._kept.get((OWN, str(run.folder)), lambda: self._same(pictures_of(run)))
        return self._kept.get(source, lambda: pictures_of_source(source))

    def picture(self, choice: Choice, run: Run) -> Picture:
        """The picture chosen. Beyond the last of a collection it is the last."""
        if choice.upload is not None:
            return Picture(choice.upload)
        pictures: Pictures = self.collection(choice.source, run)
        return Picture(pictures, min(max(choice.index, 0), len(pictures) - 1))

    def _same(self, pictures: SourcePictures) -> SourcePictures:
        """Of collections with the same key, one for all Runs."""
        return self._kept.get(("key", *pictures.key), lambda: pictures)


def is_foreign(picture: Picture, run: Run) -> bool:
    """Whether the Run was trained on the embedded world alone and the picture is not of it."""
    return run.config["source"] == "shapes" and picture.pictures.key != WORLD
