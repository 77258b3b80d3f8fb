"""Where shipped things lie, and how a name becomes a folder."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from gear_studio.errors import InputError, MissingError

_HERE = Path(__file__).resolve().parent
ZOO = _HERE / "zoo"
STUDIES = ZOO / "studies"  # tables and Runs of the studies that ship
APPS = _HERE / "apps" if (_HERE / "apps").is_dir() else _HERE.parent / "apps"  # installed, in the repository


def cache_folder(name: str) -> Path:
    """Where things of a kind are kept that can be computed again: in the user's cache folder
    ($XDG_CACHE_HOME, by default ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gear-studio" / name


def results_folder(folder: Path) -> Path:
    """Where results about the Run in a folder are written: into it, or into runs/shipped/NAME of one that
    ships and runs/hub/OWNER--NAME of one from the Hub, for nothing writes into what was installed or
    downloaded."""
    if repository := repository_of(folder):
        return Path("runs") / "hub" / repository.replace("/", "--")
    return Path("runs") / "shipped" / folder.name if ZOO in folder.resolve().parents else folder


def repository_of(folder: Path) -> str | None:
    """OWNER/NAME of the Hub's repository that was downloaded into a folder; None of another folder."""
    if folder.parent.name != "snapshots":
        return None
    named = re.fullmatch(r"models--(.+?)--(.+)", folder.parent.parent.name)
    return f"{named[1]}/{named[2]}" if named else None


def check_own_folder(folder: Path) -> None:
    """Raise ValueError for what cannot be a run's own folder: a file, and a place without a name, such as .
    and .. are."""
    if folder.name in ("", ".."):
        raise InputError(
            f"{str(folder)!r} is not a run's own folder; give it a name, such as {folder / 'NAME'}"
        )
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise InputError(f"{part} is a file, and a run is a folder; choose another place")


def find_folder(name_or_folder: str | Path, is_there: Callable[[Path], bool] = Path.is_dir) -> Path:
    """Find a folder by its path, or the folder of a shipped Run by its name. is_there: what tells a folder.

    Raises FileNotFoundError, listing the shipped names, where there is neither."""
    for folder in (Path(name_or_folder), ZOO / name_or_folder):
        if is_there(folder):
            return folder
    shipped = ", ".join(sorted(path.parent.name for path in ZOO.glob("*/config.json"))) or "none"
    raise MissingError(
        f"no folder {str(name_or_folder)!r}, and no shipped run of that name (shipped: {shipped})"
    )
