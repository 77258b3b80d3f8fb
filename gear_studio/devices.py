"""Where models compute, and where sums do that need float64."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

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


@contextmanager
def all_cores() -> Iterator[None]:
    """Have torch use every core in this thread. Worth it for large models only: small ones lose more time
    handing work over than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def float64_device(device: torch.device | str) -> torch.device:
    """Where numbers of a device can be float64: there, or of Apple's GPUs (mps), which have none, the CPU."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


def to_float64(x: torch.Tensor) -> torch.Tensor:
    """A tensor as float64, on the CPU where its own device has no such numbers."""
    return x.to(float64_device(x.device)).double()


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Have autocast leave float32 alone; of a device that has none (meta), nothing."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()
