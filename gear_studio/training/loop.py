"""The training loop: steps, metrics, checkpoints and records of whatever is trained, a `Trainee`.

`train` runs it on a stage of GEAR: it checks what was asked for, builds it, claims the run's folder, restores
what lies there, and goes on to the last step. `supervised` runs it on the small world's teacher and judges.

Four promises, and how they are kept:

- *A killed run continues exactly.* Every step takes its randomness from (seed, step, process) and its images
  from (seed, step), so a checkpoint needs no random state; it is written whole or not at all, and metrics
  logged after it are dropped on resuming.
- *CUDA is never waited for.* Metrics are summed on the device and read back once every `log_every` steps.
- *A training that is asked to pause loses nothing.* SIGUSR1 has it write a checkpoint at the end of its
  window of metrics, and end.
- *A diverged run says so.* The first step at which any loss was not finite is kept on the device and reported
  at the next log, before a checkpoint can be overwritten.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from gear_studio import locks
from gear_studio.devices import to_float64
from gear_studio.errors import FailedError
from gear_studio.files import naming, to_json
from gear_studio.runs import Run
from gear_studio.training import build, run_folder
from gear_studio.training.checkpoints import Checkpoints, drop_metrics_after
from gear_studio.training.jobs import PAUSE
from gear_studio.training.recipes import Rhythm
from gear_studio.training.request import Training
from gear_studio.training.trackers import finish_trackers, start_trackers

T = TypeVar("T")

FIRST_CHECKPOINT = 30.0  # seconds after which a training does not wait longer for its first checkpoint


class DivergedError(FailedError):
    """A loss became NaN or infinite."""


class PausedError(FailedError):
    """The training was asked to pause, and has written a checkpoint."""


class Trainee(Protocol):
    """What the loop trains: a `build.StageTrainee`, or a `supervised.SupervisedTrainee`.

    Each process has one, and the loop calls the same methods in all of them."""

    @property
    def title(self) -> str:
        """On the progress bar."""

    @property
    def shown(self) -> Sequence[str]:
        """The metrics on the progress bar."""

    @property
    def digits(self) -> int | None:
        """To how many decimal places metrics are written; None writes them as they are."""

    @property
    def record(self) -> Mapping[str, Any]:
        """What record.json says of this kind of training, beside what it says of every one."""

    def batches(self, start: int) -> Iterable[Any]:
        """What the steps after `start` are given, to the last one."""

    def step(self, number: int, batch: Any) -> dict[str, Tensor]:
        """Step `number`, counted from 1. Returns its losses as scalars, which stay on the device."""

    def validate(self) -> dict[str, float]:
        """More metrics where there is a checkpoint."""

    def measure(self, number: int) -> dict[str, float]:
        """More metrics wherever there is a log."""

    def state_dict(self) -> dict[str, dict]:
        """All that continuing needs, on the main process."""

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """Take up such a state, before the first step."""

    def save_progress(self, number: int, write_record: Callable[[Path], None]) -> None:
        """Write what is to be looked at beside a checkpoint. `write_record(folder)`: a finished record."""

    def save(self) -> Mapping[str, Any]:
        """Write the trained weights. Returns what the record says of the end."""


def seed_step(seed: int, step: int, process: int) -> None:
    torch.manual_seed(((seed * 1_000_003 + step) * 1_009 + process) % 2**63)


class Meter:
    """Running means of scalars that stay on their device until `read`. exact: sums are divided as float64."""

    def __init__(self, accelerator: Accelerator, exact: bool = False):
        self.accelerator, self.exact = accelerator, exact
        self.sums: dict[str, Tensor] = {}
        self.first_bad: dict[str, Tensor] = {}
        self.count = 0

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        self.count += 1
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums.get(name, 0) + value
            bad = torch.where(value.isfinite(), torch.inf, float(step))
            self.first_bad[name] = torch.minimum(self.first_bad.get(name, bad), bad)

    def read(self) -> tuple[dict[str, float], tuple[int, str] | None]:
        """Means over the steps and processes since the last read, and the first (step, loss) that was not
        finite."""
        names = list(self.sums)
        sums = torch.stack([self.sums[n] for n in names])
        sums = to_float64(sums) if self.exact else sums
        means = self.accelerator.reduce(sums / self.count, "mean").tolist()
        bad = self.accelerator.gather(torch.stack([self.first_bad[n] for n in names])[None]).amin(0).tolist()
        self.sums, self.first_bad, self.count = {}, {}, 0
        first = min(
            range(len(names)), key=bad.__getitem__
        )  # a tie goes to the loss computed first: the cause
        diverged = None if bad[first] == torch.inf else (int(bad[first]), names[first])
        return dict(zip(names, means, strict=True)), diverged


class Loop:
    """The steps of a trainee into a folder that is claimed for it: `restore` what lies there, then `run`."""

    def __init__(
        self, trainee: Trainee, rhythm: Rhythm, seed: int, out: Path, accelerator: Accelerator, progress: bool
    ):
        self.trainee, self.rhythm, self.seed, self.out = trainee, rhythm, seed, out
        self.accelerator, self.main = accelerator, accelerator.is_main_process
        self.progress = progress and self.main
        self.checkpoints, self.metrics = Checkpoints(out / "checkpoints"), out / "metrics.jsonl"
        self.start, self.seconds_before, self.began = 0, 0.0, time.monotonic()
        self.has_checkpoint = False

    @property
    def seconds(self) -> float:
        """Spent on training so far, all starts together."""
        return self.seconds_before + time.monotonic() - self.began

    def restore(self) -> None:
        """Go on from the newest checkpoint, if there is one. Which that is, the main process says: others may
        see a network disk as it was before."""
        if path := agree(self.accelerator, self.checkpoints.newest):
            state = self.checkpoints.load(path)
            self.trainee.load_state_dict(state)
            self.has_checkpoint = True
            self.start, self.seconds_before = state["step"], state["seconds"]
        if self.main:
            self.checkpoints.sweep()
            drop_metrics_after(self.start, self.metrics)
            run_folder.write_record(
                self.out, self.accelerator, self.seconds_before, finished=False, more=self.trainee.record
            )

    def run(self) -> None:
        """All steps that are left, and the record of the end.

        Raises DivergedError when a loss is not finite, PausedError when a pause was asked for."""
        with hearing_pause() as asked:
            self._run(asked)

    def _run(self, asked: threading.Event) -> None:
        """asked: set once a pause is asked for."""
        rhythm = self.rhythm
        # What is rounded to decimal places is divided in double precision first.
        exact = self.trainee.digits is not None
        meter = Meter(self.accelerator, exact)
        self.began = window = time.monotonic()
        bar = tqdm(
            total=rhythm.steps,
            initial=self.start,
            desc=self.trainee.title,
            unit="step",
            disable=not self.progress,
        )
        for step, batch in enumerate(self.trainee.batches(self.start), start=self.start + 1):
            seed_step(self.seed, step, self.accelerator.process_index)
            meter.add(step, self.trainee.step(step, batch))
            if step % rhythm.log_every and step < rhythm.steps:
                continue
            row, diverged = meter.read()
            if diverged:
                raise DivergedError(self._divergence(*diverged))
            checkpoint = step % rhythm.checkpoint_every == 0 or step == rhythm.steps
            if checkpoint:
                row |= self.trainee.validate()
            steps_seen = (step - 1) % rhythm.log_every + 1
            row["images_per_second"] = steps_seen * rhythm.batch_size / (time.monotonic() - window)
            row["seconds"] = self.seconds
            row |= self.trainee.measure(step)
            if self.main:
                self._log(step, row, bar)
            pause = step < rhythm.steps and agree(self.accelerator, asked.is_set)
            if checkpoint:
                self._save_checkpoint(step)
            elif pause or self._first_is_due():
                self._save_state(step)
            if pause:
                raise PausedError(
                    f"{self.out} is paused after step {step} of {rhythm.steps}; the same command goes on "
                    "from there"
                )
            window = time.monotonic()
        bar.close()
        more = {**self.trainee.record, **self.trainee.save()}
        if self.main:
            run_folder.write_record(self.out, self.accelerator, self.seconds, finished=True, more=more)
        self.accelerator.wait_for_everyone()

    def _divergence(self, step: int, loss: str) -> str:
        paths = self.checkpoints.paths()
        return (
            f"loss {loss!r} was not finite at step {step} of {self.out}; the last good checkpoint is "
            f"{paths[-1] if paths else 'none yet'}. Start again with a lower learning rate: "
            "the same command would meet the same step"
        )

    def _log(self, step: int, row: dict[str, float], bar: tqdm) -> None:
        if self.trainee.digits is not None:
            row = {name: round(value, self.trainee.digits) for name, value in row.items()}
        with naming(self.metrics), self.metrics.open("a") as file:
            file.write(to_json({"step": step, **row}) + "\n")
        self.accelerator.log(row, step=step)
        bar.update(step - bar.n)
        bar.set_postfix({name: f"{row[name]:.3f}" for name in self.trainee.shown if name in row})

    def _save_checkpoint(self, step: int) -> None:
        def write_record(place: Path) -> None:
            run_folder.write_record(
                place, self.accelerator, self.seconds, finished=True, more=self.trainee.record
            )

        self.trainee.save_progress(step, write_record)
        self._save_state(step)

    def _save_state(self, step: int) -> None:
        state = self.trainee.state_dict()
        self.has_checkpoint = True
        if self.main:
            self.checkpoints.save(step, {**state, "seconds": self.seconds})

    def _first_is_due(self) -> bool:
        """Whether a training that has no checkpoint yet has gone on for so long that it should have one, at
        the end of a window of metrics."""
        return not self.has_checkpoint and agree(
            self.accelerator, lambda: time.monotonic() - self.began > FIRST_CHECKPOINT
        )


@contextmanager
def hearing_pause() -> Iterator[threading.Event]:
    """Yield an event that is set once this process is asked to pause. Outside of the block being asked ends
    the process: before there was a step, or when all is written, nothing is lost by that."""
    asked = threading.Event()
    if PAUSE is None or threading.current_thread() is not threading.main_thread():
        yield asked  # signals reach the main thread alone
        return
    before = signal.signal(PAUSE, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(PAUSE, before)


def agree(accelerator: Accelerator, ask: Callable[[], T]) -> T:
    """What `ask` returns on the main process, in every process; so is what it raises."""
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = ask()
        except Exception as error:
            answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


@contextmanager
def hold_folder(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """`locks.hold` by the main process, for all; what it raises is raised in every one."""
    with ExitStack() as held:
        agree(accelerator, lambda: held.enter_context(locks.hold(folder)))
        yield


def train(training: Training, progress: bool = True) -> Run:
    """Train one stage, continuing what is there, and return the finished Run.

    How its steps are computed and the number of processes may change when a run is continued. Raises
    ValueError for settings that do not fit each other, an arm the stage does not have, and a folder that
    holds another run or a damaged checkpoint; FolderInUseError where another process is at it;
    FileNotFoundError where the run to build on, a teacher or
    pictures are missing; DivergedError when a loss is not finite. A training that is refused leaves no folder
    behind."""
    training = training.completed()
    build.check(training)
    accelerator = build.new_accelerator(training)
    build.check_share(training, accelerator)
    # Softmaxes over codes are full of numbers below 1e-38, on which a CPU is many times slower than on zeros.
    torch.set_flush_denormal(True)
    torch.manual_seed(training.seed)
    out = cast(Path, training.out)
    with hold_folder(out, accelerator):
        parts = build.gather_parts(training)
        config, finished = agree(accelerator, lambda: compare(parts))
        if not finished:
            trainee = build.StageTrainee(parts, accelerator, progress)
            agree(accelerator, lambda: run_folder.claim_folder(out, config))
            loop = Loop(trainee, parts.recipe.rhythm, training.seed, out, accelerator, progress)
            loop.restore()
            start_trackers(accelerator, out, config, loop.start)
            loop.run()
            finish_trackers(accelerator)
    return Run(out)


def compare(parts: build.Parts) -> tuple[dict, bool]:
    """The config of a run, and whether its folder holds it finished. Raises as `run_folder.check_folder`."""
    config = parts.config() | run_folder.describe_pictures(parts.out, parts.train_source)
    return config, run_folder.check_folder(parts.out, config, parts.training.extend)
