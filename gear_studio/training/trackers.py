"""Trackers: a training in TensorBoard or Weights & Biases, by the tracker API of Accelerate.

What the run's folder holds is written either way; a tracker is told the same, by the main process alone."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gear_studio.errors import MissingError

if TYPE_CHECKING:  # the command line asks for the names alone
    from accelerate import Accelerator

TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
}  # packages, of which one is needed
PROJECT = "gear-studio"


def check_trackers(names: Sequence[str]) -> None:
    """Raise FileNotFoundError for a tracker whose package is not installed."""
    for name in names:
        packages = TRACKERS[name]
        if not any(find_spec(package) for package in packages):
            raise MissingError(
                f"tracker {name} needs the package {packages[0]}, which is not installed; install it with "
                f"`uv pip install {packages[0]}`, or leave --track {name} out"
            )


def start_trackers(accelerator: "Accelerator", out: Path, config: Mapping[str, Any], step: int) -> None:
    """Open the trackers that the accelerator was made with. config: of the run, told once. step: the last one
    that is kept of what was tracked before."""
    if accelerator.log_with and accelerator.is_main_process:
        accelerator.init_trackers(
            PROJECT,
            config=flatten(config),
            init_kwargs={
                "tensorboard": {"purge_step": step + 1},
                "wandb": {"name": out.name, "dir": str(out)},
            },
        )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested settings by their dotted names; what is no number is told as text."""
    flat: dict[str, str | int | float | bool] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, int | float) else str(value)
    return flat


def track_pictures(accelerator: "Accelerator", step: int, files: Sequence[Path]) -> None:
    """Tell the trackers the pictures in files, by their names."""
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        for file in files:
            with Image.open(file) as picture:
                tracker.log_images({file.stem: np.asarray(picture.convert("RGB"))[None]}, step=step, **layout)


def finish_trackers(accelerator: "Accelerator") -> None:
    for tracker in accelerator.trackers:
        tracker.finish()
