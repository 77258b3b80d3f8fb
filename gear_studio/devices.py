"""Where models compute."""

import torch

from gear_studio.errors import InputError


def choose_device(name: str | None = None) -> torch.device:
    """The device of a name such as "cuda", "cuda:1" or "cpu"; None takes the GPU if there is one.

    Raises ValueError for a name that torch does not know, or a GPU that is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"device {name!r} is not to be had here ({reason}); choose cpu, or leave it out"
        ) from error
