"""Jobs: `gear-studio` command lines, what each waits for, and a runner that starts as many as fit.

A job is a command line and nothing more, so that every Run records a command anyone can repeat. Every job
resumes by itself: running all of them again does what is missing.

A job holds a lock for as long as it runs. It goes on when the process that started it is killed, and a second
start waits for it instead of training into the same folder. Two sets of jobs that share a job wait likewise.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from gear_studio.errors import FailedError, InputError

try:
    import fcntl
except ImportError:  # on Windows, whose locks no child takes over
    fcntl = None  # type: ignore[assignment]

# Asks a training to write a checkpoint and end; not on Windows, which has none to ask with.
PAUSE: signal.Signals | None = getattr(signal, "SIGUSR1", None)


@dataclass
class Job:
    """A command to run once its needs are done.

    command: the words after `gear-studio`. needs: names of other jobs. finished: called before the job would
    start; if it returns True, the job counts as done and is not started."""

    name: str
    command: list[str]
    needs: list[str] = field(default_factory=list)
    finished: Callable[[], bool] = lambda: False


def share_cores(at_once: int | None = None, device: str | None = None) -> tuple[int, int]:
    """How many jobs to run at once, and how many CPU threads each of them gets. at_once: default: one job for
    each CPU core up to 3, or 3 on a GPU. device: where they compute. Raises as `choose_device`."""
    from gear_studio.devices import choose_device  # imports torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if at_once is not None and at_once < 1:
        raise InputError(f"at_once is {at_once}; it takes at least 1 job at a time")
    on_cpu = choose_device(device).type == "cpu"
    at_once = at_once or (min(3, cores) if on_cpu else 3)
    return at_once, max(1, cores // at_once)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def describe_left(seconds: float) -> str:
    """How long the rest takes, where there is one, roughly: jobs differ."""
    if seconds == 0:
        return ""
    if seconds < 90:
        return f", about {seconds:.0f} s left"
    return (
        f", about {seconds / 60:.0f} min left" if seconds < 5400 else f", about {seconds / 3600:.1f} h left"
    )


def check_system() -> None:
    """Raise RuntimeError on Windows, which has no locks that a child takes over."""
    if fcntl is None:
        raise FailedError(
            "several trainings side by side need locks that this system does not have (it is Windows); use "
            "Linux, macOS or WSL, or give the commands one by one (of a study `gear-studio study NAME "
            "--commands`)"
        )


def lock_file(path: Path) -> TextIO | None:
    """Open a file and lock it, until it is closed here and in every process that it was passed to.

    None when another process holds the lock. Raises as `check_system`."""
    check_system()
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file. To ask hinders no other who asks."""
    if fcntl is None or not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def start(command: list[str], log: Path, lock: TextIO, threads: int, **more: Any) -> subprocess.Popen:
    """Start a command in a process that holds `lock`, with so many CPU threads. log: what it prints is added
    to this file. more: for `subprocess.Popen`."""
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "gear_studio", *command],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=[lock.fileno()],
            **more,
        )


def log_of(job: Job, logs: Path) -> Path:
    return logs / (job.name.replace(" ", "-") + ".log")


def last_line(log: Path) -> str:
    """The last line of a log; "" of one that is empty or not there."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return lines[-1] if lines else ""


def run(jobs: list[Job], at_once: int, threads: int, logs: Path) -> None:
    """Run jobs as their needs are met, at most `at_once` together with `threads` CPU threads each; stop at
    the first failure.

    logs: folder of one file a job with what it prints. Raises ValueError unless at least one may run at a
    time, RuntimeError naming the job that failed, its log and the log's last line."""
    if at_once < 1:
        raise InputError(f"at_once is {at_once}; it takes at least 1 job at a time")
    waiting, done, seen_elsewhere = list(jobs), set[str](), set[str]()
    running: dict[str, tuple[subprocess.Popen, Path]] = {}
    began, took = dict[str, float](), list[float]()
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            for job in [job for job in waiting if done.issuperset(job.needs)]:
                if len(running) >= at_once:
                    break
                log = log_of(job, logs)
                lock = lock_file(log.with_suffix(".lock"))
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
                    running[job.name] = start(job.command, log, lock, threads), log
                began[job.name] = time.monotonic()
            time.sleep(0.1)
            for name, (process, log) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode:
                    raise FailedError(
                        f"{name} failed (exit {process.returncode}); see {log}, which ends with "
                        f"{last_line(log)!r}. Run again to go on from there"
                    )
                done.add(name)
                took.append(time.monotonic() - began[name])
                left = (len(jobs) - len(done)) * sum(took) / len(took) / at_once
                say(f"{name}: done, {len(done)} of {len(jobs)}{describe_left(left)}")
    finally:
        for process, _ in running.values():
            process.terminate()
