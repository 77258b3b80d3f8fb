"""Repositories of the Hugging Face Hub: ours are downloaded once, and filled from a folder.

Only JSON, pictures, safetensors and the card go there and come from there: nothing that can hold code.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from gear_studio import places
from gear_studio.errors import FailedError, InputError, MissingError
from gear_studio.files import one_line

CARD = "README.md"
FILES = (CARD, "*.json", "*.jsonl", "*.png", "*.safetensors")  # what is uploaded
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# A path of a machine inside a text, up to its last part: not a URL, a fraction or a path that begins here.
_PLACE = re.compile(r"(?<![\w:/\\.~-])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"=,;:/\\]+[/\\])*([^\s'\"=,;:/\\]+)")


def find_folder(
    name_or_folder: str | Path,
    files: Sequence[str],
    is_there: Callable[[Path], bool] = Path.is_dir,
) -> Path:
    """A folder by its path, of a shipped Run by its name, or of a repository of the Hub by OWNER/NAME, which
    is downloaded where it is not yet. files: which of the repository's, as patterns.

    Raises FileNotFoundError where there is none of these, saying why."""
    try:
        return places.find_folder(name_or_folder, is_there)
    except MissingError:
        name = Path(name_or_folder).as_posix()
        if not _NAME.fullmatch(name) or Path(name).parent.is_dir():
            raise
    from huggingface_hub import snapshot_download  # here and below: only this needs it

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # the client is built on libraries with many ways to fail
        elsewhere = f"download it elsewhere (`hf download {name} --local-dir FOLDER`) and name that folder"
        raise MissingError(
            f"there is no folder {name}, and it could not be had from the Hub: {_explain(error, elsewhere)}"
        ) from error
    if not any(folder.rglob("config.json")):
        raise MissingError(
            f"{name} on the Hub holds no model in the format of GEAR Studio; if it is a released checkpoint, "
            f"`gear-studio import {name} NAME` makes a run of it"
        )
    return folder


def check_name(name: str) -> None:
    """Raise ValueError for what cannot be a repository's name."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no repository of the Hub; give OWNER/NAME, such as me/my-tokenizer")


def upload(folder: Path, name: str, private: bool = False) -> str:
    """Put the files of a folder into the repository OWNER/NAME, which is made where it is not there yet.
    private: of one that is made now. Returns its address.

    Raises ValueError for another name, RuntimeError where it cannot be done, saying why."""
    check_name(name)
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        made = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message="Upload with GEAR Studio",
        )
    except Exception as error:
        elsewhere = f"write the folder with --out FOLDER, and `hf upload {name} FOLDER` where there is one"
        raise FailedError(f"{name} could not be pushed to the Hub: {_explain(error, elsewhere)}") from error
    return str(made)


def _explain(error: Exception, elsewhere: str) -> str:
    """Why the Hub could not be used, and the way out. elsewhere: that without a connection."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "it has no such repository that you may see; check the name, or log in with `hf auth login` if "
            "it is private or gated"
        )
    if isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
        return "it does not know you; log in with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return (
            "your token may not do that there; name an owner that you are or belong to, or log in with a "
            "token that may write (`hf auth login`)"
        )
    if isinstance(error, errors.HFValidationError):
        return f"it takes no such name ({one_line(error)}); give OWNER/NAME"
    if isinstance(error, errors.LocalEntryNotFoundError | ConnectionError) or _without_answer(error):
        return f"there is no way to it ({one_line(error)}). Without a connection, {elsewhere}"
    return f"{one_line(error)}. Give the same command again, or look at https://status.huggingface.co"


def _without_answer(error: Exception) -> bool:
    """Whether no server has answered; the client's libraries have their own names for it."""
    return any(kind.__name__ in ("TransportError", "RequestException") for kind in type(error).__mro__)


def without_places(value: Any) -> Any:
    """A value as JSON has it, with the last part in the place of every absolute path in its strings: what is
    published does not say where on a machine things lay."""
    if isinstance(value, Mapping):
        return {key: without_places(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(held) for held in value]
    if not isinstance(value, str):
        return value
    for kind in (PurePath, PureWindowsPath):
        if kind(value).is_absolute() and "\n" not in value:
            return kind(value).name
    return _PLACE.sub(lambda found: found[1], value)
