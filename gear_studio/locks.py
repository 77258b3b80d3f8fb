"""One process at a time in a folder: whoever writes a run holds its folder."""

import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from gear_studio.errors import FailedError
from gear_studio.files import write_json

LOCK, HOLDER = ".lock", ".lock-holder"  # in the folder: what is locked, and who holds it


class FolderInUseError(FailedError):
    """Another process, or another thread, holds the folder; the message says who."""


@contextmanager
def hold(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold a folder for as long as the block runs; a thread that holds it may do so again. wait: until it is
    free.

    A folder that is missing is made, and removed where nothing was put into it. The operating system keeps
    the lock: that of a process that was killed is gone with it. Raises FolderInUseError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / LOCK, is_singleton=True), folder / HOLDER
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        raise FolderInUseError(
            f"{folder} is in use by {_describe(holder)}; wait until that is done, or end it"
        ) from None
    outermost = lock.lock_counter == 1
    try:
        if outermost:
            write_json(holder, _this_process())
        yield
    finally:
        if outermost:
            holder.unlink(missing_ok=True)
            if missing and list(folder.glob("*")) == [folder / LOCK]:
                (folder / LOCK).unlink()
        lock.release()
        with suppress(OSError):  # not empty
            for path in missing:
                path.rmdir()


def _this_process() -> dict[str, str | int]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": "gear-studio " + shlex.join(sys.argv[1:]),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
    }


def _describe(holder: Path) -> str:
    """Who holds a folder, for a message: in its first moment it has not said so yet."""
    try:
        who = json.loads(holder.read_text())
        return f"`{who['command']}` (process {who['pid']} on {who['host']}, since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
