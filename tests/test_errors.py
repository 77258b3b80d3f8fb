"""What the user can act on is one line; every other error keeps its traceback."""

import ast
import errno
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import gear_studio
from gear_studio import Run, cli, places
from gear_studio.errors import FailedError, InputError, MissingError, UnknownNameError, describe
from gear_studio.files import atomic, naming
from gear_studio.training import loop
from gear_studio.training.checkpoints import Checkpoints


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run `gear-studio ...` in an empty folder: (exit code, what it complained)."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["gear-studio", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        code: object = end.value.code
        return (1, code) if isinstance(code, str) else (code, capsys.readouterr().err)

    return run


@pytest.mark.parametrize(
    "error", [InputError("x"), MissingError("x"), UnknownNameError("x"), FailedError("x")]
)
def test_what_the_user_can_act_on_is_said_as_it_is(error, command, monkeypatch):
    def train(training):
        raise error

    monkeypatch.setattr(loop, "train", train)
    assert command("train", "shapes") == (1, "gear-studio: x")


@pytest.mark.parametrize(
    "error",
    [
        KeyError("101"),
        ValueError("not enough values to unpack"),
        RuntimeError("The size of tensor a must match"),
        torch.OutOfMemoryError("CUDA out of memory"),
        IndexError("index out of range in self"),
        OSError(errno.EIO, "Input/output error"),
    ],
)
def test_a_fault_keeps_its_traceback(error, monkeypatch):
    def train(training):
        raise error

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(sys, "argv", ["gear-studio", "train", "shapes"])
    with pytest.raises(type(error)):
        cli.main()
    assert describe(error) is None


def test_errors_for_users_are_raised_as_such_everywhere():
    """Python's own kinds, raised by name, would end in a traceback."""
    plain = {"ValueError", "FileNotFoundError", "ImportError", "RuntimeError", "KeyError"}
    found = []
    for path in Path(gear_studio.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = getattr(node.exc.func, "id", "")
                found += [f"{path.name}:{node.lineno} {name}"] if name in plain else []
    assert found == []


def test_they_are_python_s_own_kinds_too():
    for kind, own in (
        (InputError, ValueError),
        (MissingError, FileNotFoundError),
        (UnknownNameError, KeyError),
    ):
        assert issubclass(kind, own)
    with pytest.raises(ValueError, match="no folder|names no stage"):
        Run.from_pretrained(places.ZOO / "gear" / "tokenizer")


# Disks


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_with_the_file_and_leaves_the_old_one(error, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("old")
    with pytest.raises(OSError) as refused, atomic(path) as temporary:
        temporary.write_text("half")
        raise error
    assert (refused.value.errno, refused.value.filename) == (errno.ENOSPC, str(path))
    assert str(describe(refused.value)).startswith(
        f"{path}: No space left on device. What was written before"
    )
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_anything_follows(
    tmp_path, monkeypatch
):
    done, path = [], tmp_path / "step.pt"
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.fstat(handle).st_ino) or sync(handle))
    monkeypatch.setattr(os, "replace", lambda *names: done.append("named") or replace(*names))
    with atomic(path) as temporary:
        temporary.write_text("whole")
    assert done == [path.stat().st_ino, "named", tmp_path.stat().st_ino]


def test_a_disk_that_is_full_when_it_comes_to_write_leaves_the_old_file(tmp_path, monkeypatch):
    """Network disks say so no earlier."""
    path = tmp_path / "step.pt"
    path.write_text("old")

    def full(handle: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=str(path)), atomic(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_real_full_device_is_named(tmp_path):
    with pytest.raises(OSError) as refused, naming(Path("/dev/full")), Path("/dev/full").open("w") as file:
        file.write("a line\n")
    assert "/dev/full: No space left on device" in str(describe(refused.value))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_training_that_cannot_write_says_so_and_goes_on_later(number, command, monkeypatch, tmp_path):
    words = ["train", "digits", "--budget", "smoke", "--batch-size", 2, "--out", "run"]
    save = Checkpoints.save

    def fail_at_the_end(self, step: int, state: dict) -> None:
        if step == 4:
            raise OSError(number, os.strerror(number), str(self.folder / "step-00000004.pt"))
        save(self, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", fail_at_the_end)
        code, said = command(*words)
    assert code == 1 and "\n" not in said
    assert said.startswith(f"gear-studio: run/checkpoints/step-00000004.pt: {os.strerror(number)}. What was")
    assert said.endswith("then give the same command again")
    if number == errno.ENOSPC:
        monkeypatch.setattr(sys, "argv", ["gear-studio", *map(str, words)])
        cli.main()
        assert Run(tmp_path / "run").finished and [row["step"] for row in Run(tmp_path / "run").metrics] == [
            2,
            4,
        ]


def test_a_folder_where_a_file_is_meant_is_named(command, tmp_path):
    (tmp_path / "folder").mkdir()
    code, said = command(
        "reconstruct", "gear", places.ZOO / "gear" / "reconstructions.png", "--out", "folder"
    )
    assert code == 1 and said.startswith("gear-studio: folder: Is a directory.") and "name a file" in said
    assert not list((tmp_path / "folder").iterdir()) and len(list(tmp_path.iterdir())) == 1


def test_a_file_where_a_folder_is_meant_is_named(command, tmp_path):
    (tmp_path / "file").write_text("x")
    code, said = command(
        "reconstruct", "gear", places.ZOO / "gear" / "reconstructions.png", "--out", "file/x.png"
    )
    assert code == 1 and said.startswith("gear-studio: file: File exists.") and "name another place" in said


# Ctrl-C


@pytest.mark.parametrize(
    ("words", "advice"), [("train shapes", "the same command goes on"), ("evaluate gear", "nothing is half")]
)
def test_an_interruption_is_one_line(words, advice, command, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupt)
    monkeypatch.setattr(Run, "from_pretrained", interrupt)
    code, said = command(*words.split())
    assert code == 130 and said.strip().count("\n") == 0
    assert (
        said.strip().startswith("gear-studio: interrupted; what was written before is whole")
        and advice in said
    )
