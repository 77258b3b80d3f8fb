"""The queue of trainings: what waits, runs, is paused, stopped or dead is read from the disk alone."""

import os
import signal
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm  # noqa: F401 -- once, and not in every fork
import tiny

from gear_studio.files import write_json
from gear_studio.runs import Run
from gear_studio.studies import STUDIES, Arm, AskedStudy, Study, load_study
from gear_studio.training import jobs, loop
from gear_studio.training.queue import Queue, in_a_row, in_folder, shortest
from gear_studio.training.request import Training

# No checkpoint before the last step but that of a pause.
SMALL = ("teacher=random", "perceptual=tiny", "validation_images=4", "checkpoint_every=20")
ASKED = Training("shapes", "warmup", budget="smoke", steps=20, tokenizer="mini", set=SMALL)


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that have imported everything."""
    monkeypatch.setattr(jobs, "subprocess", types.SimpleNamespace(Popen=tiny.Forked, STDOUT=None))


@pytest.fixture
def hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes the file that has a training wait at the end of each step for as long as it is there."""
    log = loop.Loop._log

    def log_and_wait(training: loop.Loop, *args) -> None:
        log(training, *args)
        while training.out.with_suffix(".hold").exists():
            time.sleep(0.02)

    monkeypatch.setattr(loop.Loop, "_log", log_and_wait)

    def begin(name: str) -> Path:
        file = tmp_path / f"{name}.hold"
        file.touch()
        return file

    return begin


def wait_for(queue: Queue, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline, queue.standings()
        queue.advance()
        time.sleep(0.02)


def state(queue: Queue, name: str) -> str:
    return queue.standing(name).state


@pytest.mark.slow
def test_paused_and_resumed_it_ends_as_if_it_had_never_stopped(tmp_path: Path, hold: Callable[[str], Path]):
    queue = Queue(tmp_path, at_once=2)
    held = hold("paused")
    paused, whole = (queue.add([in_folder(ASKED, tmp_path, name)])[0] for name in ("paused", "whole"))
    assert [each.state for each in queue.standings()] == ["waiting", "waiting"]
    wait_for(queue, lambda: queue.standing(paused).step > 0)
    queue.pause(paused)
    held.unlink()
    later = Queue(tmp_path, at_once=2)  # as of an app that was started again
    wait_for(later, lambda: state(later, paused) == "paused")
    stood = later.standing(paused)
    assert 0 < stood.step < 20 and stood.steps == 20 and stood.seconds_left is None
    assert f"paused after step {stood.step} of 20" in later.last_lines(paused)
    assert (tmp_path / paused / "checkpoints" / f"step-{stood.step:08d}.pt").is_file()
    later.resume(paused)
    wait_for(later, lambda: {each.state for each in later.standings()} == {"finished"})
    one, other = tmp_path / paused, tmp_path / whole
    assert not tiny.metric_differences(tiny.metrics(one), tiny.metrics(other))
    weights = "tokenizer/model.safetensors"
    assert (one / weights).read_bytes() == (other / weights).read_bytes()


@pytest.mark.slow
def test_one_runs_the_others_wait_and_the_dead_can_be_resumed(tmp_path: Path, hold: Callable[[str], Path]):
    queue = Queue(tmp_path, at_once=1)
    first, joint, last = queue.add(in_a_row(replace(ASKED, stage="generator"), tmp_path))
    assert (first, joint) == ("shapes-mini-warmup-smoke-s0", "shapes-mini-joint-gear-smoke-s0")
    assert [each.note for each in queue.standings()] == ["", first, joint]
    (other,) = queue.add([in_folder(ASKED, tmp_path, "other")])
    queue.pause(other)
    held = [hold(name) for name in (first, joint)]
    wait_for(queue, lambda: queue.standing(first).step > 0)
    assert [each.state for each in queue.standings()] == ["running", "waiting", "waiting", "paused"]
    with pytest.raises(ValueError, match=f"{first} is running; stop it first"):
        queue.remove(first)
    os.kill(queue.read()[first].pid, signal.SIGKILL)
    wait_for(queue, lambda: state(queue, first) == "failed")
    held[0].unlink()
    queue.advance()
    assert [each.state for each in queue.standings()] == ["failed", "waiting", "waiting", "paused"]
    queue.resume(first)
    wait_for(queue, lambda: state(queue, joint) == "running")
    assert Run(tmp_path / first).finished and state(queue, last) == "waiting"
    queue.stop(joint)
    wait_for(queue, lambda: state(queue, joint) == "stopped")
    queue.remove(joint)
    assert [each.name for each in queue.standings()] == [first, last, other]


@pytest.mark.slow
def test_a_study_is_stopped_with_its_trainings_and_goes_on_to_its_table(
    tmp_path: Path, hold: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    arms = (Arm("continued", joint="continued", generator=False),)
    plumbing = Study("plumbing", "Does it arrive?", "tokenizer", arms, ("psnr",), shown=("psnr",))
    monkeypatch.setitem(STUDIES, "plumbing", plumbing)
    queue, asked = Queue(tmp_path, at_once=2), AskedStudy("plumbing", "smoke", (0,), tmp_path)
    job = asked.ask(queue)
    assert asked.makes == queue.makes() and len(asked.makes) == 2
    (later,) = queue.add([in_folder(ASKED, tmp_path, "later")])
    held = asked.makes[0].with_suffix(".hold")
    held.parent.mkdir(parents=True)
    held.touch()
    wait_for(queue, lambda: any(each.step for each in queue.standing(job).begun))
    stood = queue.standing(job)
    assert (stood.state, stood.step, stood.steps, state(queue, later)) == ("running", 0, 2, "waiting")
    assert [(tmp_path / each.name, each.state) for each in stood.begun] == [(asked.makes[0], "running")]
    queue.pause(later)
    queue.stop(job)
    locks = list((asked.out / "logs").glob("*.lock"))
    wait_for(queue, lambda: not any(map(jobs.is_locked, locks)) and state(queue, job) == "stopped")
    held.unlink()
    assert asked.ask(queue) == job
    again = Queue(tmp_path, at_once=2)  # as of an app that was started again
    wait_for(again, lambda: state(again, job) in ("finished", "failed"))
    stood = again.standing(job)
    assert (stood.state, stood.step, stood.begun) == ("finished", 2, ()), again.last_lines(job)
    record, runs = load_study("plumbing", asked.out)
    assert record["seeds"] == [0] and [run.folder for run in runs.values()] == asked.makes[-1:]


def test_no_training_overtakes_a_study_which_takes_all_places(tmp_path: Path, monkeypatch):
    queue, started = Queue(tmp_path, at_once=2), []
    monkeypatch.setattr(Queue, "_start", lambda queue, name: started.append(name))
    makes = [tmp_path / "studies-smoke" / "runs" / "one"]
    queue.add([in_folder(ASKED, tmp_path, "first")])
    queue.add_study("study", ["study", "tap"], makes, tmp_path / "studies-smoke" / "tap" / "record.json")
    queue.add([in_folder(ASKED, tmp_path, "last")])
    queue.advance()
    assert started == ["first"]
    queue.pause("first")
    queue.advance()
    assert started == ["first", "study"]
    with pytest.raises(ValueError, match="study is asked for already, by `gear-studio study tap`"):
        queue.add_study("study", ["study", "lambda"], makes, makes[0])
    assert queue.makes() == [tmp_path / "first", *makes, tmp_path / "last"]


def test_a_result_of_before_is_not_that_of_a_study_that_was_just_asked_for(tmp_path: Path, monkeypatch):
    asked = AskedStudy("tap", "smoke", (0,), tmp_path)
    queue, result = Queue(tmp_path), asked.out / "tap" / "record.json"
    write_json(result, {})
    os.utime(result, (1, 1))
    job = asked.ask(queue)
    assert state(queue, job) == "waiting"
    queue._write(job, queue.read()[job].model_copy(update={"pid": 1}))  # its process has ended
    assert state(queue, job) == "failed"
    write_json(result, {})
    assert state(queue, job) == "finished"


def test_what_the_training_would_refuse_is_refused_in_its_words(tmp_path: Path):
    queue = Queue(tmp_path)
    for wrong, message in (
        ({"steps": -1}, "steps is -1; it has to be greater than or equal to 1"),
        ({"source": "folder", "folder": tmp_path / "none"}, "none"),
        ({"source": "folder"}, "needs the path of"),
        ({"stage": "joint"}, "which holds no finished tokenizer; train that first"),
        ({"set": ("tua=1",)}, "no setting 'tua'"),
        ({"out": tmp_path / "logs"}, "choose another name"),
        ({"out": tmp_path.parent / "elsewhere"}, "choose another name"),
    ):
        training = replace(ASKED, **{"out": tmp_path / "run"} | wrong)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            queue.add([training])
    assert queue.read() == {}
    write_json(tmp_path / "run" / "config.json", {"stage": "joint", "seed": 3})
    with pytest.raises(ValueError, match="run already holds another run"):
        queue.add([replace(ASKED, out=tmp_path / "run")])
    queue.add([replace(ASKED, out=tmp_path / "mine")])
    queue.add([replace(ASKED, out=tmp_path / "mine")])  # the same again
    with pytest.raises(ValueError, match="mine is asked for already, by `gear-studio train shapes"):
        queue.add([replace(ASKED, out=tmp_path / "mine", seed=1)])
    assert list(queue.read()) == ["mine"]
    with pytest.raises(KeyError, match="there is no training"):
        queue.pause("../mine")


def test_a_row_is_named_as_the_command_line_names_it_or_by_the_visitor(tmp_path: Path):
    asked = Training("shapes", "generator", budget="smoke")
    row = [shortest(each).command() for each in in_a_row(asked, Path("runs"))]
    assert row == [
        ["train", "shapes", "--budget", "smoke"],
        ["train", "shapes", "--stage", "joint", "--budget", "smoke"],
        ["train", "shapes", "--stage", "generator", "--budget", "smoke"],
    ]
    baseline = in_a_row(replace(asked, arm="baseline"), tmp_path, "mine")
    assert [(each.out, each.parent) for each in baseline] == [
        (tmp_path / "mine-warmup", None),
        (tmp_path / "mine", tmp_path / "mine-warmup"),
    ]


def test_the_last_lines_are_those_of_a_terminal(tmp_path: Path):
    queue = Queue(tmp_path)
    assert queue.last_lines("one") == ""
    queue.logs.mkdir()
    (queue.logs / "one.log").write_text("begun\n\r 0/4\r 2/4\r 4/4\n\ngear-studio: no <b>room</b>\n")
    assert queue.last_lines("one") == "begun\n 4/4\ngear-studio: no <b>room</b>"


def test_a_damaged_file_is_named(tmp_path: Path):
    queue = Queue(tmp_path)
    queue.logs.mkdir()
    (queue.logs / "one.job.json").write_text('{"command": "rm"}')
    with pytest.raises(ValueError, match=r"one\.job\.json is damaged.*delete it"):
        queue.standings()
