"""A picture from a stranger's computer: checked before it is decoded, refused in a sentence.

Everything in an `UploadError` may be shown to the person who uploaded: what was wrong, and the limit.
"""

import warnings
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError

from gear_studio.data.images import FORMATS, UnreadableImage, crop_and_resize, open_rgb
from gear_studio.errors import InputError

MAX_BYTES = 20 * 1024**2
MAX_SIDE = 4096


class UploadError(InputError):
    """The upload cannot be used; the message is a sentence for its sender."""


def read_upload(path: str | Path, image_size: int) -> torch.Tensor:
    """Read the middle square of an uploaded picture: uint8 RGB (3,image_size,image_size).

    The picture is turned upright by its EXIF orientation, transparency is laid on white, greyscale and 16-bit
    are made RGB, and of an animation the first frame is taken. Raises UploadError for a file that is empty,
    above 20 MB, no picture or a damaged one, or above 4096 px a side.
    """
    path = Path(path)
    size = path.stat().st_size
    if size == 0:
        raise UploadError(f"{path.name} is empty (0 bytes). Please choose a picture file.")
    if size > MAX_BYTES:
        raise UploadError(
            f"{path.name} is {size / 1024**2:.1f} MB; the limit is {MAX_BYTES // 1024**2} MB. "
            "Please save it smaller."
        )
    width, height = _read_dimensions(path)
    if max(width, height) > MAX_SIDE:
        raise UploadError(
            f"{path.name} is {width} x {height} px; the limit is {MAX_SIDE} px a side. Please scale it down."
        )
    try:
        return crop_and_resize(open_rgb(path, at_least=image_size), image_size)
    except UnreadableImage as error:
        raise UploadError(
            f"{path.name} is damaged or of a rare kind: it starts like a picture but does not decode. "
            "Please save it as PNG or JPEG."
        ) from error


def _read_dimensions(path: Path) -> tuple[int, int]:
    """Read width and height from the header alone, so that a small file cannot unpack into a huge picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is stricter
            with Image.open(path, formats=tuple(FORMATS)) as picture:
                return picture.size
    except UnidentifiedImageError as error:
        *most, last = FORMATS
        known = f"{', '.join(most)} or {last}"
        raise UploadError(f"{path.name} is not a picture that can be read here ({known}).") from error
    except Image.DecompressionBombError as error:
        raise UploadError(
            f"{path.name} unpacks into far too many pixels; the limit is {MAX_SIDE} px a side."
        ) from error
    except Exception as error:  # what a decoder raises on a bad header is an open list
        raise UploadError(f"{path.name} is damaged: its header cannot be read.") from error
