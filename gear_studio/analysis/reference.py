"""What pictures are compared with: a source's held-out pictures, a folder of pictures, or an .npz of the kind
that the ADM evaluator publishes. And a cache on disk, so that a reference is looked at once.

Notable: the name of a cache entry is a digest of everything it depends on: which pictures (for files: path,
size and time of change), their number, the network's weights, and what is kept of them. So no entry is ever
out of date: when one of these changes, another name is looked up.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gear_studio.analysis.statistics import Statistics
from gear_studio.data.images import SUFFIXES, crop_and_resize, is_picture, open_rgb
from gear_studio.data.parquet import ParquetPictures, holds_parquet
from gear_studio.data.picture_files import PictureFiles
from gear_studio.data.source import Fingerprinted, Source
from gear_studio.errors import InputError, MissingError
from gear_studio.files import atomic, one_line, walk_folders
from gear_studio.models import dinov2
from gear_studio.models.inception import DIMS
from gear_studio.places import cache_folder

KEYS = {  # in an entry of the cache
    "fd": ("mu", "sigma"),
    "fd-dinov2": ("mu", "sigma"),
    "fid": ("mu", "sigma"),
    "sfid": ("mu_s", "sigma_s"),
}
PUBLISHED = {  # ADM's names, and GPIC's
    "fid": ("mu", "sigma"),
    "sfid": ("mu_s", "sigma_s"),
    "fd-dinov2": ("dino_mu", "dino_sigma"),
}
EMBEDDINGS = "dino_embeddings"  # GPIC's: DINOv2's features of its pictures, (N, 1024)
FORMAT = "1"  # raise it when a change of the code gives other numbers for the same pictures


@dataclass(frozen=True)
class Reference:
    """Real pictures, or statistics of some that are not there.

    read: returns the pictures with some of the numbers 0..count-1, uint8 (B, 3, H, W); None where there are
    no pictures but only `statistics`, by metric: of features, or the features (N, d) themselves.
    class_names: of each picture, where it lies in a folder that may be named for one."""

    name: str
    count: int
    fingerprint: str
    read: Callable[[range], Tensor] | None
    statistics: dict[str, Statistics | Tensor] = field(default_factory=dict)
    class_names: Sequence[str] = ()


def reference_of(source: Source, numbers: Sequence[int]) -> Reference:
    """The pictures of a source with these numbers, evaluation view.

    The fingerprint of a source that has one is taken over; of another it is made of its name and a few of
    its pictures."""
    digest = hashlib.sha256(repr((source.name, source.image_size, list(numbers))).encode())
    if isinstance(source, PictureFiles) and source.interpolation != "bicubic":
        digest.update(source.interpolation.encode())
    if isinstance(source, Fingerprinted):
        digest.update(source.fingerprint().encode())
    else:
        eight = [numbers[i * len(numbers) // 8] for i in range(8)]
        digest.update(source.read(eight)["image"].numpy().tobytes())

    def read(part: range) -> Tensor:
        return source.read([numbers[i] for i in part])["image"]

    return Reference(f"{source.name}, held out", len(numbers), digest.hexdigest(), read)


def open_reference(path: str | Path, image_size: int) -> Reference:
    """A folder with pictures at any depth, or with .parquet files (see `ParquetPictures`); or an .npz with
    `arr_0` (uint8, (N, H, W, 3)) or with statistics: `mu` and `sigma`, and perhaps `mu_s` and `sigma_s`, of
    FID's Inception network, `dino_mu` and `dino_sigma`, and perhaps `dino_embeddings`, of DINOv2 ViT-L/14.

    Pictures of another size than image_size are brought to it: their middle squares, resized (bicubic). Of an
    .npz the name says so. Hidden files and folders are passed over. Raises FileNotFoundError or ValueError
    naming what is wrong with the path."""
    path = Path(path)
    if holds_parquet(path):
        return _open_parquet(path, image_size)
    if path.is_dir():
        return _open_folder(path, image_size)
    if not path.is_file():
        raise MissingError(f"reference {path} is neither a folder of pictures nor an .npz file")
    return _open_npz(path, image_size)


def _open_folder(folder: Path, image_size: int) -> Reference:
    files = [file for file in _walk(folder) if is_picture(file.name)]
    if not files:
        raise InputError(f"reference {folder} has no pictures ({', '.join(SUFFIXES)})")

    def read(part: range) -> Tensor:
        return torch.stack([crop_and_resize(open_rgb(files[i], image_size), image_size) for i in part])

    digest = hashlib.sha256(_digest_files(files) + str(image_size).encode()).hexdigest()
    names = [file.relative_to(folder).parts[0] for file in files]
    return Reference(str(folder), len(files), digest, read, class_names=names)


def _open_parquet(path: Path, image_size: int) -> Reference:
    pictures = ParquetPictures(path)
    if not len(pictures):
        raise InputError(f"reference {path} has no pictures; its .parquet files have no rows")

    def read(part: range) -> Tensor:
        opened = (open_rgb(io.BytesIO(pictures.picture(i)), image_size, f"{path}, row {i}") for i in part)
        return torch.stack([crop_and_resize(picture, image_size) for picture in opened])

    digest = hashlib.sha256(_digest_files(pictures.files) + str(image_size).encode()).hexdigest()
    return Reference(str(path), len(pictures), digest, read)


def _open_npz(path: Path, image_size: int) -> Reference:
    expected = (
        "expected `arr_0` (pictures, uint8, N x H x W x 3), `mu` and `sigma` (2048 Inception features), or "
        "`dino_mu` and `dino_sigma` (1024 features of DINOv2)"
    )
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = file.files
            known = ("arr_0", EMBEDDINGS, *(key for pair in PUBLISHED.values() for key in pair))
            arrays = {key: file[key] for key in known if key in keys}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        problem = one_line(error)
        raise InputError(f"reference {path} is not a complete .npz file ({problem}); {expected}") from error
    statistics: dict[str, Statistics | Tensor] = {}
    for metric, (mean, covariance) in PUBLISHED.items():
        if not {mean, covariance} <= arrays.keys():
            continue
        held = Statistics(arrays[mean].astype(np.float64), arrays[covariance].astype(np.float64))
        dim = DIMS.get(metric, dinov2.DIM)
        if held.mean.shape != (dim,) or held.covariance.shape != (dim, dim):
            raise InputError(
                f"reference {path}: {mean} and {covariance} have shapes {held.mean.shape} and "
                f"{held.covariance.shape}, expected ({dim},) and ({dim}, {dim}) of "
                f"{'Inception' if metric in DIMS else 'DINOv2'} features"
            )
        if not _finite(held):
            raise InputError(f"reference {path}: {mean} or {covariance} holds NaN or infinite numbers")
        statistics[metric] = held
    if EMBEDDINGS in arrays:
        points = arrays[EMBEDDINGS].astype(np.float32)
        if points.ndim != 2 or points.shape[1] != dinov2.DIM or not np.isfinite(points).all():
            raise InputError(
                f"reference {path}: {EMBEDDINGS} is {points.shape}, expected finite numbers (N, {dinov2.DIM})"
            )
        statistics |= {metric: torch.from_numpy(points) for metric in ("prdc-dinov2", "mmd-dinov2")}
    pictures = arrays.get("arr_0")
    name, digest = str(path), hashlib.sha256(_digest_files([path]) + str(image_size).encode()).hexdigest()
    if pictures is None:
        if not statistics:
            raise InputError(f"reference {path} holds {', '.join(keys) or 'nothing'}; {expected}")
        return Reference(name, 0, digest, None, statistics)
    if pictures.dtype != np.uint8 or pictures.shape[3:] != (3,):
        raise InputError(f"reference {path}: arr_0 is {pictures.dtype} {pictures.shape}; {expected}")

    height, width = pictures.shape[1:3]
    fits = height == width == image_size
    if not fits:
        name += f", resized from {width} x {height} to {image_size} x {image_size} px"

    def read(part: range) -> Tensor:
        some = pictures[part.start : part.stop]
        if fits:
            return torch.from_numpy(some).permute(0, 3, 1, 2).contiguous()
        return torch.stack([crop_and_resize(Image.fromarray(each), image_size) for each in some])

    return Reference(name, len(pictures), digest, read, statistics)


class StatisticsCache:
    """Statistics and feature points on disk, each in an .npz of ADM's layout that is written atomically.

    folder: by default gear-studio/references in the user's cache folder."""

    def __init__(self, folder: str | Path | None = None):
        self.folder = Path(folder or cache_folder("references"))

    def path(self, reference: Reference, network: str, metric: str) -> Path:
        """Where the entry of a metric lies. network: the fingerprint of the network it is taken in."""
        name = "\n".join((FORMAT, reference.fingerprint, network, metric))
        return self.folder / f"{metric}-{hashlib.sha256(name.encode()).hexdigest()[:32]}.npz"

    def load(self, path: Path, metric: str) -> Statistics | Tensor | None:
        """What `store` wrote, or None where the file is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if metric not in KEYS:
                    return torch.from_numpy(arrays["points"])
                return _finite(Statistics(*(arrays[key] for key in KEYS[metric])))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def store(self, path: Path, metric: str, value: Statistics | Tensor) -> None:
        if isinstance(value, Tensor):
            arrays = {"points": value.cpu().numpy()}
        else:
            arrays = dict(zip(KEYS[metric], (value.mean, value.covariance), strict=True))
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **cast(dict[str, Any], arrays))


def _finite(statistics: Statistics) -> Statistics | None:
    """Statistics, or None where a number in them is NaN or infinite."""
    finite = np.isfinite(statistics.mean).all() and np.isfinite(statistics.covariance).all()
    return statistics if finite else None


def _walk(folder: Path) -> list[Path]:
    """Every file below a folder, in an order that is the same everywhere. Hidden folders are passed over."""
    return sorted(here / name for here, names in walk_folders(folder) for name in names)


def _digest_files(files: Sequence[Path]) -> bytes:
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.digest()
