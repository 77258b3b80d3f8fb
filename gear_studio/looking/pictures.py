"""The pictures that a model is looked at with: of a data source, of any folder, or a visitor's own.

Every collection is numbered from 0, gives each picture at whatever size a model takes, and says of it what it
knows: a caption always, a class where there are classes.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from gear_studio import data
from gear_studio.data.images import SUFFIXES, UnreadableImage, is_picture, open_rgb, to_float
from gear_studio.data.photos import PHOTOS
from gear_studio.data.picture_files import PictureFiles
from gear_studio.data.shapes import Shapes
from gear_studio.data.source import Batch, Captioned, Skipping, Source, choose_pictures
from gear_studio.data.upload import read_upload
from gear_studio.errors import InputError
from gear_studio.files import walk_folders
from gear_studio.models.teachers import to_size
from gear_studio.runs import Run

NAMES = ("photos", "shapes", "digits")  # of the collections that need no place
WORLD_PICTURES = 1000  # how many pictures are offered of a source without end
SMALL = 64  # pixels a side up to which pictures are looked at by the hundred


class Pictures(Protocol):
    """A numbered collection of pictures. name: as a list of collections shows it. key: tells it from all
    others. class_names: empty where pictures have no classes."""

    name: str
    key: tuple
    class_names: list[str]

    def __len__(self) -> int: ...

    def tensor(self, index: int, size: int) -> Tensor:
        """Picture number `index` as a model takes it: float (1, 3, size, size) in [-1, 1], on the CPU."""
        ...

    def caption(self, index: int) -> str:
        """A phrase that says which picture it is and, where that is known, what it shows."""
        ...

    def label(self, index: int) -> int | None:
        """The number in `class_names` of its class; None where it has none."""
        ...


class SourcePictures:
    """The held-out pictures of a data source; satisfies `Pictures`.

    make: the source at a size in pixels. embedded: they are of the world that comes with the package."""

    def __init__(self, name: str, key: tuple, make: Callable[[int], Source], embedded: bool = False):
        self.name, self.key, self.embedded = name, key, embedded
        self._make = make
        self._sources: dict[int, Source] = {}
        self._making = Lock()
        classes = self.source(SMALL).classes
        self.class_names = classes if len(classes) > 1 else []

    def __deepcopy__(self, _: dict) -> "SourcePictures":
        return self  # it never changes

    def __len__(self) -> int:
        return WORLD_PICTURES if self.embedded else len(self.source(SMALL))

    def source(self, size: int) -> Source:
        """All of them at a size, with the numbers they have here."""
        with self._making:
            if size not in self._sources:
                self._sources[size] = self._make(size)
            return self._sources[size]

    def tensor(self, index: int, size: int) -> Tensor:
        return to_float(self.source(size).read([index])["image"])

    def caption(self, index: int) -> str:
        source = self.source(SMALL)
        if isinstance(source, Shapes):
            return f"Picture {index} of the held-out world: {source.caption(index)}."
        shows = source.captions([index])[0] if isinstance(source, Captioned) else ""
        if self.key == ("photos",):
            photo = PHOTOS[index]
            return f"Photo {index}: {photo.caption} ({photo.credit}, {photo.licence})."
        label = self.label(index)
        known = [shows] if shows else [] if label is None else [f"class {self.class_names[label]}"]
        if isinstance(source, AnyFolder):
            known = [source.file_name(index)]
        return ": ".join([f"Picture {index} of {self.name}", *known]) + "."

    def label(self, index: int) -> int | None:
        return int(self.source(SMALL).read([index])["label"][0]) if self.class_names else None

    def short_name(self, index: int) -> str:
        """A picture's name in a table."""
        source = self.source(SMALL)
        if isinstance(source, AnyFolder):
            return source.file_name(index)
        if self.key == ("photos",):
            return f"{PHOTOS[index].name}: {PHOTOS[index].caption}"
        return f"{self.name} {index}"

    @property
    def passed_over(self) -> int:
        """How many files have been found unreadable so far; another stands in for each."""
        with self._making:
            sources = list(self._sources.values())
        return len(set().union(*(source.skipped for source in sources if isinstance(source, Skipping))))

    def some(self, size: int, count: int) -> Source:
        """At most `count` of them as a source of its own: the first of the world, drawn of any other."""
        return _Some(self.source(size), self.numbers(count))

    def numbers(self, count: int) -> Sequence[int]:
        """Those of `some`, as they are numbered here."""
        if self.embedded or len(self) <= count:
            return range(min(len(self), count))
        return choose_pictures(len(self), count)[0]


class _Some:
    """Some pictures of a source, by their numbers there; satisfies `Source`."""

    def __init__(self, source: Source, numbers: Sequence[int]):
        self.name, self.classes, self.image_size = source.name, source.classes, source.image_size
        self._source, self._numbers = source, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, indices: Sequence[int], rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        return self._source.read([self._numbers[index] for index in indices], rngs)


class Upload:
    """A visitor's own picture, alone; satisfies `Pictures`.

    size: pixels a side at which it is kept. Raises UploadError, whose message may be shown."""

    class_names: list[str] = []

    def __init__(self, path: str | Path, size: int):
        self.name = Path(path).name
        self._pixels = read_upload(path, size)
        self.key = ("upload", self.name, hash(self._pixels.numpy().tobytes()), size)

    def __len__(self) -> int:
        return 1

    def tensor(self, index: int, size: int) -> Tensor:
        return to_size(to_float(self._pixels[None]), size).clamp(-1, 1)

    def caption(self, index: int) -> str:
        return f"Your picture {self.name}, its middle square."

    def label(self, index: int) -> None:
        return None


class AnyFolder(PictureFiles):
    """Every picture file in a folder, at any depth, class folders or not; satisfies `Source` and `Skipping`.

    Hidden files and folders are passed over. Raises ValueError for a folder that is missing or holds no
    picture that can be read."""

    name = "folder"

    def __init__(self, folder: str | Path, image_size: int = SMALL):
        self.folder, self.image_size, self.with_captions = Path(folder), image_size, False
        self.classes, self.skipped = [], set()
        if not self.folder.is_dir():
            raise InputError(f"{folder} is not a folder; name one that holds picture files")
        found = ((here, name) for here, names in walk_folders(self.folder) for name in names)
        self._paths = sorted(here / name for here, name in found if is_picture(name))
        if not self._paths:
            raise InputError(f"{folder} holds no picture files ({', '.join(SUFFIXES)})")
        self._decode(0)  # a folder without one readable picture is known now

    def at_size(self, size: int) -> "AnyFolder":
        """The same files at another size, without listing them again."""
        other = object.__new__(AnyFolder)
        other.__dict__.update(self.__dict__, image_size=size)
        return other

    def file_name(self, index: int) -> str:
        """Of the file that is shown as picture `index`: its path inside the folder."""
        after = ((index + step) % len(self) for step in range(len(self)))
        return self.path_name(next(each for each in after if self._name(each) not in self.skipped))

    def path_name(self, index: int) -> str:
        """The path of file `index` inside the folder; bytes that are not UTF-8 are marked."""
        path = self._paths[index].relative_to(self.folder).as_posix()
        return os.fsencode(path).decode(errors="replace")

    def is_readable(self, index: int) -> bool:
        """Whether file `index` decodes; else it is in `skipped` from now on."""
        try:
            open_rgb(self._paths[index], self.image_size)
        except (UnreadableImage, OSError):
            self.skipped.add(self._name(index))
        return self._name(index) not in self.skipped

    def stats_of(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Size and time of change, in nanoseconds, of files."""
        stats = [self._paths[index].stat() for index in indices]
        return [(stat.st_size, stat.st_mtime_ns) for stat in stats]

    def __len__(self) -> int:
        return len(self._paths)

    def identity(self) -> str:
        raise NotImplementedError("nothing is trained on a folder without classes")

    def _name(self, index: int) -> str:
        return str(self._paths[index])

    def _read_bytes(self, index: int) -> bytes:
        return self._paths[index].read_bytes()

    def _read_caption_bytes(self, index: int) -> bytes:
        raise NotImplementedError("these pictures have no captions")

    def _label(self, index: int) -> int:
        return 0


@dataclass(frozen=True)
class Picture:
    """Picture number `index` of `pictures`."""

    pictures: Pictures
    index: int = 0

    @property
    def key(self) -> tuple:
        return *self.pictures.key, self.index

    def tensor(self, size: int) -> Tensor:
        """As `Pictures.tensor`."""
        return self.pictures.tensor(self.index, size)

    @property
    def caption(self) -> str:
        return self.pictures.caption(self.index)

    def class_number(self, class_names: list[str]) -> int | None:
        """Which of a model's classes it is of; None where it has none or they are others."""
        same = self.pictures.class_names and self.pictures.class_names == class_names
        return self.pictures.label(self.index) if same else None


def pictures_of_source(name: str, folder: str | Path | None = None, **options: Any) -> SourcePictures:
    """The held-out pictures of the data source `name`. folder, options and errors: as for `data.load`."""
    key = (name, *([str(folder)] if folder else []), *(f"{k}={v}" for k, v in sorted(options.items())))
    shown = Path(folder).name if folder else name
    embedded = data.find_source(name).embedded
    return SourcePictures(shown, key, lambda size: data.load(name, "val", size, folder, **options), embedded)


def pictures_of_folder(folder: str | Path) -> SourcePictures:
    """Every picture file in a folder. Raises as `AnyFolder`."""
    files = AnyFolder(folder)
    return SourcePictures(files.folder.name, ("files", str(files.folder.absolute())), files.at_size)


def pictures_of(run: Run) -> SourcePictures:
    """What a Run is looked at with first: the held-out pictures of what it was trained on, where they are at
    hand, else photographs."""
    source, config = run.config["source"], run.config
    if config["stage"] == "imported" or source not in data.SOURCES:
        return pictures_of_source("photos")
    if not data.find_source(source).on_disk:
        return pictures_of_source(source)
    folder = config.get("pictures", {}).get("folder")
    if folder is None:
        return pictures_of_source("photos")
    captions = bool(config["recipe"].get("text_encoder"))
    try:
        return pictures_of_source(source, folder, **({"captions": True} if captions else {}))
    except (ValueError, OSError):  # moved away, or no longer readable
        return pictures_of_source("photos")
