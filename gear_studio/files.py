"""Small files: written whole or not at all, read with errors that name them."""

import errno
import hashlib
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from gear_studio.errors import InputError, MissingError

_FULL = re.compile(r"No space left on device|PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+")
LARGEST = 2**28  # bytes of a text that is read whole
PAUSES = (0.1, 0.5, 2.0)  # seconds before a reading that failed is tried again
# Errors of a network disk, or of the way to it, that may be gone a moment later; not every system has all.
_NAMES = "EIO ESTALE ETIMEDOUT EAGAIN EREMOTEIO ECONNRESET ENOTCONN"
_NAMES += " EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH"
_PASSING = {getattr(errno, name) for name in _NAMES.split() if hasattr(errno, name)}

T = TypeVar("T")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, which replaces `path` when the block ends without an error. It is
    on the disk before it has its name, and so is the name when this returns: also a machine that loses power
    leaves a whole file.

    Raises OSError naming `path` where it cannot be written."""
    with naming(path):
        if path.is_dir():  # what the system says of it depends on which
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o644)
            _sync(name)
            os.replace(name, path)
            with suppress(OSError):  # not every system can do so for a folder
                _sync(path.parent)
        finally:
            Path(name).unlink(missing_ok=True)


def _sync(path: str | Path) -> None:
    """Wait until what was written to a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Around what writes a file: an error of the system names it, also one that torch or safetensors put into
    words of their own."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # one of ours
            raise
        own = error.filename is None or Path(os.fsdecode(error.filename)).name.startswith(f".{path.name}.")
        place = path if own else error.filename
        raise OSError(error.errno, error.strerror or os.strerror(error.errno), str(place)) from error
    except Exception as error:
        if not _FULL.search(str(error)):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def read_patiently(read: Callable[[], T]) -> T:
    """What `read` returns; tried again a few times where the disk fails in a way that may pass."""
    for pause in PAUSES:
        try:
            return read()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        time.sleep(pause)
    return read()


def walk_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder at or below root, with the names of its files, in the same order everywhere.

    Links are followed, but not back into a folder that one is in. Hidden folders are passed over, and so are
    pipes and devices, which would keep who reads them waiting."""
    waiting: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(root, ())]
    while waiting:
        here, above = waiting.pop()
        stat = here.stat()
        if (stat.st_dev, stat.st_ino) in above:
            continue
        with os.scandir(here) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        # A link to nowhere is named when it is read.
        yield here, [each.name for each in inside if each.is_file() or not os.path.exists(each.path)]
        above = *above, (stat.st_dev, stat.st_ino)
        folders = [each for each in inside if each.is_dir() and not each.name.startswith(".")]
        waiting += [(Path(each.path), above) for each in reversed(folders)]


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, replacing the file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(to_json(value, indent=2) + "\n")


def to_json(value: object, indent: int | None = None) -> str:
    """A value as JSON, which has no numbers that are infinite or NaN: null stands for them."""
    return json.dumps(_without_nonfinite(value), indent=indent, allow_nan=False)


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nonfinite(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nonfinite(held) for held in value]
    return value


def read_json(path: Path, what: str) -> dict:
    """Read a JSON object. what: what its folder is, for an error, such as "a run".

    Raises FileNotFoundError or ValueError, naming the file, where it is missing or damaged."""
    if not path.is_file():
        raise MissingError(f"{path.parent} is not {what}: it has no {path.name}")
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(
            f"{path} is not valid JSON ({one_line(error)}); the file is damaged, restore or delete it"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object; the file is damaged, restore or delete it")
    return value


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path) -> str:
    """The text of a small file. Raises ValueError naming it where it is not UTF-8, cannot be read or is
    larger than any that is written here."""
    try:
        if path.stat().st_size <= LARGEST:
            return path.read_text(encoding="utf-8")
        problem = f"has {path.stat().st_size:,} bytes, more than is ever written there"
    except (UnicodeDecodeError, OSError) as error:
        problem = f"is not UTF-8 or cannot be read ({one_line(error)})"
    raise InputError(f"{path} {problem}; the file is damaged, restore or delete it")


def one_line(error: object) -> str:
    """An error's text as one line of at most 300 characters, or the name of its type where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "weights_only" in text:  # torch advises to read the file without this protection
        named = re.search(r"GLOBAL ([\w.]+)", text)
        text = f"it asks for {named[1]}" if named else "it is no file of plain weights"
    return text if len(text) <= 300 else text[:300] + "..."
