"""The command line: `gear-studio train | reproduce | evaluate | sample | reconstruct | teacher`.

Errors that a user can act on end in one line, not in a traceback.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import tyro

from gear_studio.training.recipes import small

Positional = tyro.conf.Positional
Stage = Literal["warmup", "joint", "generator"]
Arm = Literal["warmup", "baseline", "gear", "continued", "straight-through"]


def run_name(source: str, stage: str, arm: str, seed: int) -> str:
    return f"{source}-warmup-s{seed}" if stage == "warmup" else f"{source}-{stage}-{arm}-s{seed}"


def default_parent(out: Path, source: str, stage: str, arm: str, seed: int) -> Path | None:
    """The Run that a stage builds on, beside `out`: the warm-up, or the joint Run of the same arm."""
    match stage, arm:
        case "warmup", _:
            return None
        case ("joint", _) | ("generator", "baseline"):
            return out.parent / run_name(source, "warmup", "warmup", seed)
        case _:
            return out.parent / run_name(source, "joint", arm, seed)


def train(
    source: Positional[Literal["shapes", "digits", "folder"]],
    stage: Stage = "warmup",
    arm: Arm | None = None,
    seed: int = 0,
    budget: Literal["shipped", "quick", "smoke"] = "shipped",
    steps: int | None = None,
    batch_size: int | None = None,
    folder: Path | None = None,
    out: Path | None = None,
    parent: Path | None = None,
    workers: int = 0,
) -> None:
    """Train one stage, or continue it where it was killed.

    Args:
        source: What to train on: the embedded world, real handwritten digits, or a folder of pictures by class.
        stage: warmup (tokenizer), joint (tokenizer guided by a generator), generator (on the frozen tokenizer).
        arm: What is compared: baseline, gear, continued, straight-through. Default: gear, or warmup for the warm-up.
        seed: Decides weights, images and dropout.
        budget: Preset number of steps.
        steps: Steps, instead of the budget's.
        batch_size: Images a step over all processes, instead of the recipe's.
        folder: For source `folder`: one sub-folder a class (optionally inside train/ and val/).
        out: The run's folder. Default: runs/SOURCE-STAGE-ARM-sSEED.
        parent: The run to build on, beside OUT. Default: the warm-up, or the joint run of the same arm.
        workers: Data-loading processes; 0 loads in the training process.
    """
    from gear_studio.training.loop import train as run_training

    arm = arm or ("warmup" if stage == "warmup" else "gear")
    recipe = small(stage, budget)
    changes = {"steps": steps, "batch_size": batch_size}
    recipe = dataclasses.replace(recipe, **{k: v for k, v in changes.items() if v is not None})
    out = out or Path("runs") / run_name(source, stage, arm, seed)
    parent = parent or default_parent(out, source, stage, arm, seed)
    if parent is not None and not (parent / "tokenizer").is_dir():
        raise FileNotFoundError(
            f"stage {stage} builds on {parent}, which holds no finished tokenizer; train that first, "
            "or name another run with --parent"
        )
    run = run_training(source, stage, arm, recipe, seed, out, parent, folder, workers)
    print(f"finished: {run.folder}")


def main() -> None:
    try:
        tyro.extras.subcommand_cli_from_dict({"train": train}, prog="gear-studio", description=__doc__)
    except (FileNotFoundError, ValueError, KeyError, RuntimeError) as error:
        sys.exit(f"gear-studio: {error.args[0] if isinstance(error, KeyError) else error}")
