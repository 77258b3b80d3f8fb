"""What pictures are measured against: a source's held-out pictures, a folder of pictures, or an .npz of the
kind that the ADM evaluator publishes. And a cache on disk, so that the reference is looked at once.

Notable: a cache entry is named by everything that it follows from: which pictures (for files: path, size and
time of change), their number, the network's weights, and what is kept of them. Nothing is ever out of date;
what changes gets another name.
"""

import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gear_studio.analysis.statistics import Statistics
from gear_studio.data.folder import fit, open_rgb
from gear_studio.data.source import Source
from gear_studio.files import atomic
from gear_studio.models.inception import DIMS

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
KEYS = {  # ADM's names
    "fd": ("mu", "sigma"),
    "fd-dinov2": ("mu", "sigma"),
    "fid": ("mu", "sigma"),
    "sfid": ("mu_s", "sigma_s"),
}
FORMAT = "1"  # to be raised when the same pictures come to give other numbers


@dataclass(frozen=True)
class Reference:
    """Real pictures, or what is known of them.

    read: pictures by their numbers in 0..count-1, uint8 (B, 3, H, W); None where there are none, only
    `statistics`, by metric (fid, sfid)."""

    name: str
    count: int
    fingerprint: str
    read: Callable[[range], Tensor] | None
    statistics: dict[str, Statistics] = field(default_factory=dict)


def reference_of(source: Source, numbers: Sequence[int]) -> Reference:
    """Pictures `numbers` of a source, evaluation view.

    A source of files is known by them, another by its name and a few of its pictures."""
    digest = hashlib.sha256(repr((source.name, source.image_size, list(numbers))).encode())
    if hasattr(source, "fingerprint"):
        digest.update(source.fingerprint().encode())
    else:
        some = [numbers[i * len(numbers) // 8] for i in range(8)]
        digest.update(source.read(some)["image"].numpy().tobytes())

    def read(part: range) -> Tensor:
        return source.read([numbers[i] for i in part])["image"]

    return Reference(f"{source.name}, held out", len(numbers), digest.hexdigest(), read)


def open_reference(path: str | Path, image_size: int) -> Reference:
    """A folder with pictures at any depth (their middle squares are used, resized to image_size), or an .npz
    with `arr_0` (uint8, (N, H, W, 3)) or the statistics `mu` and `sigma`, and perhaps `mu_s` and `sigma_s`,
    of FID's Inception network.

    Raises FileNotFoundError or ValueError naming what is wrong with the path."""
    path = Path(path)
    if path.is_dir():
        return _of_pictures(path, image_size)
    if not path.is_file():
        raise FileNotFoundError(f"reference {path} is neither a folder of pictures nor an .npz file")
    return _of_npz(path)


def _of_pictures(folder: Path, image_size: int) -> Reference:
    files = [file for file in _walk(folder) if file.suffix.lower() in SUFFIXES]
    if not files:
        raise ValueError(f"reference {folder} has no pictures ({', '.join(SUFFIXES)})")

    def read(part: range) -> Tensor:
        return torch.stack([fit(open_rgb(files[i], image_size), image_size) for i in part])

    digest = hashlib.sha256(_files_digest(files) + str(image_size).encode()).hexdigest()
    return Reference(str(folder), len(files), digest, read)


def _of_npz(path: Path) -> Reference:
    expected = (
        "expected `arr_0` (pictures, uint8, N x H x W x 3), or `mu` and `sigma` (2048 Inception features)"
    )
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = file.files
            arrays = {key: file[key] for key in ("arr_0", *KEYS["fid"], *KEYS["sfid"]) if key in keys}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"reference {path} is not a complete .npz file ({error}); {expected}") from error
    statistics = {}
    for metric, (mean, covariance) in KEYS.items():
        if metric not in DIMS or not {mean, covariance} <= arrays.keys():
            continue
        found = Statistics(arrays[mean].astype(np.float64), arrays[covariance].astype(np.float64))
        dim = DIMS[metric]
        if found.mean.shape != (dim,) or found.covariance.shape != (dim, dim):
            raise ValueError(
                f"reference {path}: {mean} and {covariance} have shapes {found.mean.shape} and "
                f"{found.covariance.shape}, expected ({dim},) and ({dim}, {dim}) of Inception features"
            )
        statistics[metric] = found
    pictures = arrays.get("arr_0")
    if pictures is not None and (pictures.dtype != np.uint8 or pictures.shape[3:] != (3,)):
        raise ValueError(f"reference {path}: arr_0 is {pictures.dtype} {pictures.shape}; {expected}")
    if pictures is None and not statistics:
        raise ValueError(f"reference {path} holds {', '.join(keys) or 'nothing'}; {expected}")

    def read(part: range) -> Tensor:
        return torch.from_numpy(pictures[part.start : part.stop]).permute(0, 3, 1, 2).contiguous()

    count = 0 if pictures is None else len(pictures)
    digest = _files_digest([path]).hex()
    return Reference(str(path), count, digest, None if pictures is None else read, statistics)


class StatisticsCache:
    """Statistics and feature points on disk, one .npz each in ADM's layout, written atomically.

    folder: default gear-studio/ in the user's cache folder."""

    def __init__(self, folder: str | Path | None = None):
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.folder = Path(folder or Path(home) / "gear-studio" / "references")

    def path(self, reference: Reference, network: str, metric: str) -> Path:
        """network: its fingerprint."""
        name = "\n".join((FORMAT, reference.fingerprint, network, metric))
        return self.folder / f"{metric}-{hashlib.sha256(name.encode()).hexdigest()[:32]}.npz"

    def load(self, path: Path, metric: str) -> Statistics | Tensor | None:
        """What `store` wrote, or None where there is nothing of use."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if metric == "pr":
                    return torch.from_numpy(arrays["points"])
                return Statistics(*(arrays[key] for key in KEYS[metric]))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def store(self, path: Path, metric: str, value: Statistics | Tensor) -> None:
        if isinstance(value, Tensor):
            arrays = {"points": value.cpu().numpy()}
        else:
            arrays = dict(zip(KEYS[metric], (value.mean, value.covariance), strict=True))
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)


def _walk(folder: Path) -> list[Path]:
    """Every file below a folder, in an order that is the same everywhere."""
    found = [Path(here, name) for here, _, names in os.walk(folder, followlinks=True) for name in names]
    return sorted(file for file in found if not file.name.startswith("."))


def _files_digest(files: Sequence[Path]) -> bytes:
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.digest()
