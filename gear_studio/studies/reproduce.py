"""Retrain everything that ships: the zoo as jobs (see `jobs`).

Teacher and judges are retrained and measured too, but the Runs keep aligning with, and being measured by, the
shipped ones: distances in the feature spaces of two teachers do not compare.
"""

from pathlib import Path

from gear_studio.places import ZOO
from gear_studio.runs import Run
from gear_studio.training.jobs import Job
from gear_studio.training.recipes import BUDGETS, EVALUATION

TOKENIZERS = ("warmup", "continued", "gear")
GENERATORS = {"generator-baseline": "warmup", "generator-continued": "continued", "generator-gear": "gear"}


def jobs(out: Path, budget: str, seed: int) -> list[Job]:
    """The zoo as commands, in an order that finishes early what others wait for."""

    def train(name: str, stage: str, arm: str, parent: str | None = None) -> Job:
        command = ["train", "shapes", "--stage", stage, "--arm", arm, "--seed", str(seed), "--budget", budget]
        command += ["--out", str(out / name)] + (["--parent", str(out / parent)] if parent else [])
        return Job(name, command, [parent] if parent else [])

    def supervise(model: str) -> Job:
        steps = str(BUDGETS[budget][model])
        return Job(
            model, ["supervise", model, "--steps", steps, "--seed", str(seed), "--out", str(out / model)]
        )

    todo = [train("warmup", "warmup", "warmup")]
    todo += [supervise(model) for model in ("teacher", "judge", "attribute-judge")]
    todo += [train("gear", "joint", "gear", "warmup"), train("continued", "joint", "continued", "warmup")]
    for name, parent in GENERATORS.items():
        todo.append(train(name, "generator", name.removeprefix("generator-"), parent))
    samples, seeds = EVALUATION[budget]
    for name in (*TOKENIZERS, *GENERATORS):
        command = ["evaluate", str(out / name), "--samples", str(samples), "--seeds", str(seeds)]
        todo.append(Job(f"evaluate {name}", command, [name]))
    return todo


def ship(out: Path, zoo: Path = ZOO) -> None:
    """Copy the finished Runs of `out` into the zoo: float16 EMA weights, metrics, records, pictures."""
    for name in TOKENIZERS:
        Run.from_pretrained(out / name).save_pretrained(zoo / name, parts=("tokenizer",))
    for name in GENERATORS:
        Run.from_pretrained(out / name).save_pretrained(zoo / name, parts=("generator", "projector"))
