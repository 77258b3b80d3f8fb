"""Weights on disk: a folder with config.json and model.safetensors, written atomically and read with clear
errors.

`Tokenizer`, `Generator` and `Projector` inherit `Pretrained`; a config is a frozen dataclass beside each
model.
"""

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gear_studio import cards, hub
from gear_studio.errors import InputError, MissingError
from gear_studio.files import atomic, one_line, read_json, write_json

M = TypeVar("M", bound=nn.Module)


def check_shapes(where: str | Path, model: str, shapes: Mapping, expected: Mapping) -> None:
    """Compare the shapes of weights, by key, with those that a model expects. Raises ValueError naming what
    is missing, unexpected or misshapen."""
    problems = [f"missing {key}" for key in expected.keys() - shapes.keys()]
    problems += [f"unexpected {key}" for key in shapes.keys() - expected.keys()]
    problems += [
        f"{key} has shape {shapes[key]}, expected {expected[key]}"
        for key in expected.keys() & shapes.keys()
        if shapes[key] != expected[key]
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + ("; ..." if len(problems) > 5 else "")
        raise InputError(
            f"{where} does not fit {model} ({len(problems)} keys differ: {shown}); "
            "it belongs to another model or another configuration"
        )


def fingerprint(module: nn.Module, dtype: torch.dtype | None = None) -> str:
    """SHA-256 of a module's weights and buffers, however they are named and wherever they lie. dtype: what
    they are rounded to first, of a module that is not loaded in the same precision everywhere."""
    digests = [
        hashlib.sha256(
            value.detach().to("cpu", dtype).contiguous().flatten().view(torch.uint8).numpy()
        ).digest()
        for value in module.state_dict().values()
    ]
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in weights.items()}


class _NoValues(TorchFunctionMode):
    """Values are not made up for tensors that have no memory: to ask imports torch._dynamo, for seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init" or func is F.normalize:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def without_memory(build: Callable[[], M]) -> M:
    """What `build` builds, with shapes alone."""
    with torch.device("meta"), _NoValues():
        return build()


def build_checked(build: Callable[[], M], shapes: Mapping[str, tuple[int, ...]], where: str | Path) -> M:
    """What `build` builds, a module for weights of these shapes. It is built without memory first, so that a
    small file that claims a huge model costs nothing.

    Raises ValueError, naming `where` and the keys, where the weights do not fit."""
    sketch = without_memory(build)
    check_shapes(where, type(sketch).__name__, shapes, shapes_of(sketch.state_dict()))
    return build()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise MissingError(f"no weights at {path}; expected a safetensors file")
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a complete safetensors file ({one_line(error)}); copy or train it again"
        ) from error


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights in a safetensors file by key, from its header alone. Raises as
    `load_weights`."""
    with _reading(path), safe_open(path, "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}


def load_weights(module: nn.Module, path: Path) -> None:
    """Load safetensors into `module`, in the module's own dtype. Missing, extra or misshapen keys are refused
    by name."""
    with _reading(path):
        state = load_file(path)
    check_shapes(path, type(module).__name__, shapes_of(state), shapes_of(module.state_dict()))
    module.load_state_dict(state)


class Pretrained(nn.Module):
    """A model with a `Config` dataclass, stored as a folder: config.json beside model.safetensors."""

    Config: type
    config: Any  # an instance of Config

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config and weights; dtype (say torch.float16) halves what is shipped. Each file is replaced
        atomically."""
        folder = Path(folder)
        write_json(folder / "config.json", dataclasses.asdict(self.config))
        state = {k: v.detach().to("cpu", dtype or v.dtype).contiguous() for k, v in self.state_dict().items()}
        with atomic(folder / "model.safetensors") as temporary:
            save_file(state, temporary)

    def push_to_hub(self, name: str, private: bool = False, license: str | None = None) -> str:
        """Publish the model on the Hugging Face Hub as OWNER/NAME, with a card. private: where the repository
        is made now. license: as the Hub writes it, such as apache-2.0. Returns the address.

        Raises ValueError for another name, RuntimeError where it cannot be done, saying why."""
        hub.check_name(name)
        weights = sum(value.numel() for value in self.state_dict().values())
        settings = dataclasses.asdict(self.config)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            card = cards.of_model(name, type(self).__name__, settings, weights, license)
            (Path(folder) / hub.CARD).write_text(card, encoding="utf-8")
            return hub.upload(Path(folder), name, private)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path) -> Self:
        """Read a folder, or the part of this kind out of a Run: out of its folder, or of a shipped one by its
        name. Either may be a repository of the Hugging Face Hub, OWNER/NAME. Returned in eval mode.

        Raises FileNotFoundError where there is no such place, ValueError where it holds something else."""
        part = cls.__name__.lower()
        files = "config.json", "model.safetensors"
        folder = hub.find_folder(name_or_folder, [*files, *(f"{part}/{file}" for file in files)])
        folder = folder / part if (folder / part).is_dir() else folder
        config = read_json(folder / "config.json", f"a {cls.__name__}")
        try:
            settings = cls.Config(**config)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{folder / 'config.json'} does not describe a {cls.__name__}: {error}"
            ) from error
        path = folder / "model.safetensors"
        model = build_checked(lambda: cls(settings), read_shapes(path), path)
        load_weights(model, path)
        return model.eval()
