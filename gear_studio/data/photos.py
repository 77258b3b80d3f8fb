"""Photos: ten real colour photographs that other packages bring along, to look at models with.

`PHOTOS` lists where each comes from and under which licence. They are too few to train on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gear_studio.data.images import crop_and_resize, open_rgb
from gear_studio.data.source import Batch, ListedSource, digest_arrays
from gear_studio.errors import InputError, MissingError


@dataclass(frozen=True)
class Photo:
    """A photograph that is installed with a package.

    file: inside the package's folder. caption: what it shows. credit: who made it. licence: as the package
    states it."""

    name: str
    package: str
    file: str
    caption: str
    credit: str
    licence: str

    @property
    def path(self) -> Path:
        """Where it lies. Raises FileNotFoundError, naming the package, where that is not installed or does
        not bring it."""
        spec = find_spec(self.package)  # finds the package's folder without importing it
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (path := Path(folder) / self.file).is_file():
                return path
        raise MissingError(
            f"photo {self.name!r} comes with the package {self.package} ({self.file}), which is not there; "
            "install what pyproject.toml lists"
        )


_SKIMAGE, _SKLEARN, _MATPLOTLIB = "skimage/data", "sklearn/datasets/images", "matplotlib/mpl-data/sample_data"
_FREE = "public domain"


def _photo(folder: str, file: str, caption: str, credit: str, licence: str) -> Photo:
    package, _, inside = folder.partition("/")
    return Photo(Path(file).stem, package, f"{inside}/{file}", caption, credit, licence)


PHOTOS = (
    _photo(_SKIMAGE, "chelsea.png", "the face of a tabby cat", "Stéfan van der Walt", "CC0"),
    _photo(_SKIMAGE, "coffee.png", "a cup of espresso with a spoon", "Rachel Michetti", "CC0"),
    _photo(_SKLEARN, "china.jpg", "a pagoda above a lake", "danielbuechele", "CC BY 2.0"),
    _photo(_SKLEARN, "flower.jpg", "an orange dahlia", "vultilion", "CC BY 2.0"),
    _photo(_SKIMAGE, "astronaut.png", "an astronaut in an orange suit", "NASA", _FREE),
    _photo(_SKIMAGE, "rocket.jpg", "a rocket on its launch pad at dusk", "SpaceX", _FREE),
    _photo(_MATPLOTLIB, "grace_hopper.jpg", "an officer in front of a flag", "US Navy", _FREE),
    _photo(_SKIMAGE, "hubble_deep_field.jpg", "galaxies in a dark sky", "NASA", _FREE),
    _photo(_SKIMAGE, "retina.jpg", "the retina of an eye", "Mikael Häggström", "CC0"),
    _photo(_SKIMAGE, "ihc.png", "stained tissue under a microscope", "CMMI", _FREE),
)


class Photos(ListedSource):
    """The photographs of `PHOTOS`; satisfies `Source`, `Captioned` and `Fingerprinted`.

    split: val, which holds them all. image_size: pixels a side of the middle square, resized (bicubic).
    captions: `read` gives them too. Raises ValueError for another split."""

    name = "photos"
    trainable = False
    has_captions = True

    def __init__(self, split: str = "val", image_size: int = 256, captions: bool = False) -> None:
        if split != "val":
            raise InputError(
                f"source 'photos' has no split {split!r}: its {len(PHOTOS)} photographs are to look at and "
                "too few to train on; train on a folder of your own (source 'folder')"
            )
        self.image_size = image_size
        self.with_captions = captions
        self.classes = ["photograph"]

    def __len__(self) -> int:
        return len(PHOTOS)

    def open(self, index: int) -> Image.Image:
        """Photograph number `index` in RGB, whole and at its own size."""
        return open_rgb(PHOTOS[index].path)

    def read(self, indices: Sequence[int], rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        """{"image": uint8 (B,3,H,W), "label": int64 (B,), all 0}, with captions also {"caption": B strings}.

        rngs: the square lies at random and is mirrored half the time."""
        draws = [None] * len(indices) if rngs is None else rngs
        images = [
            crop_and_resize(open_rgb(PHOTOS[index].path, self.image_size), self.image_size, rng)
            for index, rng in zip(indices, draws, strict=True)
        ]
        batch = {"image": torch.stack(images), "label": torch.zeros(len(images), dtype=torch.long)}
        return batch | ({"caption": self.captions(indices)} if self.with_captions else {})

    def captions(self, indices: Sequence[int]) -> list[str]:
        """What the photographs show."""
        return [PHOTOS[index].caption for index in indices]

    def fingerprint(self) -> str:
        """A digest of the photographs' files."""
        return digest_arrays(*(np.frombuffer(photo.path.read_bytes(), np.uint8) for photo in PHOTOS))
