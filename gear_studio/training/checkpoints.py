"""Resumable states of a training: what is in one, and how it lies on disk.

A state holds whole tensors on the CPU, however the models were spread over processes, under the names of the
weights: any number of processes goes on from it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from gear_studio.errors import InputError
from gear_studio.files import atomic, one_line
from gear_studio.run_files import read_metrics

WHOLE_ON_CPU = StateDictOptions(full_state_dict=True, cpu_offload=True)
WHOLE = StateDictOptions(full_state_dict=True)


def gather_weights(module: nn.Module) -> dict[str, Any]:
    """A module's whole weights on the CPU of the main process; {} in the others. Every process must call
    it."""
    return get_model_state_dict(module, options=WHOLE_ON_CPU)


def gather_state(
    modules: Mapping[str, nn.Module],
    averages: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> dict[str, dict]:
    """All that continuing needs, on the main process. Every process must call it. optimizers: of the modules
    of the same names."""
    return {
        "modules": {name: gather_weights(module) for name, module in modules.items()},
        "ema": {name: gather_weights(module) for name, module in averages.items()},
        "optimizers": {
            name: get_optimizer_state_dict(modules[name], optimizer, options=WHOLE_ON_CPU)
            for name, optimizer in optimizers.items()
        },
    }


def load_state(
    state: dict[str, dict],
    modules: Mapping[str, nn.Module],
    averages: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Take up what `gather_state` gave; each process keeps its part. Before the first step only."""
    for name, module in modules.items():
        set_model_state_dict(module, state["modules"][name], options=WHOLE)
    for name, module in averages.items():
        set_model_state_dict(module, state["ema"][name], options=WHOLE)
    for name, optimizer in optimizers.items():
        own: Any = get_optimizer_state_dict(modules[name], optimizer)
        to_load = name_parameters(state["optimizers"][name], own["param_groups"][0]["params"])
        set_optimizer_state_dict(modules[name], optimizer, to_load, options=WHOLE)


def name_parameters(state: dict, names: list[str]) -> dict:
    """An optimizer's state by the names of its parameters: older checkpoints number them.

    Its tensors are copied. What was read may be mapped from the file, and an optimizer changes its state in
    place."""

    def name_of(parameter: str | int) -> str:
        return names[parameter] if isinstance(parameter, int) else parameter

    return {
        "state": {
            name_of(parameter): {key: value.clone() for key, value in held.items()}
            for parameter, held in state["state"].items()
        },
        "param_groups": [
            group | {"params": [name_of(parameter) for parameter in group["params"]]}
            for group in state["param_groups"]
        ],
    }


class Checkpoints:
    """The last two states of a training, each written atomically."""

    def __init__(self, folder: Path):
        self.folder = folder

    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def save(self, step: int, state: dict) -> None:
        with atomic(self.folder / f"step-{step:08d}.pt") as temporary:
            torch.save({"step": step, **state}, temporary)
        for old in self.paths()[:-2]:
            old.unlink()

    def sweep(self) -> None:
        """Remove what a kill in the middle of a save has left."""
        for stale in self.folder.glob(".step-*.pt.*"):
            stale.unlink()

    def newest(self) -> Path | None:
        """The file of the newest state, if there is one."""
        return max(self.paths(), default=None)

    def load(self, path: Path) -> dict:
        """The state in a file. Raises ValueError naming one that is damaged or is no checkpoint of ours."""
        try:
            # Mapped, so that the processes of a machine share one copy of what they read.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if not isinstance(state, dict) or not {"step", "modules", "ema", "optimizers"} <= state.keys():
                raise InputError("it holds something else")
        except Exception as error:
            raise InputError(
                f"{path} is not a complete checkpoint of this studio ({one_line(error)}); "
                "delete it to continue from the one before, or from the start"
            ) from error
        return state


def drop_metrics_after(step: int, path: Path) -> None:
    """Drop what was logged after `step`, and a last line torn by a kill: those steps are taken again.

    Raises ValueError naming another line that is damaged."""
    kept = [row for row in read_metrics(path.parent) if row["step"] <= step]
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
