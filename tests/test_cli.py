"""The command line, end to end on budgets of a few steps."""

import ast
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from gear_studio import Run, cli, commands, places
from gear_studio.analysis import fidelity
from gear_studio.studies import reproduce
from gear_studio.training import jobs, loop


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `gear-studio ...` in this process: (exit code, what it printed, what it complained)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gear-studio", *map(str, words)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        if isinstance(code, str):  # what Python prints before it exits with 1
            return 1, printed.out, code
        return code or 0, printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """The whole method on the embedded world, by the commands a user would type."""
    folder = tmp_path_factory.mktemp("shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (
            "--stage warmup",
            "--stage joint --arm gear",
            "--stage generator",
            "--stage generator --arm baseline",
        ):
            command = ["gear-studio", "train", "shapes", "--budget", "smoke", *words.split()]
            patch.setattr(sys, "argv", command)
            cli.main()
    return folder / "runs"


def test_the_three_stages_on_shapes(shapes):
    runs = {path.name: Run.from_pretrained(path) for path in shapes.iterdir()}
    assert {name: run.config["parent"] for name, run in runs.items()} == {
        "shapes-warmup-smoke-s0": None,
        "shapes-joint-gear-smoke-s0": "shapes-warmup-smoke-s0",
        "shapes-generator-gear-smoke-s0": "shapes-joint-gear-smoke-s0",
        "shapes-generator-baseline-smoke-s0": "shapes-warmup-smoke-s0",
    }
    assert all(run.finished and run.metrics[-1]["step"] == 4 for run in runs.values())
    generator = runs["shapes-generator-gear-smoke-s0"]
    assert generator.record["command"] == "gear-studio train shapes --budget smoke --stage generator"
    assert len(generator.config["classes"]) == 24


def test_a_finished_training_started_again_says_so(shapes, command, monkeypatch):
    monkeypatch.chdir(shapes.parent)
    record = (shapes / "shapes-warmup-smoke-s0" / "record.json").read_bytes()
    code, out, _ = command("train", "shapes", "--budget", "smoke")
    assert code == 0 and "finished: runs/shapes-warmup-smoke-s0" in out.replace(os.sep, "/")
    assert (shapes / "shapes-warmup-smoke-s0" / "record.json").read_bytes() == record


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of two classes of real files, one of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    dice = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 200)):
        for split in ("train", "val"):
            (folder / split / name).mkdir(parents=True)
            for i in range(5):
                noise = dice.integers(level - 50, level + 50, size=(70 + 10 * i, 90, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / split / name / f"{i}.png")
    (folder / "train" / "dark" / "broken.png").write_bytes(b"not a picture")
    return folder


def pack(pictures: Path, folder: Path) -> Path:
    """The same as shards, with the names of the classes."""
    folder.mkdir()
    (folder / "classnames.txt").write_text("dark\nlight\n")
    for split in ("train", "val"):
        with tarfile.open(folder / f"{split}-000.tar", "w") as tar:
            for i, path in enumerate(sorted((pictures / split).glob("*/*.png"))):
                tar.add(path, f"{i}.png")
                label = tarfile.TarInfo(f"{i}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(b"0" if path.parent.name == "dark" else b"1"))
    return folder


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("source", ["digits", "folder", "shards"])
def test_the_three_stages_on_other_sources(source, pictures, tmp_path, command, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    more = {
        "digits": [],
        "folder": ["--folder", pictures],
        "shards": ["--folder", pack(pictures, tmp_path / "tars") / "{train,val}-000.tar"],
    }[source]
    for stage in ("warmup", "joint", "generator"):
        arm = "" if stage == "warmup" else "gear-"
        out = tmp_path / f"{source}-{stage}-{arm}smoke-s0"
        words = [source, "--stage", stage, "--budget", "smoke", "--steps", 2, "--batch-size", 2, "--out", out]
        words += ["--set", "token_views=2"] if (source, stage) == ("shards", "generator") else []
        code, printed, complaint = command("train", *words, *more)
        assert code == 0, complaint
        assert f"finished: {out}" in printed
    run = Run.from_pretrained(tmp_path / f"{source}-generator-gear-smoke-s0")
    if source == "folder":  # which is found again
        code, printed, complaint = command("evaluate", run.folder, "--samples", 24, "--seeds", 1)
        assert code == 0, complaint
        assert "10 held-out pictures; 10 samples a seed, 1 seed, against" in printed
        assert "warning: 24 pictures were asked for, and there are 10" in printed
        assert re.search(rf"^  fd +{run.evaluation['fd']['mean']:.4g}$", printed, re.MULTILINE)
        assert re.search(rf"^  psnr +{run.evaluation['psnr']:.4g}$", printed, re.MULTILINE)
    assert run.finished and run.config["classes"] == (
        [str(digit) for digit in range(10)] if source == "digits" else ["dark", "light"]
    )
    assert run.config["recipe"]["batch_size"] == 2 and run.metrics[-1]["step"] == 2
    assert run.generator.config.classes == len(run.config["classes"])
    assert run.tokenizer.reconstruct(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_a_finished_training_is_extended(tmp_path, command):
    words = ["train", "digits", "--budget", "smoke", "--batch-size", 2, "--out", tmp_path / "run", "--steps"]
    for more in ([2], [4, "--extend"], [4]):
        code, _, complaint = command(*words, *more)
        assert code == 0, complaint
    run = Run.from_pretrained(tmp_path / "run")
    assert run.finished and [row["step"] for row in run.metrics] == [2, 4]
    complains(command(*words, 6), "steps is 4, asked for 6", "go on with it by --extend")


def in_a_shell(*words: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "gear_studio", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_from_outside_and_started_again_it_ends_as_if_nothing_had_been(tmp_path, command):
    words = ["train", "digits", "--budget", "smoke", "--steps", "14", "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = in_a_shell(*words, killed)
    deadline = time.monotonic() + 300
    while not (killed / "metrics.jsonl").exists() or len(tiny.metrics_whole_lines(killed)) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    assert not Run.from_pretrained(killed).finished
    for folder in (killed, whole):
        assert command(*words, folder)[0] == 0
    assert not tiny.metric_differences(tiny.metrics(killed), tiny.metrics(whole))
    assert len(tiny.metrics(whole)) == 7
    mine, theirs = (Run.from_pretrained(folder).tokenizer.state_dict() for folder in (killed, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_an_error_ends_in_one_line_and_a_bad_exit_code(tmp_path):
    process = in_a_shell("train", "shapes", "--stage", "joint", "--out", tmp_path / "run")
    complaint = process.communicate(timeout=300)[1]
    assert process.returncode == 1
    assert complaint.startswith("gear-studio: stage joint builds on") and complaint.count("\n") == 1


def complains(result: tuple[int, str, str], *parts: str) -> None:
    code, _, complaint = result
    assert code != 0
    for part in parts:
        assert part in complaint
    assert "Traceback" not in complaint and "\n" not in complaint.strip()


def test_errors_a_user_can_act_on(shapes, command, tmp_path, monkeypatch):
    monkeypatch.chdir(shapes.parent)
    generator, nothing = shapes / "shapes-generator-gear-smoke-s0", tmp_path / "empty"
    out, picture = ("--out", tmp_path / "run"), ("--out", tmp_path / "x.png")
    (tmp_path / "no.png").write_bytes(b"no picture")
    nothing.mkdir()
    no_moon = "device 'moon' is not to be had here", "; choose one of "
    for words, *parts in (
        (("train", "folder", *out), "'folder' needs the path of a folder"),
        (("train", "folder", *out, "--folder", nothing), str(nothing)),
        (("train", "shapes", "--budget", "smoke", "--steps", "5"), "another run", "steps is 4, asked for 5"),
        (
            ("train", "shapes", "--budget", "smoke", "--batch-size", "8"),
            "batch_size is 4, asked for 8), made by `gear-studio train shapes --budget smoke --stage warmup`",
            "choose another --out, such as --out runs/shapes-warmup-smoke-s0-2",
        ),
        (("report", "runs"), "runs holds no measured warmup", "gear-studio reproduce"),
        (("reconstruct", generator, *picture), "no picture was named"),
        (("evaluate",), "no run was named"),
        (("train", "shapes", "--stage", "joint", "--arm", "baseline"), "has no arm 'baseline'"),
        (("train", "shapes", "--arm", "gear", *out), "has no arm 'gear'"),
        (("sample", tmp_path / "nowhere", *picture), "nowhere", "no shipped run"),
        (("sample", shapes / "shapes-warmup-smoke-s0", *picture), "holds no generator"),
        (("sample", generator, *picture, "--labels", "red unicorn"), "red unicorn"),
        (("sample", generator, *picture, "--top-p", "2"), "top_p is 2.0"),
        (("sample", generator, *picture, "--device", "moon"), *no_moon),
        (("train", "shapes", *out, "--device", "moon"), *no_moon),
        (("evaluate", generator, "--device", "moon"), *no_moon),
        (("supervise", "judge", *out, "--device", "moon"), *no_moon),
        (("study", "convergence", *out, "--device", "moon"), *no_moon),
        (("reproduce", *out, "--device", "moon"), *no_moon),
        (("report", "--figures", nothing, "--device", "moon"), *no_moon),
        (("train", "digits", *out, "--folder", nothing), "is of no use to source 'digits'; train on folder"),
        (("evaluate", "gear", "--samples", 2, "--reference", out[1]), "neither a folder of pictures nor an"),
        (
            ("sample", generator, "--count", 1, "--out", "."),
            ".: Is a directory",
            "it is a folder; name a file",
        ),
        (("report", "--device", "cpu"), "--device cpu is for the samples of --figures; add that"),
        (("reconstruct", generator, tmp_path / "no.png", *picture), "no.png"),
    ):
        complains(command(*words), *parts)
    assert not (tmp_path / "x.png").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["train", "cats"], ["train", "shapes", "--stage", "nap"], ["fly"], []])
def test_words_it_does_not_know_are_refused_with_usage(words, command):
    code, out, err = command(*words)
    assert code == 2 and "gear-studio" in out + err and "Traceback" not in out + err


def test_a_shipped_run_s_results_are_written_outside_the_package(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = places.ZOO / "gear" / "evaluation.json"
    before = shipped.read_bytes()
    monkeypatch.setattr(fidelity, "evaluate", lambda run, options: {"samples": options.samples, "psnr": 20.5})
    for name in ("gear", places.ZOO / "gear"):
        code, out, err = command("evaluate", name, "--samples", 64)
        assert code == 0 and "gear: 64 held-out pictures\n  psnr  20.5\n" in out and "warning" not in out
        assert "measured: runs/shipped/gear/evaluation.json (what ships is left as it is)" in out
        assert "next: gear-studio inspect" in err
    assert shipped.read_bytes() == before
    assert Path("runs/shipped/gear/evaluation.json").is_file()


@pytest.mark.parametrize(
    ("asked", "following"),
    [
        ("shapes", "train shapes --stage joint"),
        ("shapes --budget smoke --steps 3", "train shapes --stage joint --budget smoke"),
        (
            "shapes --tokenizer small-lfq --stage joint",
            "train shapes --stage generator --tokenizer small-lfq",
        ),
        ("digits --stage joint --arm continued", "train digits --stage generator --arm continued"),
        ("shapes --out a/b", "train shapes --stage joint --out a/shapes-joint-gear-s0 --parent a/b"),
        ("shapes --seed 3 --stage generator", "evaluate runs/shapes-generator-gear-s3"),
        ("shapes --stage generator --budget quick", "evaluate runs/shapes-generator-gear-quick-s0"),
    ],
)
def test_a_training_names_the_command_that_follows(asked, following, command, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda training: Run(places.ZOO / "gear"))
    code, out, err = command("train", *asked.split())
    assert code == 0 and out.startswith("finished: ")
    assert err == f"next: gear-studio {following}\n"


def test_help_names_every_command(command):
    code, out, _ = command("--help")
    assert code == 0 and cli.COMMANDS.keys() == commands.COMMANDS.keys() | {"explorer"}
    assert all(re.search(rf"\b{name}\b", out) for name in cli.COMMANDS)


def test_help_waits_for_no_library_that_takes_long_to_import():
    script = "import sys; from gear_studio import cli\ntry: cli.run(['--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    slow = {"torch", "torchvision", "timm", "numpy", "scipy", "matplotlib", "pydantic", "accelerate", "PIL"}
    assert "tyro" in loaded and not loaded & slow


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_option_is_explained_under_its_own_name(name, command):
    code, out, _ = command(name, "--help")
    explains_every_option(name, code, out)


def explains_every_option(name: str, code: int, out: str) -> None:
    assert code == 0 and "Args:" not in out  # which stands there where a docstring could not be read
    rows = re.sub(r"[│╭╮╰╯─]|-{4,}", " ", out).split(" options ", 1)[1]
    options = re.findall(r"^ +--([a-z][\w-]*)(.*?)(?=^ +--[a-z]|\Z)", rows, flags=re.DOTALL | re.MULTILINE)
    assert len(options) >= 1
    for option, row in options:
        explained = re.sub(r"\{[^}]*\}|--[\w-]+|\b[A-Z]+\b", " ", row).split("(default")[0]
        assert len(re.findall(r"[a-z]{2,}", explained)) >= 2, f"{name} --{option}: {row!r}"


# Before anything is imported: this package as `python -OO` compiles it, without asserts and docstrings. The
# libraries would take half a minute.
STRIPPED = """
from importlib.machinery import SourceFileLoader as Loader

really_get_code = Loader.get_code

def get_code(self, name):
    if not name.startswith("gear_studio"):
        return really_get_code(self, name)
    return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True, optimize=2)

Loader.get_code = get_code
"""
# This package as Windows has it.
ON_WINDOWS = """
import builtins, os

really_import = builtins.__import__

def import_there(name, globals=None, *rest, **more):
    if name == "fcntl" and str((globals or {}).get("__name__")).startswith("gear_studio"):
        raise ImportError("No module named 'fcntl'", name="fcntl")
    return really_import(name, globals, *rest, **more)

builtins.__import__ = import_there
for name in ("sched_getaffinity", "nice", "posix_fadvise", "killpg"):
    delattr(os, name)
"""


def told(setting: str, *commands: str, folder: Path) -> list[tuple[int, str]]:
    """What each command ends with and prints, all in one process. setting: what that process begins with."""
    lines = [setting, "import sys", "from gear_studio import cli"]
    for words in commands:
        asked = ["gear-studio", *words.split()]
        lines += [
            f"sys.argv, code = {asked}, 0",
            "try: cli.main()",
            "except SystemExit as end: code = end.code",
        ]
        lines += ["print('ended:', repr(code or 0))"]
    here = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, cwd=folder, env=here
    )
    assert done.returncode == 0, done.stderr
    parts = re.split(r"ended: (.*)\n", done.stdout)
    return [(ast.literal_eval(code), out) for out, code in zip(parts[::2], parts[1::2], strict=False)]


def test_without_docstrings_and_asserts_it_explains_itself_and_trains(tmp_path):
    small = "--budget smoke --set steps=2 log_every=2 checkpoint_every=2 validation_images=4 --out run"
    names, *helps, (code, trained) = told(
        STRIPPED,
        "--help",
        *(f"{name} --help" for name in cli.COMMANDS),
        f"train digits {small}",
        folder=tmp_path,
    )
    assert names[0] == 0 and all(summary[:30] in names[1] for summary in cli.COMMANDS.values())
    for name, (ended, out) in zip(cli.COMMANDS, helps, strict=True):
        explains_every_option(name, ended, out)
    assert code == 0 and trained == "finished: run\n" and Run(tmp_path / "run").finished


def test_on_windows_only_jobs_side_by_side_are_missed(tmp_path):
    study = "study lambda --budget smoke --seeds 0"
    listed, refused, recipe = told(
        ON_WINDOWS, f"{study} --commands", study, "recipe small --budget smoke", folder=tmp_path
    )
    assert listed[0] == recipe[0] == 0 and listed[1].startswith("gear-studio train shapes")
    assert str(refused[0]).startswith("gear-studio: several trainings side by side need locks")


def test_sampling_writes_the_same_picture_for_the_same_seed(shapes, command, tmp_path):
    generator = shapes / "shapes-generator-gear-smoke-s0"

    def draw(name: str, *words: object) -> np.ndarray:
        options = ("--count", 3, "--out", tmp_path / name)
        code, out, complaint = command("sample", generator, *options, *words)
        assert code == 0, complaint
        assert str(tmp_path / name) in out
        return np.asarray(Image.open(tmp_path / name))

    label = Run.from_pretrained(generator).config["classes"][5]
    one = draw("one.png", "--labels", label, "--seed", 1)
    assert one.ndim == 3 and one.shape[0] >= 64 and one.shape[1] >= 3 * 64 and one.std() > 1
    assert np.array_equal(draw("again.png", "--labels", 5, "--seed", 1), one)
    assert not np.array_equal(draw("other.png", "--labels", 5, "--seed", 2), one)


def test_reconstructing_shows_the_pictures_above_their_reconstructions(shapes, pictures, command, tmp_path):
    files = sorted((pictures / "val" / "light").glob("*.png"))[:2]
    out = tmp_path / "both.png"
    generator = shapes / "shapes-generator-gear-smoke-s0"
    code, _, complaint = command("reconstruct", generator, *files, "--out", out)
    assert code == 0, complaint
    picture = np.asarray(Image.open(out)).astype(float)
    assert picture.shape[0] >= 128 and picture.shape[1] >= 128
    above, below = np.array_split(picture, 2)
    assert above.mean() > 150 and not np.allclose(above, below, atol=5)


@pytest.mark.parametrize("size", [(90, 60), (60, 200), (100, 100), (64, 71)])
def test_reconstructing_keeps_the_aspect_of_a_photo(size, shapes, command, tmp_path):
    """The middle of the picture, its short side 64 px, above what the tokenizer makes of the same."""
    ramp = np.linspace(0, 255, size[0])[None, :, None] * np.ones((size[1], 1, 3))
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "photo.png")
    Image.fromarray(np.full((50, 50, 3), 200, np.uint8)).save(tmp_path / "square.png")
    words = [shapes / "shapes-generator-gear-smoke-s0", tmp_path / "photo.png", tmp_path / "square.png"]
    code, said, complaint = command("reconstruct", *words, "--out", tmp_path / "both.png", "--device", "cpu")
    assert code == 0, complaint
    scale = 64 / min(size)
    width, height = (int(round(length * scale)) // 8 * 8 for length in size)
    assert (
        f"photo.png: {size[0]} x {size[1]} px, resized and cropped in the middle to {width} x {height}"
        in said
    )
    assert f"{width // 8} x {height // 8} tokens" in said
    picture = np.asarray(Image.open(tmp_path / "both.png")).astype(float)
    assert picture.shape == (2 * height + 6, width + 64 + 6, 3)
    original, below = picture[2 : 2 + height, 2 : 2 + width], picture[4 + height : -2, 2 : 2 + width]
    steps = original.mean((0, 2))
    assert original.std(0).max() < 2  # nothing is turned or squeezed into another direction
    middle = np.interp(
        (np.arange(width) - (width - 1) / 2) / scale + (size[0] - 1) / 2, range(size[0]), ramp[0, :, 0]
    )
    assert np.abs(steps - middle)[2:-2].max() < 3
    tokenizer = Run.from_pretrained(words[0]).tokenizer
    seen = torch.tensor(original / 127.5 - 1).float().permute(2, 0, 1)[None]
    expected = (tokenizer.reconstruct(seen)[0].permute(1, 2, 0).detach().numpy() + 1) * 127.5
    assert np.abs(below - expected).mean() < 2
    square = picture[2:66, width + 4 : width + 68]
    assert square.min() >= 198 and square.max() <= 202


def test_reproducing_trains_parents_before_children_and_measures_all(tmp_path):
    todo = reproduce.zoo_jobs(tmp_path / "runs", "quick", seed=3)
    done: set[str] = set()
    for job in todo:
        assert done.issuperset(job.needs), f"{job.name} comes before what it needs"
        done.add(job.name)
    trained = {*reproduce.TOKENIZERS, *reproduce.GENERATORS}
    assert trained <= done and {f"evaluate {name}" for name in trained} <= done
    for job in todo:
        if "--parent" in job.command:
            parent = Path(job.command[job.command.index("--parent") + 1])
            assert parent.name in job.needs and parent.parent == tmp_path / "runs"


def test_reproducing_runs_jobs_and_stops_at_the_first_that_fails(tmp_path, monkeypatch, capsys):
    """With a stand-in for Python, that writes down what it is asked to do and fails for the job `bad`."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/sh\necho "$3" >> {tmp_path}/order\n[ "$3" != bad ]\n')
    stand_in.chmod(0o755)
    monkeypatch.setattr(jobs.sys, "executable", str(stand_in))

    def job(name: str, *needs: str) -> jobs.Job:
        return jobs.Job(name, [name], list(needs))

    order = tmp_path / "order"
    todo = [job("first"), job("second", "first"), job("third", "second")]
    todo[1].finished = lambda: order.read_text() == "first\n"  # asked when its turn has come
    jobs.run(todo, 3, 1, tmp_path / "logs")
    said = capsys.readouterr().out
    assert re.search(r"first: done, 1 of 3, about \d+ s left", said) and "third: done, 3 of 3\n" in said
    assert order.read_text().split() == ["first", "third"]
    order.unlink()
    with pytest.raises(RuntimeError, match=r"bad failed \(exit 1\); see .*bad\.log"):
        jobs.run([job("good"), job("bad", "good"), job("never", "bad")], 2, 1, tmp_path / "logs")
    assert order.read_text().split() == ["good", "bad"]


def test_another_quantizer_goes_through_all_stages_by_its_name(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stage in ("warmup", "joint", "generator"):
        words = ["--stage", stage, "--tokenizer", "small-lfq", "--budget", "smoke", "--steps", 2]
        code, _, complaint = command("train", "shapes", *words, "--batch-size", 2)
        assert code == 0, complaint
    run = Run.from_pretrained("runs/shapes-small-lfq-generator-gear-smoke-s0")
    assert run.parent.name == "shapes-small-lfq-joint-gear-smoke-s0"
    assert run.tokenizer.config.quantizer == "lfq" and run.config["recipe"]["tokenizer"]["code_dim"] == 10
    code, out, complaint = command("train", "shapes", "--tokenizer", "small-fsq")
    assert code == 2 and "'small-lfq'" in out + complaint and "small-fsq" in out + complaint
