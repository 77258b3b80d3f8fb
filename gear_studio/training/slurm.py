"""Jobs on a Slurm cluster: each is submitted through submitit once what it needs is done.

The command that submits them stays and watches, on a login node say. When it is killed its jobs go on, and
the same command finds them again by the numbers in their logs' folder. A job that reaches its time limit
writes a checkpoint, is queued again and goes on. When one fails, what hangs on it is not started; the others
are.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from gear_studio.errors import FailedError, InputError, NotInstalledError
from gear_studio.files import one_line, read_json, write_json
from gear_studio.ranges import Count, Natural, Positive
from gear_studio.training.jobs import PAUSE, Job, last_line, lock_file, log_of, say

if TYPE_CHECKING:
    import submitit

WARNING = 300  # seconds before its time limit in which a job writes a checkpoint
REQUEUED = 100  # times that a job may reach its time limit


@dataclass(frozen=True)
class Cluster:
    """Where jobs run. All but `launcher` is for Slurm."""

    launcher: Literal["local", "slurm"] = "local"
    """local: processes on this machine. slurm: every training and evaluation is a Slurm job of its own."""
    partition: str | None = None
    """Of Slurm. Default: the cluster's own."""
    hours: Positive = 24.0
    """Time limit of a job; one that needs longer goes on in the next."""
    gpus: Natural = 1
    """GPUs a job, of one node; with several, each trains as `accelerate launch` would start it."""
    cpus: Count = 8
    """CPU cores a job."""
    sbatch: tuple[str, ...] = ()
    """Other options of sbatch, as NAME=VALUE: account=lab mem=64G constraint=a100."""

    def check(self) -> None:
        """Raise ValueError for options of Slurm without it, and for one that is no NAME=VALUE."""
        given = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
        if self.launcher == "local" and given:
            raise InputError(f"--{given[0]} is for --launcher slurm; add that, or leave it out")
        for option in self.sbatch:
            name, sign, _ = option.partition("=")
            if not name.strip("-") or not sign:
                raise InputError(f"--sbatch {option!r} is no NAME=VALUE, such as account=lab")

    @property
    def parameters(self) -> dict[str, Any]:
        """What submitit is to tell Slurm."""
        more = dict(option.lstrip("-").split("=", 1) for option in self.sbatch)
        asked: dict[str, Any] = {"time": max(1, round(self.hours * 60)), "cpus_per_task": self.cpus}
        asked |= {"gpus_per_node": self.gpus} if self.gpus else {}
        asked |= {"partition": self.partition} if self.partition else {}
        asked["srun_args"] = [f"--cpus-per-task={self.cpus}"]  # which srun does not take over from sbatch
        return asked | {"signal_delay_s": WARNING, "additional_parameters": more}

    def program(self, command: list[str]) -> list[str]:
        """A `gear-studio` command line as a job runs it."""
        launcher = []
        if self.gpus > 1:  # port 0: any that is free, for jobs that share a node
            launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(self.gpus)]
            launcher += ["--num_machines", "1", "--main_process_port", "0", "-m"]
        return [sys.executable, "-m", *launcher, "gear_studio", *command]


@dataclass
class Work:
    """What a job does: run a program and add what it prints to a log. Submitit calls it, and `checkpoint`
    when the time is over."""

    program: list[str]
    log: str
    threads: int
    alone: bool = True  # one process, which hears the signal to pause
    process: subprocess.Popen | None = field(default=None, repr=False)

    def __call__(self) -> None:
        """Raise RuntimeError where the program fails."""
        with open(self.log, "a") as file:
            self.process = subprocess.Popen(
                self.program,
                env=os.environ | {"OMP_NUM_THREADS": str(self.threads)},
                stdout=file,
                stderr=subprocess.STDOUT,
                # Slurm's warning reaches all processes of a job, and is for this one.
                preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
            )
        while self.process.poll() is None:  # not wait(), inside of which no handler could wait, too
            time.sleep(0.2)
        if self.process.returncode:
            raise FailedError(f"exit {self.process.returncode}")

    def checkpoint(self) -> Any:
        """End the program, after a checkpoint where it can be asked for one, and return what goes on."""
        from submitit.helpers import DelayedSubmission

        if self.process and self.process.poll() is None:
            self.process.send_signal(PAUSE if PAUSE and self.alone else signal.SIGTERM)
            end = time.monotonic() + WARNING - 30
            while self.process.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
            self.process.kill()
        return DelayedSubmission(Work(self.program, self.log, self.threads, self.alone))


def new_executor(cluster: Cluster, folder: Path) -> submitit.Executor:
    """What submits jobs. folder: of submitit's own files.

    Raises ImportError without submitit, RuntimeError where there is no Slurm or it refuses an option."""
    try:
        submitit = importlib.import_module("submitit")
    except ImportError as error:
        raise NotInstalledError(
            "--launcher slurm needs submitit; install it with "
            "`uv pip install -c constraints.txt -e '.[slurm]'` (or pip install 'gear-studio[slurm]')"
        ) from error
    if not (shutil.which("sbatch") and shutil.which("srun")):
        raise FailedError(
            "--launcher slurm finds no Slurm here (sbatch and srun); give the command on a login node of the "
            "cluster, or leave --launcher out"
        )
    executor = submitit.SlurmExecutor(folder, max_num_timeout=REQUEUED)
    executor.update_parameters(**cluster.parameters)
    return executor


@dataclass
class _Submitted:
    job: submitit.Job
    log: Path
    ticket: Path  # where its number is written, until it has ended
    lock: TextIO

    def describe(self, error: Exception) -> str:
        """Why the job has failed: the last that it printed or, where it came to print nothing, what Slurm's
        part of it says."""
        log = self.log
        if not log.exists() or log.stat().st_mtime < self.ticket.stat().st_mtime:
            log = self.job.paths.stderr
        said = last_line(log) or one_line(error)
        return f"job {self.job.job_id}, {self.job.state.lower()}; see {log}, which ends with {said!r}"


def run(
    jobs: list[Job], cluster: Cluster, logs: Path, at_once: int | None = None, pause: float = 2.0
) -> None:
    """Run jobs on a cluster as their needs are met. When all that can be done is done, raise RuntimeError
    naming those that failed, their logs, and what was not started for it.

    logs: folder of one file a job with what it prints. at_once: how many may be submitted together; None:
    all. pause: seconds from one look at the cluster to the next. Raises as `Cluster.check` and
    `new_executor`."""
    cluster.check()
    logs.mkdir(parents=True, exist_ok=True)
    executor = new_executor(cluster, logs / "submitit")
    waiting, done, elsewhere = list(jobs), set[str](), set[str]()
    running: dict[str, _Submitted] = {}
    failed: dict[str, str] = {}
    lost: list[str] = []
    while waiting or running:
        for job in list(waiting):
            if missed := [need for need in job.needs if need in failed or need in lost]:
                say(f"{job.name}: not started, it needs {missed[0]}")
                waiting.remove(job)
                lost.append(job.name)
            elif done.issuperset(job.needs) and len(running) < (at_once or len(jobs)):
                log = log_of(job, logs)
                lock = lock_file(log.with_suffix(".lock"))
                if lock is None:
                    if job.name not in elsewhere:
                        say(f"{job.name}: another process is at it; waiting for that")
                    elsewhere.add(job.name)
                    continue
                waiting.remove(job)
                if job.finished():
                    say(f"{job.name}: finished before")
                    done.add(job.name)
                    lock.close()
                else:
                    running[job.name] = _submit(job, cluster, executor, log, lock)
        for name, submitted in list(running.items()):
            if not submitted.job.done():
                continue
            del running[name]
            if error := submitted.job.exception():
                failed[name] = f"{name} failed: {submitted.describe(error)}"
                say(failed[name])
            else:
                done.add(name)
                say(f"{name}: done, {len(done)} of {len(jobs)}")
            submitted.ticket.unlink(missing_ok=True)
            submitted.lock.close()
        if running or waiting:
            time.sleep(pause)
    if failed:
        not_started = f". Not started for that: {', '.join(lost)}" if lost else ""
        raise FailedError(f"{'. '.join(failed.values())}{not_started}. Run again to go on from there")


def _submit(job: Job, cluster: Cluster, executor: submitit.Executor, log: Path, lock: TextIO) -> _Submitted:
    """Submit a job, or find it again where it was submitted before and has not ended."""
    ticket = log.with_suffix(".submitted.json")
    if ticket.is_file():
        number = read_json(ticket, "a submitted job")["job"]
        before = executor.job_class(executor.folder, number)
        if not before.done(force_check=True):
            say(f"{job.name}: job {number} is on the cluster already (if it is not, delete {ticket})")
            return _Submitted(before, log, ticket, lock)
    work = Work(cluster.program(job.command), str(log.absolute()), cluster.cpus, cluster.gpus < 2)
    try:
        executor.update_parameters(job_name=log.stem)
        submitted = executor.submit(work)
    except Exception as error:  # of sbatch, in submitit's words
        raise FailedError(
            f"{job.name} could not be submitted ({one_line(error)}); change the options of --launcher slurm"
        ) from error
    write_json(ticket, {"job": submitted.job_id})
    say(f"{job.name}: job {submitted.job_id}, gear-studio {' '.join(job.command)}")
    return _Submitted(submitted, log, ticket, lock)
