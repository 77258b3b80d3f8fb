"""Files of weights as their authors left them: read without running anything in them, unwrapped.

Training scripts put a state dict under a key of its own, and next to it other ones and their own state; EMA
weights are preferred wherever a file has them, also the shadows that Lightning files keep.
"""

import argparse
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gear_studio.files import one_line
from gear_studio.models.families.base import State

WRAPPINGS = ("vq_ema", "ema", "vq", "ar", "model", "state_dict")  # in order of preference; else bare
AVERAGED = ("vq_ema", "ema")


def read(path: Path) -> dict[str, Any]:
    """What a .pt, .ckpt or .safetensors file holds, on the CPU, without running anything in it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Training scripts put their parsed command line beside the weights; it is plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            raw = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, or holds more than weights and plain values ({one_line(error)}), which "
            "could run code and is refused; save its state dict alone with torch.save and give that file"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is not a complete file of weights ({one_line(error)}); copy it again"
        ) from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds a {type(raw).__name__}; expected a dict of weights")
    return raw


def unwrap(raw: dict[str, Any], is_wanted: Callable[[dict], bool]) -> dict[str, dict]:
    """The dicts of a file that `is_wanted`, by what they lie under: `WRAPPINGS` in their order, then "" for
    the file itself."""
    wrapped = {name: raw.get(name) for name in WRAPPINGS} | {"": raw}
    return {name: state for name, state in wrapped.items() if isinstance(state, dict) and is_wanted(state)}


def is_averaged(name: str, state: dict) -> bool:
    """Whether a dict that lies under `name` has EMA weights."""
    return name in AVERAGED or any(str(key).startswith("model_ema.") for key in state)


def weights_of(state: dict[str, Any]) -> State:
    """The weights in a dict, without training's own entries; Lightning's EMA shadows where it has them, which
    keeps the average of `a.b` as `model_ema.ab`.

    Raises ValueError where some weights have a shadow and others none."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    shadows = {
        key.removeprefix("model_ema."): value
        for key, value in tensors.items()
        if key.startswith("model_ema.")
    }
    live = {
        key: value
        for key, value in tensors.items()
        if not key.startswith(("model_ema.", "loss.")) and key != "quantize.codebook_used"
    }
    if not shadows:
        return live
    shadow_keys = {key: key.replace(".", "") for key in live}
    if lacking := [f"model_ema.{key}" for key in shadow_keys.values() if key not in shadows]:
        raise ValueError(
            f"the file has EMA weights for some keys only, and mixing them with others is no model "
            f"({len(lacking)} missing: {', '.join(lacking[:5])})"
        )
    return {key: shadows[shadow_key] for key, shadow_key in shadow_keys.items()}
