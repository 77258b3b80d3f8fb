"""GEAR Studio: understand, reproduce and build on guided end-to-end autoregression."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gear_studio.models.generator import Generator
    from gear_studio.models.teachers import Teacher
    from gear_studio.models.tokenizer import Tokenizer
    from gear_studio.runs import Run

__version__ = "0.1.0"
__all__ = ["Generator", "Run", "Teacher", "Tokenizer"]

_MODULES = {
    "Generator": "models.generator",
    "Run": "runs",
    "Teacher": "models.teachers",
    "Tokenizer": "models.tokenizer",
}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` when it is first asked for: the command line's help does without torch."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"gear_studio.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
