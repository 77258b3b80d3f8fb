"""Trainings side by side and one after another in a folder of Runs, as jobs that outlive whoever asked.

A study is one job, too: a command that makes several Runs, one after another, and ends in a file. It takes
all places, since it trains as many Runs at a time as there are.

What is on disk is the truth, so that everyone who looks sees the same, also after a restart:

    RUNS/logs/NAME.job.json   what was asked for, a `Queued`
    RUNS/logs/NAME.lock       held by the training's process for as long as it runs
    RUNS/logs/NAME.log        what it printed
    RUNS/NAME/                the Run

Every process with a `Queue` of the folder may start what waits; a lock lets one do so at a time.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gear_studio import data, locks
from gear_studio.errors import FailedError, InputError, UnknownNameError
from gear_studio.files import one_line, write_json
from gear_studio.run_files import read_config, read_metrics
from gear_studio.runs import Run
from gear_studio.training import jobs
from gear_studio.training.recipes import STAGES
from gear_studio.training.request import Training

RUNNING = ("running", "pausing", "stopping")
ENDED = ("finished", "paused", "stopped", "failed")
SUFFIX = ".job.json"
LAST_LINES = 8  # of a log that are told


class Queued(BaseModel):
    """One training or study asked for. command: the words after `gear-studio`. place: the folder they are
    said in. needs: the run that has to be finished before, beside it; "" where there is none. at: seconds
    since 1970. wanted: what its visitor wants of it. host, pid: of its process, once it was started; 0
    before. makes, result: of a study, its Runs in their order and the file that it ends in, as paths in the
    folder of Runs; empty of a training, which makes the Run of its name."""

    model_config = ConfigDict(strict=True, frozen=True)

    command: list[str]
    place: str
    needs: str = ""
    at: float
    wanted: Literal["run", "pause", "stop"] = "run"
    host: str = ""
    pid: int = 0
    makes: list[str] = []
    result: str = ""


@dataclass(frozen=True)
class Standing:
    """How a training or a study stands.

    state: waiting, one of RUNNING, or one of ENDED. note: what it waits for. step, steps: done
    and of all, of a study its trainings; 0 where that is not known yet. seconds_left: None where that is not
    known. result: of a study, as in `Queued`. begun: of a study, its trainings that are not finished."""

    name: str
    command: list[str]
    state: str
    note: str = ""
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    result: str = ""
    begun: tuple["Standing", ...] = ()


def in_a_row(training: Training, folder: Path, name: str = "") -> list[Training]:
    """A training and all stages that it builds on, from the warm-up on, each a Run in `folder`.

    name: of the last Run, from which the others take theirs; "" gives all the names that `gear-studio train`
    gives. Raises as `Training.completed`."""
    last = training.completed()
    stages = STAGES[: STAGES.index(last.stage) + 1]
    if last.arm == "baseline":
        stages = ("warmup", "generator")
    row: list[Training] = []
    for stage in stages:
        each = training
        if stage != last.stage:
            arm = None if stage == "warmup" else training.arm
            each = replace(training, stage=stage, arm=arm, start=None)
        own = f"{name}-{stage}" if name and stage != last.stage else name
        parent = row[-1].out if row else training.parent
        row.append(in_folder(replace(each, parent=parent), folder, own))
    return row


def in_folder(training: Training, folder: Path, name: str = "") -> Training:
    """A training as a Run in a folder. name: "" gives the one that `gear-studio train` gives."""
    out = training.completed().out
    assert out is not None
    return replace(training, out=folder / (name or out.name))


def shortest(training: Training) -> Training:
    """The same training, which leaves out the arm and the folders that follow from the rest."""
    short = whole = training.completed()
    for field in ("arm", "parent", "out"):
        left_out: dict[str, Any] = {field: None}
        shorter = replace(short, **left_out)
        short = shorter if shorter.completed() == whole else short
    return short


def list_trainings(runs: Path) -> list[Path]:
    """The files of the trainings that were asked for in a folder of Runs."""
    return list((runs / "logs").glob(f"*{SUFFIX}"))


class Queue:
    """The trainings of a folder of Runs. at_once: so many run at a time, whoever started them. device: where
    the app has its trainings compute, as `train --device` takes it.

    Every method raises ValueError where a file of the queue is damaged."""

    def __init__(self, runs: Path, at_once: int | None = None, device: str | None = None):
        self.runs, self.logs, self.device = runs, runs / "logs", device
        self.at_once, self.threads = jobs.share_cores(at_once, device)
        self._children: list[subprocess.Popen] = []

    def add(self, trainings: Sequence[Training]) -> list[str]:
        """Ask for trainings, each a Run in the folder; those of a row wait for the ones before. One that was
        asked for already goes on. Returns their names.

        Raises ValueError and FileNotFoundError for what `gear-studio train` would refuse at once, and for a
        name that another training has; then none is asked for. Raises as `jobs.check_system`."""
        jobs.check_system()
        with locks.hold(self.logs, wait=True):
            asked = [self._judge(training.completed(), trainings) for training in trainings]
            for number, (name, queued) in enumerate(asked):
                if name in self.read():
                    self.resume(name)
                else:  # a little later than the one before: this is their order
                    self._write(name, queued.model_copy(update={"at": queued.at + number * 1e-3}))
        return [name for name, _ in asked]

    def add_study(self, name: str, command: Sequence[str], makes: Sequence[Path], result: Path) -> None:
        """Ask for a study; one that was asked for already goes on. command: the words after `gear-studio`.
        makes: the folders of its Runs. result: the file that it ends in; all of them in the folder of Runs.

        Raises ValueError where another command has the name. Raises as `jobs.check_system`."""
        jobs.check_system()
        asked = Queued(
            command=list(command),
            place=str(Path.cwd()),
            at=time.time(),
            makes=[str(folder.relative_to(self.runs)) for folder in makes],
            result=str(result.relative_to(self.runs)),
        )
        with locks.hold(self.logs, wait=True):
            there = self.read().get(name)
            _check_same(self.runs / name, there, asked)
            if there:
                self.resume(name)
            else:
                self._write(name, asked)

    def _judge(self, training: Training, row: Sequence[Training]) -> tuple[str, Queued]:
        """The name of a completed training and what is written about it. row: what is asked for with it.
        Raises what the training itself would raise before it loads anything large."""
        from gear_studio.training import build, loop  # which import Accelerate

        out, parent, there = training.out, training.parent, self.read()
        assert out is not None
        if out.parent != self.runs or out == self.logs:
            raise InputError(f"{out} is no run in {self.runs}; choose another name")
        coming = {each.out.name for each in map(Training.completed, row) if each.out}
        coming |= {name for name, queued in there.items() if not queued.makes}
        needs = parent.name if parent and parent.parent == self.runs and parent.name in coming else ""
        build.check(replace(training, parent=None) if needs else training)
        if data.find_source(training.source).on_disk:
            data.load(training.source, "train", training.resolved.tokenizer.image_size, training.folder)
        command = shortest(training).command()
        asked = Queued(command=command, place=str(Path.cwd()), needs=needs, at=time.time())
        _check_same(out, there.get(out.name), asked)
        if out.name not in there and (out / "config.json").exists():
            loop.compare(build.gather_parts(training))
        return out.name, asked

    def read(self) -> dict[str, Queued]:
        """All trainings by name, first the one that was asked for first."""
        found = {}
        for path in list_trainings(self.runs):
            with suppress(FileNotFoundError):  # removed since
                found[path.name.removesuffix(SUFFIX)] = _read(path)
        return dict(sorted(found.items(), key=lambda item: item[1].at))

    def states(self) -> dict[str, tuple[str, str]]:
        """State and note of every training, by name: `standings` without how far they are."""
        return {name: self._state(name, each) for name, each in self.read().items()}

    def makes(self) -> list[Path]:
        """The folders of all Runs that were asked for, there or not."""
        return [self.runs / each for name, queued in self.read().items() for each in queued.makes or [name]]

    def standings(self) -> list[Standing]:
        """How all trainings stand, in the order in which they were asked for."""
        return [self._standing(name, each) for name, each in self.read().items()]

    def standing(self, name: str) -> Standing:
        return self._standing(name, self._queued(name))

    def advance(self) -> None:
        """Start the trainings whose turn it is. Where a study is the next, no other overtakes it."""
        self._children = [child for child in self._children if child.poll() is None]
        if ("waiting", "") not in self.states().values():
            return
        with locks.hold(self.logs, wait=True):
            states = self.states()
            places = {name: self.at_once if each.makes else 1 for name, each in self.read().items()}
            free = self.at_once - sum(places[name] for name, (state, _) in states.items() if state in RUNNING)
            for name in [name for name, state in states.items() if state == ("waiting", "")]:
                free -= places[name]
                if free < 0:
                    break
                self._start(name)

    def pause(self, name: str) -> None:
        """Have a training, or those of a study, write a checkpoint and end; one that waits is held back."""
        if jobs.PAUSE is None:
            raise FailedError("this system (it is Windows) has no signal to pause a training with; stop it")
        self._end(name, "pause", jobs.PAUSE)

    def stop(self, name: str) -> None:
        """End a training, or a study with its trainings, at once: what they did since their last checkpoint
        is lost."""
        self._end(name, "stop", signal.SIGTERM)

    def resume(self, name: str) -> None:
        """Let a training go on from its last checkpoint, when it is its turn."""
        with locks.hold(self.logs, wait=True):
            if self.standing(name).state in ("paused", "stopped", "failed"):
                self._want(name, "run")

    def remove(self, name: str) -> None:
        """Take a training that has ended off the list; its Run and its log stay."""
        with locks.hold(self.logs, wait=True):
            if (state := self.standing(name).state) not in ENDED:
                raise InputError(f"{name} is {state}; stop it first")
            (self.logs / f"{name}{SUFFIX}").unlink()

    def last_lines(self, name: str) -> str:
        """The end of what a training printed, as a terminal shows it; "" before it printed anything."""
        path = self.logs / f"{name}.log"
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            text = file.read().decode(errors="replace")
        # A progress bar writes its line again and again.
        lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
        return "\n".join([line for line in lines if line][-LAST_LINES:])

    def _queued(self, name: str) -> Queued:
        queued = self.read().get(name)
        if queued is None:
            raise UnknownNameError(f"there is no training {name!r} in {self.runs}")
        return queued

    def _write(self, name: str, queued: Queued) -> None:
        write_json(self.logs / f"{name}{SUFFIX}", queued.model_dump())

    def _want(self, name: str, wanted: Literal["run", "pause", "stop"]) -> None:
        changes: dict = {"wanted": wanted} | ({"pid": 0, "host": ""} if wanted == "run" else {})
        self._write(name, self._queued(name).model_copy(update=changes))

    def _start(self, name: str) -> None:
        lock = jobs.lock_file(self.logs / f"{name}.lock")
        if lock is None:  # held just now by one who asked; next time
            return
        with lock:
            queued = self._queued(name)
            log = self.logs / f"{name}.log"
            # In a session of its own: it goes on when the app that started it ends.
            child = jobs.start(
                queued.command, log, lock, self.threads, cwd=queued.place, start_new_session=True
            )
            self._children.append(child)
            self._write(name, queued.model_copy(update={"pid": child.pid, "host": socket.gethostname()}))

    def _end(self, name: str, wanted: Literal["pause", "stop"], how: signal.Signals) -> None:
        with locks.hold(self.logs, wait=True):
            state, queued = self.standing(name).state, self._queued(name)
            if state not in ("waiting", "running", "pausing"):
                return
            if state != "waiting":
                if not queued.pid or queued.host != socket.gethostname():
                    raise FailedError(f"{name} runs on {queued.host or 'another machine'}; end it there")
                kill = os.killpg if queued.makes else os.kill  # data-loading processes end with theirs
                with suppress(ProcessLookupError):  # it has ended just now
                    kill(queued.pid, how)
            self._want(name, wanted)

    def _standing(self, name: str, queued: Queued) -> Standing:
        state, note = self._state(name, queued)
        if not queued.makes:
            return Standing(name, queued.command, state, note, *self._progress(name, state))
        left = [each for each in queued.makes if not is_finished(self.runs / each)]
        begun = tuple(
            Standing(each, [], state, "", *self._progress(each, state))
            for each in left
            if (self.runs / each / "config.json").is_file()
        )
        steps = len(queued.makes)
        return Standing(
            name, queued.command, state, note, steps - len(left), steps, None, queued.result, begun
        )

    def _state(self, name: str, queued: Queued) -> tuple[str, str]:
        if jobs.is_locked(self.logs / f"{name}.lock"):
            return {"run": "running", "pause": "pausing", "stop": "stopping"}[queued.wanted], ""
        if self._is_done(name, queued):
            return "finished", ""
        if queued.wanted != "run":
            return {"pause": "paused", "stop": "stopped"}[queued.wanted], ""
        if queued.pid:
            return "failed", ""
        return "waiting", queued.needs if queued.needs and not is_finished(self.runs / queued.needs) else ""

    def _is_done(self, name: str, queued: Queued) -> bool:
        if not queued.makes:
            return is_finished(self.runs / name)
        result = self.runs / queued.result  # that may be there of an earlier one
        return bool(queued.pid) and result.is_file() and result.stat().st_mtime >= queued.at

    def _progress(self, name: str, state: str) -> tuple[int, int, float | None]:
        """Steps done, steps of all, and the seconds that the others take."""
        folder = self.runs / name
        try:
            steps = int(read_config(folder)["recipe"]["steps"])
            if state == "finished":
                return steps, steps, None
            rows = read_metrics(folder)
        except (OSError, ValueError, KeyError):  # not begun; or damaged, which the training says itself
            return 0, 0, None
        if not rows:
            return 0, steps, None
        step, seconds = rows[-1]["step"], rows[-1].get("seconds")
        left = seconds / step * (steps - step) if seconds and step and state == "running" else None
        return step, steps, left


def is_finished(folder: Path) -> bool:
    """Whether a Run that is finished lies in a folder."""
    try:
        return Run(folder).finished
    except (OSError, ValueError):
        return False


def _check_same(what: Path, there: Queued | None, asked: Queued) -> None:
    """Raise ValueError where the name is that of another command."""
    if there and there.command != asked.command:
        raise InputError(
            f"{what} is asked for already, by `gear-studio {' '.join(there.command)}`; choose another name"
        )


def _read(path: Path) -> Queued:
    try:
        return Queued.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path} is damaged ({one_line(error)}); delete it") from error
