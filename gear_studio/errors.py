"""Errors that the user can act on. The command line says them in one line; every other error is a fault of
the program or of the machine, and keeps its traceback.

They are Python's own kinds too, so that code may catch a ValueError or a FileNotFoundError as usual."""

import errno


class UserError(Exception):
    """Its text says what is wrong, with the value, and the way out."""


class InputError(UserError, ValueError):
    """A value that cannot be, or values and files that do not fit each other."""


class MissingError(UserError, FileNotFoundError):
    """A file, a folder or a download that is not there."""


class NotInstalledError(UserError, ImportError):
    """A package that only some need."""


class UnknownNameError(UserError, KeyError):
    """A name that there is not."""


class FailedError(UserError, RuntimeError):
    """Work that did not succeed."""


_WAYS_OUT = {  # what the system refuses, where the user can do something about it
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or ask for more",
    errno.EFBIG: "choose a disk that takes larger files, or lift the limit",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "choose another place, or change who may use it",
    errno.EPERM: "choose another place, or change who may use it",
    errno.EISDIR: "it is a folder; name a file",
    errno.ENOTDIR: "a part of the path is a file; name another place",
    errno.EEXIST: "a file is where a folder is meant; name another place",
    errno.ENOTEMPTY: "choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
}


def describe(error: BaseException) -> str | None:
    """An error in one line, where the user can act on it; None where it is something else."""
    if isinstance(error, UserError):
        return str(error.args[0] if isinstance(error, KeyError) else error)
    if isinstance(error, OSError) and error.errno in _WAYS_OUT:
        file = error.filename2 or error.filename or "a file"
        then = f"{_WAYS_OUT[error.errno]}, then give the same command again"
        return f"{file}: {error.strerror}. What was written before is whole; {then}"
    return None
