"""The lock of a run's folder: one process at a time, and what a kill leaves is no obstacle."""

import os
import socket
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny

from gear_studio import cli, locks, official
from gear_studio.files import write_json
from gear_studio.locks import FolderInUseError
from gear_studio.training import loop
from gear_studio.training.request import Training
from gear_studio.training.supervised import train_judge


def hold_until(folder: Path, held, done) -> None:
    with locks.hold(folder):
        held.set()
        done.wait(120)


@contextmanager
def held_by_another_thread(folder: Path):
    held, done = threading.Event(), threading.Event()
    other = threading.Thread(target=hold_until, args=(folder, held, done))
    other.start()
    assert held.wait(60)
    yield
    done.set()
    other.join()


@pytest.mark.slow
def test_who_comes_second_is_told_who_is_first_and_waits_for_no_dead(tmp_path):
    folder, (held, done) = tmp_path / "run", (tiny.processes.Event() for _ in range(2))
    other = tiny.processes.Process(target=hold_until, args=(folder, held, done))
    other.start()
    assert held.wait(120)
    with pytest.raises(FolderInUseError) as told, locks.hold(folder):
        pass
    assert str(told.value).startswith(f"{folder} is in use by `gear-studio ")
    assert f"process {other.pid} on {socket.gethostname()}, since 20" in str(told.value)
    other.kill()
    other.join()
    assert (folder / locks.HOLDER).exists()
    with locks.hold(folder):
        assert str(os.getpid()) in (folder / locks.HOLDER).read_text()
    assert [path.name for path in folder.iterdir()] == [locks.LOCK]


def test_everything_that_writes_a_run_is_kept_out(teacher_folder, tmp_path):
    write_json(tmp_path / "config.json", {"stage": "generator"})
    training = Training("digits", "warmup", "warmup", tiny.recipe(teacher_folder), out=tmp_path)
    with held_by_another_thread(tmp_path):
        for write in (
            lambda: loop.train(training, progress=False),
            lambda: train_judge(tmp_path, steps=1),
            lambda: cli.run(["supervise", "judge", "--steps", "1", "--out", str(tmp_path)]),
            lambda: cli.run(["evaluate", str(tmp_path)]),
            lambda: official.import_run("released.pt", tmp_path),
        ):
            with pytest.raises(FolderInUseError, match=f"{tmp_path} is in use by"):
                write()
    assert sorted(path.name for path in tmp_path.iterdir()) == [locks.LOCK, "config.json"]


def test_a_thread_holds_its_folder_again(tmp_path):
    with locks.hold(tmp_path):
        with locks.hold(tmp_path):
            pass
        assert (tmp_path / locks.HOLDER).exists()
    with held_by_another_thread(tmp_path):
        pass


@pytest.mark.parametrize("inside", [".", "a/b"])
def test_a_folder_that_stays_empty_is_not_left_behind(tmp_path, inside):
    folder = tmp_path / "runs" / inside
    with pytest.raises(KeyError), locks.hold(folder):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with locks.hold(folder):
        (folder / "config.json").touch()
    assert (folder / "config.json").exists()
