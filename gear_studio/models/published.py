"""Models that others publish, as one file of weights or as transformers loads them: from the user's disk, or
downloaded once.

Notable: files are read with `weights_only=True`, which refuses code; and where nothing can be downloaded, the
message says what to fetch from where, and where to put it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor


def state_dict(url: str, file: str | Path | None, what: str, option: str) -> dict[str, Tensor]:
    """The state dict in `file`, or the one published at `url`, which is kept in torch.hub's folder.

    what, option: for the messages, such as "LPIPS" and "--lpips-weights FILE". Raises FileNotFoundError when
    there is no such file or it cannot be downloaded, ValueError when it holds something else."""
    kept = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if file is None and not kept.is_file():
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            digest = torch.hub.HASH_REGEX.search(kept.name).group(1)
            torch.hub.download_url_to_file(url, str(kept), digest, progress=False)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"{what} needs the weights {kept.name}, which could not be downloaded ({error}). "
                f"Fetch {url} where there is internet, then put the file at {kept} or name it: {option}"
            ) from error
    path = Path(file) if file is not None else kept
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; {what} takes the weights published at {url}: {option}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what unpickling raises on bad bytes is an open list
        one_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a file of weights ({one_line}); fetch {url} again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict; {what} takes the weights published at {url}")
    return state


@contextmanager
def of_the_hub(name: str, what: str, option: str) -> Iterator[None]:
    """Around importing transformers and loading `name` with it, a model of the Hugging Face Hub or a folder.

    what, option: for the messages, such as "CLIP" and "--clip FOLDER". Raises ImportError without
    transformers, FileNotFoundError where the model cannot be had."""
    try:
        yield
    except ImportError as error:
        if error.name != "transformers":
            raise
        raise ImportError(
            f"{what} {name!r} needs transformers; install it with "
            "`uv pip install -c constraints.txt -e '.[text]'` (or pip)"
        ) from error
    except OSError as error:
        raise FileNotFoundError(
            f"{what} {name!r} is neither a folder nor to be had from the Hub "
            f"({str(error).strip().splitlines()[0]}). Without a connection, download it elsewhere "
            f"(`hf download {name} --local-dir FOLDER`) and name that folder: {option}"
        ) from error
