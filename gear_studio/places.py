"""Where shipped things lie, and how a name becomes a folder."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from gear_studio.errors import InputError, MissingError

_HERE = Path(__file__).resolve().parent
ZOO = _HERE / "zoo"
_SHIPPED = "shipped:"  # in a run's config.json, before the name of a run that ships and that it builds on
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
    return Path("runs") / "shipped" / folder.name if is_shipped(folder) else folder


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


def is_shipped(folder: Path) -> bool:
    return ZOO in folder.resolve().parents


def shipped_names(holding: str = "config.json") -> list[str]:
    """The names of what ships and holds a file or a part."""
    return sorted(path.parent.name for path in ZOO.glob(f"*/{holding}"))


def folder_named(name_or_folder: str | Path, is_there: Callable[[Path], bool] = Path.is_dir) -> Path:
    """The folder of a shipped Run by its name, where no folder has this path; else the path, there or not.
    is_there: what tells a folder."""
    folder = Path(name_or_folder)
    return ZOO / folder if not is_there(folder) and is_there(ZOO / folder) else folder


def find_folder(name_or_folder: str | Path, is_there: Callable[[Path], bool] = Path.is_dir) -> Path:
    """Find a folder by its path, or the folder of a shipped Run by its name. is_there: what tells a folder.

    Raises FileNotFoundError, listing the shipped names, where there is neither."""
    folder = folder_named(name_or_folder, is_there)
    if is_there(folder):
        return folder
    shipped = ", ".join(shipped_names()) or "none"
    raise MissingError(
        f"no folder {str(name_or_folder)!r}, and no shipped run of that name (shipped: {shipped})"
    )


# A run and the run it builds on lie side by side, or the latter ships.


def check_parent(parent: Path, folder: Path) -> None:
    """Raise ValueError where the run in a folder cannot build on another."""
    if not is_shipped(parent) and parent.resolve().parent != folder.resolve().parent:
        raise InputError(f"parent {parent} does not lie beside {folder}; put both runs in one folder")


def name_parent(parent: Path) -> str:
    """What the config.json of a run calls the run it builds on: NAME beside it, or shipped:NAME."""
    if is_shipped(parent):
        return _SHIPPED + parent.resolve().relative_to(ZOO).as_posix()
    return parent.name


def find_parent(name: str, folder: Path) -> Path:
    """Where the run lies, there or not, that the config.json in a folder calls so."""
    shipped = name.removeprefix(_SHIPPED)
    return folder.parent / name if shipped == name else ZOO / shipped
