"""Pictures with captions in .parquet files, as COCO's validation set is published on the Hub."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from gear_studio.errors import InputError, NotInstalledError
from gear_studio.files import one_line


def holds_parquet(path: Path) -> bool:
    """Whether a path is a .parquet file or a folder of such files."""
    return path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))


class ParquetPictures:
    """The rows of a .parquet file or of all of a folder, in the order of their names: `caption`, a text or
    several of which the first is taken, and `image`, a picture file's bytes or {"bytes": ...}. Pictures are
    read a row group at a time.

    Raises ImportError without pyarrow, ValueError for files that cannot be read or lack a column."""

    def __init__(self, path: Path):
        try:
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise NotInstalledError(
                f"{path} holds .parquet files, and reading them needs the package pyarrow; install it with "
                "`uv pip install -c constraints.txt -e '.[parquet]'` (or pip)"
            ) from error
        self.files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        self.groups: list[tuple[Any, int, int]] = []  # opened file, its row group, number of its first row
        self.count = 0
        for file in self.files:
            try:
                opened = ParquetFile(file)
            except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
                raise InputError(f"{file} is not a complete .parquet file ({one_line(error)})") from error
            if missing := {"image", "caption"} - set(opened.schema_arrow.names):
                raise InputError(
                    f"{file} has no column {' and no column '.join(sorted(missing))}; expected image and "
                    f"caption, got {', '.join(opened.schema_arrow.names)}"
                )
            for group in range(opened.num_row_groups):
                self.groups.append((opened, group, self.count))
                self.count += opened.metadata.row_group(group).num_rows
        self._images = lru_cache(maxsize=2)(lambda number: self._column(number, "image"))

    def __len__(self) -> int:
        return self.count

    def captions(self) -> list[str]:
        """All captions, in order. Raises ValueError for a row that has none."""
        held = [each for number in range(len(self.groups)) for each in self._column(number, "caption")]
        texts = [each[0] if isinstance(each, list) and each else each for each in held]
        if wrong := [number for number, text in enumerate(texts) if not isinstance(text, str)]:
            raise InputError(f"{self.files[0].parent}: row {wrong[0]} has no caption")
        return texts

    def picture(self, index: int) -> bytes:
        """A picture's file. Raises ValueError for a row that has none."""
        number = max(i for i, (_, _, first) in enumerate(self.groups) if first <= index)
        held = self._images(number)[index - self.groups[number][2]]
        held = held.get("bytes") if isinstance(held, dict) else held
        if not isinstance(held, bytes):
            raise InputError(f"{self.files[0].parent}: row {index} holds no picture")
        return held

    def _column(self, number: int, name: str) -> list:
        opened, group, _ = self.groups[number]
        return opened.read_row_group(group, columns=[name]).column(name).to_pylist()
