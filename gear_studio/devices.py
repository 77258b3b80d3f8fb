"""Where models compute, and where sums do that need float64."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import torch
from typing_extensions import Doc

from gear_studio.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

# The option of every command that computes, and what its help says.
Device: TypeAlias = Annotated[
    str | None,
    Doc(
        "Where to compute: cpu, cuda, cuda:1 for the second of several, mps. Default: a GPU if there is one."
    ),
]
# How long processes wait for one that does something for all, such as looking at a million files; NCCL's own
# ten minutes are too few.
PATIENCE = timedelta(hours=2)


def list_devices() -> list[str]:
    """The names of the devices there are: those of GPUs first, the CPU last."""
    gpu = torch.accelerator.current_accelerator(check_available=True)
    numbered = range(torch.accelerator.device_count()) if gpu else ()
    return [*([gpu.type] if gpu else []), *(f"{gpu.type}:{number}" for number in numbered if gpu), "cpu"]


def launched_with(name: str) -> bool:
    """Whether `accelerate launch`, its config or the environment asks for something: CPU, FSDP."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true")


def choose_device(name: str | None = None) -> torch.device:
    """The device of a name such as "cuda", "cuda:1" or "cpu"; None takes a GPU if there is one, and no
    ACCELERATE_USE_CPU=true.

    Raises ValueError for one that is not there, naming those that are."""
    names = list_devices()
    if name is None:
        return torch.device("cpu" if launched_with("CPU") else names[0])
    if name in names:
        return torch.device(name)
    reason = ""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = f" ({' '.join(str(error).split())[:200]})"
    raise InputError(f"device {name!r} is not to be had here{reason}; choose one of {', '.join(names)}")


def new_accelerator(name: str | None = None, **more: Any) -> "Accelerator":
    """This process's device, and its place among the others where several were launched; bf16 on CUDA.

    name: as `choose_device` takes it; of several processes each has a GPU of its own. more: for Accelerate.
    Whoever computes in one process at a time may name another device each time. Raises ValueError as
    `choose_device`, and for one GPU that several processes would share."""
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState, is_initialized
    from accelerate.utils import DistributedDataParallelKwargs

    device = choose_device(name)
    on_cpu, precision = device.type == "cpu", "bf16" if device.type == "cuda" else "no"
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    if state.num_processes == 1:
        state.device = device
    elif device.index is not None:
        raise InputError(
            f"device {name!r} is one, and there are {state.num_processes} processes; say {device.type}, of "
            "which each takes its own, and choose among them by CUDA_VISIBLE_DEVICES"
        )
    # Accelerate has one state a process, with the precision of the first device; the next may have another.
    if is_initialized() and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)]
    return Accelerator(cpu=on_cpu, mixed_precision=precision, kwargs_handlers=handlers, **more)


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
