"""The queue of trainings: what waits, runs, is paused, stopped or dead is read from the disk alone."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from gear_studio.runs import Run
from gear_studio.training.queue import Queue, in_a_row, in_folder
from gear_studio.training.request import Training

pytestmark = pytest.mark.slow  # processes that train

# Of a few thousand weights, on pictures that are at hand.
SMALL = (
    "teacher=random",
    "perceptual=tiny",
    "checkpoint_every=8",
)
ASKED = Training("shapes", "warmup", budget="smoke", steps=40, set=SMALL)


def wait_for(queue: Queue, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, queue.standings()
        queue.advance()
        time.sleep(0.05)


def state(queue: Queue, name: str) -> str:
    return queue.standing(name).state


def test_paused_and_resumed_it_ends_as_if_it_had_never_stopped(tmp_path: Path):
    queue = Queue(tmp_path, at_once=2)
    paused, whole = (queue.add([in_folder(ASKED, tmp_path, name)])[0] for name in ("paused", "whole"))
    assert [each.state for each in queue.standings()] == ["waiting", "waiting"]
    wait_for(queue, lambda: queue.standing(paused).step >= 2)
    queue.pause(paused)
    # From here on another app, which was started later, looks and acts.
    later = Queue(tmp_path, at_once=2)
    wait_for(later, lambda: state(later, paused) == "paused")
    stood = later.standing(paused)
    assert 0 < stood.step < 40 and stood.steps == 40 and stood.seconds_left is None
    assert f"paused after step {stood.step} of 40" in later.last_lines(paused)
    assert not Run(tmp_path / paused).finished
    later.resume(paused)
    wait_for(later, lambda: {each.state for each in later.standings()} == {"finished"})
    one, other = tmp_path / paused, tmp_path / whole
    assert not tiny.metric_differences(tiny.metrics(one), tiny.metrics(other))
    assert (one / "tokenizer/model.safetensors").read_bytes() == (
        other / "tokenizer/model.safetensors"
    ).read_bytes()


def test_one_runs_the_others_wait_and_the_dead_say_their_last(tmp_path: Path):
    queue = Queue(tmp_path, at_once=1)
    row = in_a_row(replace(ASKED, stage="generator", steps=2), tmp_path)
    names = queue.add(row)
    assert names == [f"shapes-{kind}-smoke-s0" for kind in ("warmup", "joint-gear", "generator-gear")]
    assert [each.note for each in queue.standings()] == ["", *names[:2]]
    held = queue.add([in_folder(ASKED, tmp_path, "held")])[0]
    queue.pause(held)
    assert state(queue, held) == "paused"
    wait_for(queue, lambda: state(queue, names[0]) == "running")
    assert [each.state for each in queue.standings()] == ["running", "waiting", "waiting", "paused"]
    with pytest.raises(ValueError, match="is running; stop it first"):
        queue.remove(names[0])
    os.kill(queue.read()[names[0]].pid, signal.SIGKILL)
    wait_for(queue, lambda: state(queue, names[0]) == "failed")
    queue.advance()
    assert [each.state for each in queue.standings()] == ["failed", "waiting", "waiting", "paused"]
    queue.resume(names[0])
    wait_for(queue, lambda: state(queue, names[1]) == "running")
    assert Run(tmp_path / names[0]).finished
    queue.stop(names[1])
    wait_for(queue, lambda: state(queue, names[1]) == "stopped")
    queue.remove(names[1])
    assert [each.name for each in queue.standings()] == [names[0], names[2], held]
