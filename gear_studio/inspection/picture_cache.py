"""What an inspection keeps on the way: a file a picture, written whole or not at all, in a folder whose name
says what everything in it depends on. Where something of that changes, so does the folder."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gear_studio.files import atomic, read_json, write_json

FORMAT = 1  # of what is in a part; a change makes older ones unread

Part = dict[str, np.ndarray]


class Parts:
    """A folder below `out` for what `settings`, a value of JSON, decide."""

    def __init__(self, out: Path, kind: str, settings: dict):
        text = json.dumps([FORMAT, settings], sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = out / "parts" / f"{kind}-{self.key}"

    def get(self, number: int, make: Callable[[], Part]) -> Part:
        """The arrays of picture `number`; made, and kept, where they are not there or damaged."""
        path = self.folder / f"{number:06}.npz"
        try:
            with np.load(path, allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            part = make()
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **part)  # type: ignore[arg-type]  # its stubs take a name for an option
            return part

    def get_value(self, name: str, make: Callable[[], dict]) -> dict:
        """A value of JSON, made and kept where it is not there."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            write_json(path, make())
        return read_json(path, "a part of an inspection")
