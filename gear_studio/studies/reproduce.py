"""Retrain everything that ships: the zoo as jobs.

Teacher and judges are retrained and measured too. The Runs are still aligned with, and measured by, the ones
that ship: distances in the feature spaces of two teachers do not compare.
"""

from pathlib import Path

from gear_studio.analysis.metrics import EvaluationOptions
from gear_studio.places import ZOO
from gear_studio.runs import Run
from gear_studio.training.execution import Execution
from gear_studio.training.jobs import Job
from gear_studio.training.recipes import BUDGETS, EVALUATION
from gear_studio.training.request import Training, options_of

TOKENIZERS = ("warmup", "continued", "gear")
GENERATORS = {"generator-baseline": "warmup", "generator-continued": "continued", "generator-gear": "gear"}


def zoo_jobs(out: Path, budget: str, seed: int, device: str | None = None) -> list[Job]:
    """Everything that trains and measures what ships. What several Runs need comes first. device: of all."""

    def train(name: str, stage: str, arm: str, parent: str | None = None) -> Job:
        training = Training(
            "shapes",
            stage,
            arm,
            seed=seed,
            budget=budget,
            out=out / name,
            parent=out / parent if parent else None,
            execution=Execution(device=device),
        )
        return Job(name, training.command(), [parent] if parent else [])

    def supervise(model: str) -> Job:
        steps = str(BUDGETS[budget][model])
        command = ["supervise", model, "--steps", steps, "--seed", str(seed), "--out", str(out / model)]
        return Job(model, [*command, *(["--device", device] if device else [])])

    jobs = [train("warmup", "warmup", "warmup")]
    jobs += [supervise(model) for model in ("teacher", "judge", "attribute-judge")]
    jobs += [train("gear", "joint", "gear", "warmup"), train("continued", "joint", "continued", "warmup")]
    for name, parent in GENERATORS.items():
        jobs.append(train(name, "generator", name.removeprefix("generator-"), parent))
    samples, seeds = EVALUATION[budget]
    for name in (*TOKENIZERS, *GENERATORS):
        command = ["evaluate", str(out / name), *options_of(EvaluationOptions(samples, seeds, device=device))]
        jobs.append(Job(f"evaluate {name}", command, [name]))
    return jobs


def ship_zoo(out: Path, zoo: Path = ZOO) -> None:
    """Copy the finished Runs of `out` into the zoo: float16 EMA weights, metrics, records, pictures."""
    for name in TOKENIZERS:
        Run.from_pretrained(out / name).save_pretrained(zoo / name, parts=("tokenizer",))
    for name in GENERATORS:
        Run.from_pretrained(out / name).save_pretrained(zoo / name, parts=("generator", "projector"))
