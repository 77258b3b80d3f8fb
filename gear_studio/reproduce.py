"""Retrain everything that ships: the zoo's jobs, what each waits for, and a runner that starts as many as
fit.

A job is a `gear-studio` command line and nothing more, so that every shipped Run records a command anyone can
repeat. Every job resumes by itself; running the whole again does what is missing. Teacher and judge are
retrained and measured too, but the Runs keep aligning with, and being measured by, the shipped ones:
distances in the feature spaces of two teachers do not compare.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from gear_studio.runs import ZOO, Run
from gear_studio.training.recipes import BUDGETS

TOKENIZERS = ("warmup", "continued", "gear")
GENERATORS = {"generator-baseline": "warmup", "generator-continued": "continued", "generator-gear": "gear"}


@dataclass
class Job:
    name: str
    command: list[str]
    needs: list[str] = field(default_factory=list)


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

    todo = [train("warmup", "warmup", "warmup"), supervise("teacher"), supervise("judge")]
    todo += [train("gear", "joint", "gear", "warmup"), train("continued", "joint", "continued", "warmup")]
    for name, parent in GENERATORS.items():
        todo.append(train(name, "generator", name.removeprefix("generator-"), parent))
    samples = ["--samples", {"shipped": "5000", "quick": "2000", "smoke": "24"}[budget]]
    for name in (*TOKENIZERS, *GENERATORS):
        todo.append(Job(f"evaluate {name}", ["evaluate", str(out / name), *samples], [name]))
    return todo


def run(todo: list[Job], at_once: int, threads: int) -> None:
    """Run jobs as their needs are met, at most `at_once` together with `threads` CPU threads each; stop at
    the first failure.

    Each writes to its own log beside the others' folders; RuntimeError names the job and the log that
    failed."""
    waiting, running, done = list(todo), {}, set()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    logs = Path(todo[0].command[todo[0].command.index("--out") + 1]).parent / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            for job in [job for job in waiting if done.issuperset(job.needs)][: at_once - len(running)]:
                waiting.remove(job)
                log = logs / (job.name.replace(" ", "-") + ".log")
                print(
                    f"[{time.strftime('%H:%M:%S')}] {job.name}: gear-studio {' '.join(job.command)}",
                    flush=True,
                )
                command = [sys.executable, "-m", "gear_studio", *job.command]
                with log.open("a") as file:
                    process = subprocess.Popen(
                        command, env=environment, stdout=file, stderr=subprocess.STDOUT
                    )
                running[job.name] = process, log
            time.sleep(0.5)
            for name, (process, log) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode:
                    raise RuntimeError(
                        f"{name} failed (exit {process.returncode}); see {log}. Run again to go on from there"
                    )
                print(f"[{time.strftime('%H:%M:%S')}] {name}: done", flush=True)
                done.add(name)
    finally:
        for process, _ in running.values():
            process.terminate()


def ship(out: Path, zoo: Path = ZOO) -> None:
    """Copy the finished Runs of `out` into the zoo: float16 EMA weights, metrics, records, pictures."""
    for name in TOKENIZERS:
        Run.from_pretrained(out / name).save_pretrained(zoo / name, parts=("tokenizer",))
    for name in GENERATORS:
        Run.from_pretrained(out / name).save_pretrained(zoo / name, parts=("generator", "projector"))
