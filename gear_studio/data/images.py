"""Single pictures: which files are pictures, how one is decoded and made square, and the range models take.

Everything from outside (data sets, references, the user's own photo) comes in through `open_rgb` and
`crop_and_resize`. Pictures stay uint8 until they reach the device that trains on them: a quarter of the
memory and copying. `to_float` and its inverse `to_uint8` alone know the range that models take.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps

from gear_studio.errors import InputError

# The picture files that are read, by Pillow's name for the format, whatever their suffix. Only plain bitmap
# formats: Pillow would hand some others (EPS) to outside programs.
FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpeg", ".jpg"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".pgm", ".ppm"),
}
SUFFIXES = tuple(sorted(suffix for suffixes in FORMATS.values() for suffix in suffixes))

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SCANS = 64  # of a progressive JPEG; programs write some ten
LARGEST = 2**24  # pixels of a picture that `resize_short_side` makes


def is_picture(name: str) -> bool:
    """Whether a file of this name is taken for a picture: its suffix says so, and it is not hidden."""
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


class UnreadableImage(InputError):
    """The file is not a picture, or a broken one; the message names it and says why."""


def open_rgb(
    file: str | Path | BinaryIO, at_least: int | None = None, name: str | None = None
) -> Image.Image:
    """Decode to 8-bit RGB the way it is meant to be seen: EXIF orientation applied, transparency on white.

    at_least: a JPEG may be decoded at a half, quarter or eighth of its size, no side below twice this.
    name: what to call the file in an error, where it has none of its own.
    Raises UnreadableImage for anything that does not decode.
    """
    try:
        if isinstance(file, str | Path) and Path(file).exists() and not Path(file).is_file():
            raise InputError("it is a folder, a pipe or a device, not a file")  # a pipe would never end
        with Image.open(file, formats=tuple(FORMATS)) as opened:
            kind = opened.format
            if kind in ("JPEG", "MPO") and opened.info.get("progressive"):
                _check_scans(opened)
            _scale_transparent_colour(opened)
            if at_least is not None:
                opened.draft(None, (2 * at_least, 2 * at_least))  # a camera's photo: several times faster
            picture: Image.Image = ImageOps.exif_transpose(opened)
            if picture.mode.startswith(("I", "F")):  # a plain conversion would clip, not scale
                transparent = np.asarray(picture) == picture.info.get("transparency")
                picture = Image.fromarray((255 * _scale_grays(picture, kind)).round().astype(np.uint8))
                picture.putalpha(Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8)))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return picture.convert("RGB")
    except InputError as error:
        raise UnreadableImage(f"{name or file}: {error}") from error
    except Exception as error:  # what a decoder raises on bad bytes is an open list
        raise UnreadableImage(f"{name or file}: {type(error).__name__}: {error}") from error


def _scale_transparent_colour(opened: ImageFile.ImageFile) -> None:
    """Bring the colour that a PNG calls transparent to 8 bits, as Pillow brings the pixels: it compares the
    two. Of 16-bit colours, colours that agree in the upper 8 bits become transparent too."""
    colour = opened.info.get("transparency")
    if opened.format != "PNG" or colour is None:
        return
    stored_as = opened.tile[0].args
    if stored_as in ("L;2", "L;4"):
        opened.info["transparency"] = colour * (85 if stored_as == "L;2" else 17)
    elif stored_as == "RGB;16B":
        opened.info["transparency"] = tuple(value >> 8 for value in colour)


def _check_scans(opened: ImageFile.ImageFile) -> None:
    """Raise ValueError for a progressive JPEG (MPO: several in one file) of more scans than any program
    writes: each costs as much time as the whole picture, so that a small file could take hours."""
    file = opened.fp
    assert file is not None  # it has just been opened
    place = file.tell()
    file.seek(0)
    scans = file.read().count(b"\xff\xda")
    file.seek(place)
    if scans > SCANS:
        raise InputError(f"it has {scans:,} scans, at most {SCANS} are decoded; save it anew")


def _scale_grays(picture: Image.Image, kind: str | None) -> np.ndarray:
    """Grays of more than 8 bits, scaled to 0..1. kind: the file's format.

    The range of 16 bits is 0..65535, that of floats 0..1 or, where one is above 1, 0..255. Raises ValueError
    where the range is not known."""
    grays = np.asarray(picture)
    if picture.mode == "F":
        top = 1 if grays.max() <= 1 else 255
    elif picture.mode == "I" and kind not in ("PNG", "PPM"):  # these two are of 16 bits, read into 32
        raise InputError("its grays are 32-bit integers of unknown range; save it with 8 or 16 bits")
    else:
        top = 65535
    if not (grays.min() >= 0 and grays.max() <= top):  # nor where one is NaN
        raise InputError(
            f"its grays lie in {grays.min()} to {grays.max()}, an unknown range; save it with 8 or 16 bits"
        )
    return grays / top


def crop_and_resize(
    picture: Image.Image,
    image_size: int,
    rng: np.random.Generator | None = None,
    interpolation: str = "bicubic",
) -> torch.Tensor:
    """RGB picture -> uint8 (3,image_size,image_size): its largest square, resized (see `INTERPOLATIONS`).

    rng: the square lies at random and is mirrored half the time; None: it is the middle one.
    """
    side = min(picture.size)
    left, top = ((length - side) * (0.5 if rng is None else rng.random()) for length in picture.size)
    # In one go: to resize all of a very long picture before cropping it would need memory for nothing.
    square = (left, top, left + side, top + side)
    picture = picture.resize((image_size, image_size), INTERPOLATIONS[interpolation], box=square)
    if rng is not None and rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def resize_short_side(picture: Image.Image, short_side: int, multiple: int) -> torch.Tensor:
    """RGB picture -> uint8 (3, H, W) of the same aspect: its short side becomes `short_side` (bicubic), and
    its long side is cropped in the middle to a multiple of `multiple`.

    short_side: itself a multiple. Raises ValueError for a picture so long that it would have more than
    `LARGEST` pixels."""
    scale = short_side / min(picture.size)
    # Half a pixel too many is none: a square picture stays whole.
    width, height = (int(length * scale + 0.5) // multiple * multiple for length in picture.size)
    if width * height > LARGEST:
        raise InputError(
            f"a picture of {picture.width} x {picture.height} px would become one of {width} x {height} px; "
            "crop it first"
        )
    # In one go, as in `crop_and_resize`. The box is what is kept, in pixels of the picture.
    kept = [min(length, wanted / scale) for length, wanted in zip(picture.size, (width, height), strict=True)]
    left, top = ((length - part) / 2 for length, part in zip(picture.size, kept, strict=True))
    box = (left, top, left + kept[0], top + kept[1])
    resized = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 pictures in 0..255 -> float32 in [-1,1], the range models take."""
    return images.float() / 127.5 - 1.0


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Pictures in [-1,1] -> uint8 in 0..255, rounded: what a file holds. The inverse of `to_float`."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
