"""Files of weights as their authors left them: read without running anything in them, unwrapped.

Training scripts put a state dict under a key of its own, and next to it other ones and their own state; EMA
weights are preferred wherever a file has them, also the shadows that Lightning files keep. What wraps a model
in training (DDP, FSDP, torch.compile, a Lightning module) leaves its name in the keys.
"""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gear_studio.errors import InputError
from gear_studio.files import one_line
from gear_studio.models.families.base import State

WRAPPINGS = ("vq_ema", "ema", "vq", "ar", "model", "state_dict")  # in order of preference; else bare
AVERAGED = ("vq_ema", "ema")
_AROUND = re.compile(r"^(?:(?:module|model)\.)+")  # of a whole model
_WITHIN = re.compile(
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)  # or a layer

# The class that a config of a training names -> the quantizer it has.
_TRAINED = {
    r"taming\.models\.vqgan\.VQ\w*Model": "euclidean",
    r"ldm\.models\.autoencoder\.VQModel\w*": "euclidean",
    r"(.+\.)?ibqgan\w*\.\w+": "ibq",
    r"(.+\.)?lfqgan\w*\.\w+": "lfq",
}


def read(path: Path) -> dict[str, Any]:
    """What a .pt, .ckpt or .safetensors file holds, on the CPU, without running anything in it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Training scripts put their parsed command line beside the weights; it is plain values.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are older or newer than torch's own
            raw = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is damaged, or holds more than weights and plain values ({one_line(error)}), which "
            "could run code and is refused; save its state dict alone with torch.save and give that file"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise InputError(
            f"{path} is not a complete file of weights ({one_line(error)}); copy it again"
        ) from error
    except Exception as error:  # what unpickling raises on bytes that are no pickle is an open list
        raise InputError(f"{path} is no file of weights; give a .pt, .ckpt or .safetensors file") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path} holds a {type(raw).__name__}; expected a dict of weights")
    return raw


def unwrap(raw: dict[str, Any], is_wanted: Callable[[dict], bool]) -> dict[str, dict]:
    """The dicts of a file that `is_wanted`, with plain keys, by what they lie under: `WRAPPINGS` in their
    order, also one in the other (ema.state_dict), then "" for the file itself."""
    found: dict[str, dict] = {}
    for name in WRAPPINGS:
        if isinstance(raw.get(name), dict):
            for inner, state in unwrap(raw[name], is_wanted).items():
                found[f"{name}.{inner}" if inner else name] = state
    state = plain_keys(raw)
    return found | {"": state} if is_wanted(state) else found


def plain_keys(state: dict) -> dict:
    """A state dict without the names that wrappers of training leave in its keys. Raises ValueError where two
    keys become one."""
    plain: dict = {}
    for key, value in state.items():
        name = _AROUND.sub("", _WITHIN.sub("", key)) if isinstance(key, str) else key
        if name in plain:
            raise InputError(f"the file holds {name} twice, as itself and within a wrapper ({key})")
        plain[name] = value
    return plain


def is_averaged(name: str, state: dict) -> bool:
    """Whether a dict that lies under `name` has EMA weights."""
    return any(part in AVERAGED for part in name.split(".")) or any(
        str(key).startswith("model_ema.") for key in state
    )


def quantizer_beside(path: Path) -> str | None:
    """The quantizer that the config beside a file of weights says it was trained with, or None.

    The config: of the file's own name, else config or model, in YAML or JSON; it names a class, as those of
    taming-transformers (model: target) and Lightning (model: class_path) do."""
    import yaml  # here: only this needs it

    for stem in (path.stem, "config", "model"):
        for suffix in (".yaml", ".yml", ".json"):
            config = path.with_name(stem + suffix)
            if config.is_file():
                try:
                    model = yaml.safe_load(config.read_text())["model"]
                    trained = model.get("target") or model.get("class_path")
                except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
                    continue  # a config of something else
                for pattern, quantizer in _TRAINED.items():
                    if re.fullmatch(pattern, str(trained)):
                        return quantizer
    return None


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
        raise InputError(
            f"the file has EMA weights for some keys only, and mixing them with others is no model "
            f"({len(lacking)} missing: {', '.join(lacking[:5])})"
        )
    return {key: shadows[shadow_key] for key, shadow_key in shadow_keys.items()}
