"""The command line: `gear-studio train | supervise | evaluate | sample | reconstruct | reproduce | report`.

Errors that a user can act on end in one line, not in a traceback.
"""

import ast
import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import tyro

from gear_studio.training.recipes import BUDGETS, small

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


def change(config: Any, name: str, value: str) -> Any:
    """A config with the field `name` (dots reach into nested configs) set to `value`, read as the field's
    type.

    Raises ValueError for a name it does not have or a value of another type."""
    name, _, rest = name.partition(".")
    known = [field.name for field in dataclasses.fields(config)]
    if name not in known:
        raise ValueError(f"no setting {name!r} to change; choose from {', '.join(known)}")
    old = getattr(config, name)
    if rest:
        if not dataclasses.is_dataclass(old):
            raise ValueError(f"setting {name!r} has no part {rest!r}; write {name}=VALUE")
        return dataclasses.replace(config, **{name: change(old, rest, value)})
    try:
        new = value if isinstance(old, str) else type(old)(ast.literal_eval(value))
    except (ValueError, SyntaxError, TypeError):
        raise ValueError(f"{name}={value!r}: expected a {type(old).__name__} like {old!r}") from None
    return dataclasses.replace(config, **{name: new})


def train(
    source: Positional[Literal["shapes", "digits", "folder", "shards"]],
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
    set: list[str] | None = None,
) -> None:
    """Train one stage, or continue it where it was killed.

    Args:
        source: What to train on: the embedded world, real handwritten digits, a folder of pictures by
        class, or WebDataset shards.
        stage: warmup (tokenizer), joint (tokenizer guided by a generator), generator (on the frozen
        tokenizer).
        arm: What is compared: baseline, gear, continued, straight-through. Default: gear, or warmup for the
        warm-up.
        seed: Decides weights, images and dropout.
        budget: Preset number of steps.
        steps: Steps, instead of the budget's.
        batch_size: Images a step over all processes, instead of the recipe's.
        folder: For source `folder`: one sub-folder a class (optionally inside train/ and val/). For source
        `shards`: a folder of .tar files, or a pattern such as 'PATH/{000000..000099}.tar'.
        out: The run's folder. Default: runs/SOURCE-STAGE-ARM-sSEED.
        parent: The run to build on, beside OUT. Default: the warm-up, or the joint run of the same arm.
        workers: Data-loading processes; 0 loads in the training process.
        set: Other recipe values, as NAME=VALUE: gan_weight=0.1 tau=0.05 teacher=FOLDER generator.blocks=4.
        In the generator stage token_views=10 encodes ten crops of every picture ahead, once a tokenizer.
    """
    from gear_studio.training.loop import train as run_training

    arm = arm or ("warmup" if stage == "warmup" else "gear")
    recipe = small(stage, budget)
    changes = {"steps": steps, "batch_size": batch_size}
    recipe = dataclasses.replace(recipe, **{k: v for k, v in changes.items() if v is not None})
    for assignment in set or []:
        recipe = change(recipe, *assignment.partition("=")[::2])
    out = out or Path("runs") / run_name(source, stage, arm, seed)
    parent = parent or default_parent(out, source, stage, arm, seed)
    if parent is not None and not (parent / "tokenizer").is_dir():
        raise FileNotFoundError(
            f"stage {stage} builds on {parent}, which holds no finished tokenizer; train that first, "
            "or name another run with --parent"
        )
    run = run_training(source, stage, arm, recipe, seed, out, parent, folder, workers)
    print(f"finished: {run.folder}")


def supervise(
    model: Positional[Literal["teacher", "judge"]],
    steps: int | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Train the tiny teacher or the judge on the world's truth, or continue it; then measure it.

    Args:
        model: teacher (frozen patch features) or judge (names the class of a picture).
        steps: Default: as shipped.
        seed: Decides weights and images.
        out: Folder. Default: runs/MODEL.
    """
    from gear_studio.training import teacher

    out = out or Path("runs") / model
    train_model = {"teacher": teacher.train_teacher, "judge": teacher.train_judge}[model]
    train_model(out, steps or BUDGETS["shipped"][model], seed)
    {"teacher": teacher.evaluate_teacher, "judge": teacher.evaluate_judge}[model](out)
    print(f"finished: {out}")


def evaluate(
    runs: Positional[list[Path]],
    samples: int = 5000,
    seeds: int = 3,
    cfg_scale: float = 1.5,
    folder: Path | None = None,
) -> None:
    """Measure runs on held-out images and write evaluation.json into each.

    Args:
        runs: Folders of runs, or names of shipped ones.
        samples: Images behind every Frechet distance, the same for every run that is compared.
        seeds: Sampling seeds, for the spread.
        cfg_scale: Guidance scale of the guided figures.
        folder: Where the pictures of a run on source `folder` or `shards` lie.
    """
    from gear_studio.analysis import fidelity
    from gear_studio.pretrained import write_json
    from gear_studio.runs import Run

    for name in runs:
        run = Run.from_pretrained(name)
        write_json(run.folder / "evaluation.json", fidelity.evaluate(run, samples, seeds, cfg_scale, folder))
        print(f"measured: {run.folder / 'evaluation.json'}")


def sample(
    run: Positional[Path],
    out: Path,
    labels: list[str] | None = None,
    count: int = 32,
    cfg_scale: float = 1.5,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> None:
    """Write a grid of samples as one PNG.

    Args:
        run: A generator's run: a folder or the name of a shipped one.
        out: The PNG to write.
        labels: Class names or numbers, taken in turn. Default: all classes.
        count: Pictures.
        cfg_scale: Guidance; 1 is none.
        temperature: 0 is greedy.
        top_k: Keep the k likeliest codes; 0 keeps all.
        top_p: Keep the likeliest codes of this mass; 1 keeps all.
        seed: The same seed gives the same pictures.
    """
    import torch

    from gear_studio import sampling
    from gear_studio.pictures import write_grid
    from gear_studio.runs import Run

    loaded = Run.from_pretrained(run)
    numbers = loaded.class_numbers(labels) if labels else list(range(len(loaded.config["classes"])))
    condition = torch.tensor([numbers[i % len(numbers)] for i in range(count)])
    indices = sampling.sample(loaded.generator, condition, cfg_scale, temperature, top_k, top_p, seed)
    with torch.no_grad():
        write_grid(loaded.tokenizer.decode(indices), out)
    print(f"wrote {out}")


def reconstruct(run: Positional[Path], pictures: Positional[list[Path]], out: Path) -> None:
    """Write pictures and, below each, what the tokenizer makes of them, as one PNG.

    Args:
        run: Any run: a folder or the name of a shipped one.
        pictures: Image files; centre-cropped to a square and resized.
        out: The PNG to write.
    """
    import torch

    from gear_studio import data
    from gear_studio.data.folder import fit, open_rgb
    from gear_studio.pictures import write_grid
    from gear_studio.runs import Run

    tokenizer = Run.from_pretrained(run).tokenizer
    images = torch.stack(
        [data.to_float(fit(open_rgb(path), tokenizer.config.image_size)) for path in pictures]
    )
    with torch.no_grad():
        write_grid(torch.cat([images, tokenizer.reconstruct(images)]), out, columns=len(images))
    print(f"wrote {out}")


def reproduce(
    budget: Literal["shipped", "quick", "smoke"] = "shipped",
    out: Path | None = None,
    seed: int = 0,
    at_once: int | None = None,
    ship: bool = False,
) -> None:
    """Retrain and measure every shipped run; killed and started again it goes on.

    Args:
        budget: shipped (what the repository holds), quick (sees the effect), smoke (checks the plumbing).
        out: Folder of the runs. Default: runs/reproduce-BUDGET-sSEED.
        seed: Of all trainings.
        at_once: Trainings side by side. Default: one for each CPU core up to 3, or 3 on a GPU.
        ship: Put the results in the place of the shipped runs.
    """
    import os

    import torch

    from gear_studio import reproduce as zoo

    out = out or Path("runs") / f"reproduce-{budget}-s{seed}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = at_once or (3 if torch.cuda.is_available() else min(3, cores))
    zoo.run(zoo.jobs(out, budget, seed), at_once, max(1, cores // at_once))
    if ship:
        zoo.ship(out)
    report(out)


def report(runs: Positional[Path | None] = None, figures: Path | None = None) -> None:
    """Print the README's tables from the shipped runs, or from a folder of runs.

    Args:
        runs: A folder that `reproduce` filled. Default: the shipped runs.
        figures: Folder to write the README's figures to.
    """
    from gear_studio import report
    from gear_studio.runs import ZOO

    print(report.tables(runs or ZOO))
    for path in report.figures(runs or ZOO, figures) if figures else []:
        print(f"wrote {path}")


COMMANDS = {
    "train": train,
    "supervise": supervise,
    "evaluate": evaluate,
    "sample": sample,
    "reconstruct": reconstruct,
    "reproduce": reproduce,
    "report": report,
}


def main() -> None:
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="gear-studio", description=__doc__)
    except (FileNotFoundError, ValueError, KeyError, RuntimeError) as error:
        sys.exit(f"gear-studio: {error.args[0] if isinstance(error, KeyError) else error}")
