"""What others publish: a file of weights, a file or a model of the Hugging Face Hub; from the user's disk,
or downloaded once.

Notable: files are read with `weights_only=True`, which refuses code; and where nothing can be downloaded, the
message says what to fetch from where, and where to put it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from gear_studio.errors import InputError, MissingError, NotInstalledError
from gear_studio.files import one_line

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")  # of files of weights


@contextmanager
def explain_download(
    problem: str, way_out: str, errors: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    """Around what may download: raises FileNotFoundError with the problem, its cause and the way out.

    errors: what counts as "could not be had"; by default everything, as the libraries that the Hub's client
    is built on, and the disk, have many ways to fail."""
    try:
        yield
    except errors as error:
        raise MissingError(f"{problem} ({one_line(error)}). {way_out}") from error


@contextmanager
def loading_transformers(name: str, what: str, option: str) -> Iterator[None]:
    """Around importing transformers and loading `name` with it, a model of the Hugging Face Hub or a folder.

    what, option: for the messages, such as "CLIP" and "--clip FOLDER". Raises ImportError without
    transformers, FileNotFoundError where the model cannot be had."""
    problem = f"{what} {name!r} is neither a folder nor to be had from the Hub"
    way_out = (
        "Without a connection, download it elsewhere "
        f"(`hf download {name} --local-dir FOLDER`) and name that folder: {option}"
    )
    try:
        with explain_download(problem, way_out, OSError):
            yield
    except ImportError as error:
        if error.name != "transformers":
            raise
        raise NotInstalledError(
            f"{what} {name!r} needs transformers; install it with "
            "`uv pip install -c constraints.txt -e '.[text]'` (or pip)"
        ) from error


def fetch(source: str | Path) -> Path:
    """A file as given, or one from the Hub: owner/repository where that holds one file of weights, else
    owner/repository/file. Raises FileNotFoundError when it cannot be had, saying why."""
    path = Path(source)
    if path.is_file():
        return path
    repository = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/(.+))?", str(source))
    if not repository or (not repository[2] and path.suffix in SUFFIXES):
        raise MissingError(f"there is no file {source}; give a file, or owner/repository[/file] of the Hub")
    from huggingface_hub import HfApi, hf_hub_download  # here: only this needs it

    name, file = repository.groups()
    problem = f"there is no file {source}, and it could not be had from the Hub either"
    with explain_download(problem, "Without a connection, download it elsewhere and give the file's path"):
        files = [file] if file else [f for f in HfApi().list_repo_files(name) if f.endswith(SUFFIXES)]
        if len(files) == 1:
            return Path(hf_hub_download(name, files[0]))
    raise MissingError(
        f"{name} on the Hub holds {len(files)} files of weights ({', '.join(files) or 'none'}); "
        f"name one as {name}/FILE"
    )


def load_state_dict(url: str, file: str | Path | None, what: str, option: str) -> dict[str, Tensor]:
    """The state dict in `file`, or the one published at `url`, which is kept in torch.hub's folder.

    what, option: for the messages, such as "LPIPS" and "--lpips-weights FILE". Raises FileNotFoundError when
    there is no such file or it cannot be downloaded, ValueError when it holds something else."""
    kept = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    path = kept if file is None else Path(file)
    if file is not None and not path.is_file():
        raise MissingError(f"no file {path}; {what} takes the weights published at {url}: {option}")
    try:
        if file is None:
            state = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what unpickling raises on bad bytes is an open list
        if path.is_file():
            raise InputError(
                f"{path} is not a file of weights ({one_line(error)}); fetch {url} again"
            ) from error
        raise MissingError(
            f"{what} needs the weights {kept.name}, which could not be downloaded ({one_line(error)}). "
            f"Fetch {url} where there is internet, then put the file at {kept} or name it: {option}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict; {what} takes the weights published at {url}")
    return state
