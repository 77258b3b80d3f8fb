"""Jobs: `gear-studio` command lines, what each waits for, and a runner that starts as many as fit.

A job is a command line and nothing more, so that every Run records a command anyone can repeat. Every job
resumes by itself; running the whole again does what is missing.

A job holds a lock for as long as it runs. When whoever started it is killed, it goes on, and a second start
waits for it instead of training into the same folder; so do two sets of jobs that share one.
"""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO


@dataclass
class Job:
    """finished: asked before it is started; a job that answers True is not. needs: names of other jobs."""

    name: str
    command: list[str]
    needs: list[str] = field(default_factory=list)
    finished: Callable[[], bool] = lambda: False


def side_by_side(at_once: int | None = None) -> tuple[int, int]:
    """How many jobs to run at once, and CPU threads for each. Default: one job for each CPU core up to 3, or
    3 on a GPU."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = at_once or (3 if torch.cuda.is_available() else min(3, cores))
    return at_once, max(1, cores // at_once)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def locked(path: Path) -> TextIO | None:
    """A file that is locked until it is closed, here and in every process it was passed to; None when another
    one holds it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def run(todo: list[Job], at_once: int, threads: int, logs: Path) -> None:
    """Run jobs as their needs are met, at most `at_once` together with `threads` CPU threads each; stop at
    the first failure.

    logs: folder where each writes its own. RuntimeError names the job that failed, its log and how that
    ends."""
    waiting, running, done, seen_elsewhere = list(todo), {}, set(), set()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            for job in [job for job in waiting if done.issuperset(job.needs)]:
                if len(running) >= at_once:
                    break
                log = logs / (job.name.replace(" ", "-") + ".log")
                lock = locked(log.with_suffix(".lock"))
                if lock is None:
                    if job.name not in seen_elsewhere:
                        say(f"{job.name}: another process is at it; waiting for that")
                    seen_elsewhere.add(job.name)
                    continue
                with lock:
                    waiting.remove(job)
                    if job.finished():
                        say(f"{job.name}: finished before")
                        done.add(job.name)
                        continue
                    say(f"{job.name}: gear-studio {' '.join(job.command)}")
                    with log.open("a") as file:
                        process = subprocess.Popen(
                            [sys.executable, "-m", "gear_studio", *job.command],
                            env=environment,
                            stdout=file,
                            stderr=subprocess.STDOUT,
                            pass_fds=[lock.fileno()],
                        )
                running[job.name] = process, log
            time.sleep(0.1)
            for name, (process, log) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode:
                    *_, last = log.read_text().splitlines() or [""]
                    raise RuntimeError(
                        f"{name} failed (exit {process.returncode}); see {log}, which ends with {last!r}. "
                        "Run again to go on from there"
                    )
                say(f"{name}: done")
                done.add(name)
    finally:
        for process, _ in running.values():
            process.terminate()
