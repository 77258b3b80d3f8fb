"""Small files: written whole or not at all, read with errors that name them."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, which replaces `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


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
        raise FileNotFoundError(f"{path.parent} is not {what}: it has no {path.name}")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); the file is damaged, restore or delete it"
        ) from error


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def one_line(error: Exception) -> str:
    """An error's text as one line of at most 300 characters, or the name of its type where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."
