"""Studies: what they train, that nothing is trained twice, and that tables say what the Runs say."""

import contextlib
import csv
import json
import shlex
import signal
import threading
import time
import tomllib
import types
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import tyro
from PIL import Image
from test_cli import command, complains  # noqa: F401

from gear_studio import cli, commands, places, plots, runs, studies
from gear_studio.analysis import fidelity
from gear_studio.analysis.convergence import speed_up, speed_up_over_seeds
from gear_studio.files import write_json
from gear_studio.models.teachers import load_teachers
from gear_studio.places import ZOO
from gear_studio.run_files import read_shared, run_folders
from gear_studio.runs import Run
from gear_studio.studies import STUDIES, Arm, Study, World, chain_of
from gear_studio.training import jobs
from gear_studio.training.execution import Execution
from gear_studio.training.recipes import ARMS, BUDGETS, Recipe, recipe_of, small_recipe
from gear_studio.training.request import Training

SMALL = ("generator.dim=32", "generator.blocks=3")  # of what every test trains here
PLUMBING = Study(
    name="plumbing",
    question="Does everything arrive?",
    varies="tokenizer",
    arms=(studies.BASELINE, studies.GEAR),
    measures=studies.GENERATED,
    controls=("baseline",),
    paper={"measure": "1 -> 2"},
)


# What is trained


def test_a_name_says_all_that_decides_a_run_and_studies_share_what_is_the_same():
    links = {}
    for study in STUDIES.values():
        labels = [arm.label for arm in study.arms]
        assert len(set(labels)) == len(labels) and study.question.endswith("?")
        for arm in study.arms:
            for link in chain_of(arm):
                assert links.setdefault(link.name, link) == link
                assert link.arm in ARMS[link.stage] and "/" not in link.name
    assert {"warmup", "gear", "continued", "generator-gear", "generator-baseline"} <= links.keys()
    assert {path.name for path in ZOO.glob("*")} - {
        "teacher",
        "judge",
        "attribute-judge",
        "studies",
    } <= links.keys()
    used = [{link.name for arm in study.arms for link in chain_of(arm)} for study in STUDIES.values()]
    assert sum("warmup" in names for names in used) == len(used)
    assert sum("generator-gear" in names for names in used) == len(used) - 1  # all but text
    different = {link.name for link in chain_of(studies.GEAR, ("gan_weight=0.1",))}
    assert not different & links.keys()


def test_the_recipe_s_own_value_of_a_sweep_is_the_run_that_all_have():
    for name, field in (("temperature", "tau"), ("lambda", "alignment_weight")):
        own = f"{getattr(small_recipe('joint'), field):g}"
        (arm,) = [arm for arm in STUDIES[name].arms if arm.label == own]
        assert [link.name for link in chain_of(arm)] == ["warmup", "gear", "generator-gear"]


def parse(words: list[str]) -> Training:
    """The training that the words of a job ask for."""
    assert words[0] == "train"
    return tyro.cli(Training, args=words[1:])


def trainings_of(study: Study, world: World, seed: int) -> dict[str, Training]:
    """Those of a study's jobs that train, by the name of the job, as the command line reads them."""
    todo = studies.study_jobs(study, world, (seed,), Path("OUT"))
    trainings = {job.name: parse(job.command) for job in todo if job.command[0] == "train"}
    assert all(training.out == Path("OUT") / "runs" / name for name, training in trainings.items())
    return trainings


@pytest.mark.parametrize("budget", BUDGETS)
def test_jobs_come_after_what_they_need_and_samples_are_looked_at_when_metrics_are(budget, tmp_path):
    for study in STUDIES.values():
        done: set[str] = set()
        for job in studies.study_jobs(study, World(budget=budget), (0, 1), tmp_path):
            assert done.issuperset(job.needs) and job.name not in done
            done.add(job.name)
            if job.command[0] == "train" and job.name.endswith("-s0"):
                training = parse(job.command)
                # `resolved` refuses an fd_every that is no multiple of log_every.
                assert training.resolved.steps == BUDGETS[budget][training.stage]


def test_every_job_is_a_command_that_trains_what_the_arm_says():
    asked: dict[str, Training] = {}
    for study in STUDIES.values():
        asked |= trainings_of(study, World(), 101)
    curved = {"gear", *(f"generator-{arm}" for arm in ("baseline", "continued", "gear", "gear+start=joint"))}
    for name, training in asked.items():
        steps, fd_every = training.resolved.steps, training.resolved.fd_every
        assert training.seed == 101 and name.endswith("-s101")
        assert steps == BUDGETS["shipped"][training.stage]
        assert bool(fd_every and steps // fd_every >= 2) == (name.removesuffix("-s101") in curved)
        if training.parent:
            assert training.parent.parent == training.out.parent and training.parent.name in asked

    def recipe(name: str) -> Recipe:
        return asked[f"{name}-s101"].resolved

    assert recipe("gear-tau=0.01").tau == 0.01 and recipe("gear").tau == 0.1
    assert recipe("gear-alignment_weight=4.0").alignment_weight == 4
    assert recipe("gear-generator.tap=4").generator.tap == 4
    assert recipe("generator-gear-generator.tap=4+generator.tap=4").generator.tap == 4
    assert recipe("warmup-ibq").tokenizer.quantizer == "ibq"
    captioned = recipe("generator-gear+text_encoder=words-held_out_combinations=True")
    assert captioned.text_encoder == "words" and captioned.held_out_combinations
    assert recipe("generator-baseline+teacher=pixels").teacher == "pixels"
    guided = recipe("gear-teacher=random-perceptual=tiny")
    assert (guided.teacher, guided.perceptual) == ("random", "tiny")
    assert [teacher.name for teacher in load_teachers(guided.teacher, 8)] == ["random"]
    latent, soft = asked["latent-s101"], asked["generator-soft-ntp-s101"]
    assert (latent.stage, latent.arm) == ("joint", "latent")
    assert (soft.stage, soft.arm) == ("generator", "soft-ntp")
    assert recipe("generator-gear").start == "fresh" and recipe("generator-gear+start=joint").start == "joint"


def test_an_arm_that_is_named_for_a_teacher_has_it_in_every_budget():
    for budget in BUDGETS:
        world = World(budget=budget)
        study = studies.fit_to_world(STUDIES["teachers"], world)
        asked = trainings_of(study, world, 100)
        named = {}
        for arm in study.arms:
            for link in chain_of(arm)[1:]:
                named.setdefault(arm.label.split(",")[0], set()).add(
                    asked[f"{link.name}-s100"].resolved.teacher
                )
        assert named == {label: {teacher} for label, teacher in studies.TEACHERS.items()}
    curves = trainings_of(STUDIES["convergence"], World(budget="long"), 100)
    assert curves["generator-gear-s100"].resolved.fd_every == 1000


@pytest.mark.parametrize("folder", run_folders(studies.SHIPPED / "runs"), ids=lambda path: path.name)
def test_the_commands_of_a_study_are_those_behind_the_runs_that_ship(folder):
    name, _, seed = folder.name.rpartition("-s")
    given = {
        job.name: job.command
        for study in STUDIES.values()
        if name in {link.name for arm in study.arms for link in chain_of(arm)}
        for job in studies.study_jobs(study, World(budget="quick"), [int(seed)], Path("OUT"))
    }
    program, *words = shlex.split(Run(folder).record["command"])
    assert program == "gear-studio" and parse(given[folder.name]) == parse(words)


# Other worlds


PAPER = World(
    "folder",
    "PICTURES",
    "imagenet-b-vq",
    workers=3,
    execution=Execution(micro_batch=32, recompute=True, device="cpu"),
)


def test_a_paper_s_recipe_on_a_folder_trains_what_the_arms_say():
    asked: dict[str, Training] = {}
    for name in ("convergence", "collapse", "temperature", "lambda", "quantizers", "alignment-place"):
        study = studies.fit_to_world(STUDIES[name], PAPER)
        asked |= trainings_of(study, PAPER, 0)
        for job in studies.study_jobs(study, PAPER, (0,), Path("OUT")):
            if job.command[0] == "evaluate":
                assert job.command[job.command.index("--folder") + 1] == "PICTURES"
                assert "--teacher" not in job.command  # its own
    for training in asked.values():
        assert (training.source, training.folder) == ("folder", Path("PICTURES"))
        assert (training.workers, training.execution) == (3, PAPER.execution)
    recipes = {name.removesuffix("-s0"): training.resolved for name, training in asked.items()}
    for name, recipe in recipes.items():
        stage = asked[f"{name}-s0"].stage
        curves = {"fd_every": recipe.steps // 8} if recipe.fd_every else {}
        own = replace(recipe_of("imagenet-b-vq", stage, start="fresh"), **curves)
        if "=" not in name and name not in ("warmup-lfq", "warmup-ibq"):
            assert recipe == own and recipe.teacher == "dinov2-b"
    assert {name for name, recipe in recipes.items() if recipe.fd_every} == {
        "gear",
        *(f"generator-{arm}" for arm in ("baseline", "continued", "gear")),
    }
    for quantizer in ("lfq", "ibq"):
        assert recipes[f"warmup-{quantizer}"] == recipe_of(f"imagenet-b-{quantizer}", "warmup")
    # Lambda is 1 in the small recipe and 0.5 in the paper's: what is set and what is not changes places.
    weights = {"gear": 0.5, "gear-alignment_weight=1.0": 1.0, "gear-alignment_weight=4.0": 4.0}
    assert {name: recipes[name].alignment_weight for name in weights} == weights
    assert "gear-alignment_weight=0.5" not in recipes and "gear-tau=0.1" not in recipes
    labels = [arm.label for arm in STUDIES["lambda"].arms]
    assert [arm.label for arm in studies.fit_to_world(STUDIES["lambda"], PAPER).arms] == labels


def test_generators_that_train_on_have_had_as_many_steps_with_a_paper_s_recipe():
    asked = trainings_of(studies.fit_to_world(STUDIES["start"], PAPER), PAPER, 0)
    joint, fresh, init = (
        asked[f"{name}-s0"].resolved for name in ("gear", "generator-gear", "generator-gear+start=joint")
    )
    assert (fresh.start, init.start) == ("fresh", "joint")
    assert joint.steps + init.steps == fresh.steps == 4_000_000


def test_a_value_set_on_top_is_not_taken_for_the_recipe_s_own():
    fitted = studies.fit_to_world(STUDIES["lambda"], World(), ("alignment_weight=4.0",))
    sets = {arm.label: arm.joint_set for arm in fitted.arms}
    assert sets["1"] == ("alignment_weight=1.0",) and sets["4"] == ()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            "quantizers --recipe imagenet-b-ibq",
            ("'LFQ, warm-up'", "imagenet-b-ibq, has ibq", "choose one of vq"),
        ),
        ("teachers --source digits", ("teacher=random", "not digits and small", "--set teacher=NAME")),
        ("teachers --recipe imagenet-b-vq", ("teacher=random", "not shapes and imagenet-b-vq")),
        ("tap --recipe imagenet-l-vq", ("generator.tap=4", "imagenet-l-vq", "--set generator.tap=BLOCK")),
        ("text --source digits", ("held_out_combinations=True", "not digits", "--set text_encoder=words")),
        ("collapse --recipe imagenet-b-vq --budget quick", ("budget 'quick' is of the small recipe",)),
        ("collapse --source folder", ("source 'folder'", "--folder")),
        ("collapse --folder PICTURES", ("folder PICTURES", "'shapes'", "--source folder")),
        ("collapse --shard", ("shard spreads", "in one", "leave it out")),
        ("collapse --set taau=1", ("no setting 'taau'",)),
        ("collapse --from-zoo --recipe imagenet-b-vq", ("--from-zoo trains nothing, so --recipe",)),
        ("collapse --ship --source digits", ("--ship is for a study as it is, not with --source",)),
    ],
)
def test_what_a_world_cannot_have_is_refused_before_anything_trains(
    words,
    parts,
    command,  # noqa: F811
    monkeypatch,
    tmp_path,
):
    monkeypatch.setattr(jobs, "run", lambda *_: pytest.fail("trained"))
    complains(command("study", *words.split(), "--out", tmp_path), *parts)
    assert not list(tmp_path.iterdir())


TINY = (  # the paper's recipe in miniature, with the teacher that is there
    "steps=4 batch_size=4 teacher=tiny perceptual=teacher gan_weight=0 log_every=2 checkpoint_every=2 "
    "tokenizer.image_size=32 tokenizer.channels=32 tokenizer.multipliers=[1,1] tokenizer.res_blocks=1 "
    "tokenizer.patch=4 tokenizer.latent=32 tokenizer.codes=64 generator.dim=32 generator.blocks=3 "
    "generator.heads=2 generator.tap=2"
).split()


def folder_study(out: str, pictures: str, *words: str) -> list[str]:
    given = ["--source", "folder", "--folder", pictures, "--recipe", "imagenet-b-vq", "--seeds", "0"]
    return ["study", "plumbing", *given, "--set", *TINY, "--out", out, *words]


def do_words(words: list[str], log: Path) -> None:
    """A command line, in a process of its own."""
    hurry()
    with log.open("w") as file, contextlib.redirect_stdout(file):
        cli.run(words)


def test_a_folder_with_a_paper_s_recipe_from_the_command_to_the_table(tmp_path, monkeypatch, capsys):
    """The first run made by two processes, by the command that the study prints."""
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    tiny.pngs(pictures, {"train": 8, "val": 6})
    log = tmp_path / "said.txt"
    words = folder_study(str(out), str(pictures))
    monkeypatch.setitem(STUDIES, "plumbing", PLUMBING)
    cli.run([*words, "--commands"])
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in commands] == 4 * [["gear-studio", "train"]] + 2 * [
        ["gear-studio", "evaluate"]
    ]
    assert not out.exists()
    tiny.in_two(tiny.command, [*commands[0][1:], "--micro-batch", "1"])

    assert tiny.run_apart(do_words, [*words, "--micro-batch", "2"], log) == 0, log.read_text()
    said = log.read_text()
    assert said.count("finished before") == 1 and said.count("done") == 5
    runs = {
        Run(path.parent).config["arm"]: Run(path.parent) for path in out.glob("runs/generator-*/config.json")
    }
    first = runs["baseline"].parent
    assert (first.record["processes"], first.record["execution"]["micro_batch"]) == (2, 1)
    assert runs["gear"].record["execution"]["micro_batch"] == 2
    for run in runs.values():
        assert run.config["source"] == "folder" and run.config["classes"] == ["kind0", "kind1"]
        assert (
            run.config["recipe"]["perceptual_weight"] == 1.0
            and run.config["recipe"]["spatial_norm"] == "auto"
        )
        assert (run.evaluation["samples"], run.evaluation["samples_asked"]) == (6, 5000)
        assert run.evaluation["teacher"] == "tiny" and len(run.series("val_fd")[0]) == 2
    table = list(csv.DictReader((out / "plumbing" / "table.csv").open()))
    fds = {row["arm"]: float(row["fd"]) for row in table}
    assert fds == {arm: pytest.approx(run.evaluation["fd"]["mean"]) for arm, run in runs.items()}
    assert all(row["agreement"] == "" for row in table)  # the judge knows the embedded world
    assert "Recipe imagenet-b-vq, source folder, seeds 0." in said

    record, found = studies.load_study("plumbing", out)
    assert record["folder"] == str(pictures) and record["set"] == TINY
    assert {key: run.folder for key, run in found.items()} == {(a, 0): r.folder for a, r in runs.items()}


def test_a_study_that_was_not_made_is_not_looked_at(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished study tap.*gear-studio study tap --out"):
        studies.load_study("tap", tmp_path)
    record, found = studies.load_study("convergence")
    assert record == studies.record_of_shipped(STUDIES["convergence"])
    assert found.keys() == studies.shipped_runs("convergence").keys()


# The runner


def test_a_job_that_another_process_is_at_is_waited_for(tmp_path, capsys):
    held = jobs.lock_file(tmp_path / "one.lock")
    assert jobs.lock_file(tmp_path / "one.lock") is None
    finished = []
    job = jobs.Job("one", ["never started"], [], lambda: not finished.append(1))
    threading.Timer(0.5, held.close).start()
    jobs.run([job], 1, 1, tmp_path)
    assert finished == [1]
    said = capsys.readouterr().out
    assert said.count("another process is at it") == 1 and "finished before" in said


# A study, end to end


def hurry() -> None:
    """From here on this process knows the study `plumbing`, runs jobs in forks and measures little."""
    tiny.torch.set_num_threads(1)
    fidelity.AGREEMENT_SAMPLES = 24
    jobs.subprocess = types.SimpleNamespace(Popen=tiny.Forked, STDOUT=None)
    STUDIES["plumbing"] = PLUMBING


def do_study(out: Path, log: Path) -> None:
    """The command `study plumbing`, in a process of its own."""
    hurry()
    with log.open("w") as file, contextlib.redirect_stdout(file):
        commands.study("plumbing", World(budget="smoke"), seeds=(0,), at_once=2, out=out, set=SMALL)


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def finished(folder: Path) -> bool:
    return (folder / "record.json").is_file() and Run(folder).finished


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, dict[Path, int], str]:
    """A study that was killed when its first run was finished and started again: its folder, when the files
    of the first run had been written by then, and what the second start said."""
    folder = tmp_path_factory.mktemp("study")
    first = folder / "runs" / f"warmup-{'-'.join(SMALL)}-s0"
    process = tiny.processes.Process(target=do_study, args=(folder, folder / "first.txt"))
    process.start()
    deadline = time.monotonic() + 300
    while not finished(first):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not list(folder.glob("runs/generator-*/record.json"))
    before = times(first)
    assert tiny.run_apart(do_study, folder, folder / "second.txt") == 0, (folder / "second.txt").read_text()
    return folder, before, (folder / "second.txt").read_text()


def test_killed_and_started_again_it_does_not_redo_what_is_finished(study):
    folder, before, said = study
    first = f"warmup-{'-'.join(SMALL)}-s0"
    assert f"{first}: finished before" in said and f"{first}: gear-studio" not in said
    assert times(folder / "runs" / first) == before and before
    runs = {path.name.split("-generator.")[0]: Run(path) for path in (folder / "runs").iterdir()}
    assert set(runs) == {"warmup", "gear", "generator-baseline", "generator-gear"}
    assert all(run.finished and run.metrics[-1]["step"] == 4 for run in runs.values())
    assert runs["generator-gear"].generator.config.dim == 32
    assert runs["generator-gear"].parent.name == runs["gear"].name
    for name in ("generator-gear", "generator-baseline", "gear"):
        assert runs[name].series("val_fd")[0].tolist() == [2, 4]


def test_a_third_start_does_nothing_but_write_the_table(study):
    folder, *_ = study
    before = times(folder / "runs")
    assert tiny.run_apart(do_study, folder, folder / "third.txt") == 0
    assert times(folder / "runs") == before
    said = (folder / "third.txt").read_text()
    assert said.count("finished before") == 4 + 2 and "done" not in said


def test_the_table_says_what_the_runs_say(study):
    folder, _, said = study
    table = list(csv.DictReader((folder / "plumbing" / "table.csv").open()))
    assert [(row["arm"], row["seed"]) for row in table] == [("baseline", "0"), ("gear", "0")]
    for row in table:
        run = Run(folder / "runs" / row["run"])
        assert run.config["arm"] == row["arm"]
        e = json.loads((run.folder / "evaluation.json").read_text())
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        expected = {"ntp": lines[-1]["val_ntp"], "alignment": lines[-1]["val_alignment"]}
        expected |= {"fd": e["fd"]["mean"], "fd_guided": e["fd_guided"]["mean"], "rfd": e["rfd"]}
        expected |= {"agreement": 100 * e["class_agreement"]["1.5"]["mean"], "psnr": e["psnr"]}
        assert {key: float(row[key]) for key in expected} == pytest.approx(expected)
        assert e["teacher"] == "tiny" and e["samples"] == 24
    baseline, gear = (Run(folder / "runs" / row["run"]) for row in table)
    for key in ("ntp", "alignment", "fd"):
        ratio = speed_up(baseline.series(f"val_{key}"), gear.series(f"val_{key}"))
        assert float(table[1][f"{key}_speed_up_over_baseline"]) == pytest.approx(ratio)
        assert float(table[0][f"{key}_speed_up_over_baseline"]) == pytest.approx(1)
    summary = (folder / "plumbing" / "summary.md").read_text()
    assert summary.strip() in said and f"{baseline.evaluation['psnr']:.2f}" in summary
    assert "| measure, on the paper's own data | paper |" in summary
    for name in ("figure.png", "speed-ups.png"):
        with Image.open(folder / "plumbing" / name) as figure:
            assert figure.width > 900 and figure.height > 300


def test_a_run_that_was_asked_otherwise_is_refused_by_name(study, monkeypatch, capsys):
    folder, *_ = study
    before = times(folder / "runs")
    todo = studies.study_jobs(PLUMBING, World(budget="quick"), [0], folder, SMALL)
    with pytest.raises(
        ValueError, match=r"warmup-.*-s0 already holds another run .*batch_size is 4, asked for 16"
    ):
        jobs.run(todo, 2, 1, folder / "logs")
    assert times(folder / "runs") == before


# From Runs to a table


def test_without_shipped_studies_the_zoo_s_own_runs_make_a_table(command, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(studies.shipped, "SHIPPED", tmp_path / "none")
    code, said, complaint = command("study", "convergence", "--from-zoo", "--out", tmp_path)
    assert code == 0, complaint
    rows = {row["arm"]: row for row in csv.DictReader((tmp_path / "convergence" / "table.csv").open())}
    assert list(rows) == ["baseline", "continued", "gear", "gear, in the joint stage"]
    gear = Run.from_pretrained("generator-gear")
    assert float(rows["gear"]["fd"]) == pytest.approx(gear.evaluation["fd"]["mean"])
    assert float(rows["gear"]["ntp"]) == gear.metrics[-1]["val_ntp"]
    joint = Run.from_pretrained("gear")
    assert float(rows["gear, in the joint stage"]["ntp"]) == joint.metrics[-1]["val_ntp"]
    assert rows["gear, in the joint stage"]["fd"] == ""
    assert f"{gear.evaluation['fd']['mean']:.2f}" in said and "paper" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["convergence"]


def test_errors_a_user_can_act_on(command, tmp_path):  # noqa: F811
    out = ("--out", tmp_path)
    for words, *parts in (
        (("study", "colapse"), "unknown study 'colapse'", "choose one of convergence, collapse"),
        (
            ("study", "convergence", "--from-zoo", "--seeds", "7", *out),
            "generator-gear (seed 7)",
            "gear-studio study convergence",
        ),
        (("study", "convergence", "--from-zoo", "--set", "tau=1", *out), "--from-zoo trains nothing"),
        (("study", "convergence", "--from-zoo", "--ship", *out), "--from-zoo trains nothing", "--ship"),
        (("study", "convergence", "--ship", "--set", "tau=1", *out), "--ship is for a study as it is"),
    ):
        complains(command(*words), *parts)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match=r"study tap needs generator-gear.*not among .*runs"):
        studies.find_runs(STUDIES["tap"], [0], tmp_path)


# What ships


def made_study(study: Study, out: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Everything a study trains, as finished folders that hold numbers, and weights of a few thousand."""
    monkeypatch.setitem(STUDIES, study.name, study)
    numbers = iter(range(1, 10_000))
    for arm in study.arms:
        *_, measured = links = chain_of(arm)
        for link in links:
            for seed in (0, 1):
                folder = out / "runs" / f"{link.name}-s{seed}"
                if folder.exists():
                    continue
                folder.mkdir(parents=True)
                parent = link.parent and f"{link.parent}-s{seed}"
                config = {"stage": link.stage, "arm": link.arm, "seed": seed, "parent": parent}
                config["recipe"] = {"generator": {"tap": 2}}
                write_json(folder / "config.json", config)
                write_json(folder / "record.json", {"finished": True, "command": f"--out {folder}"})
                curve = [{"step": 10 * i, "val_ntp": 5 / i + next(numbers) / 100} for i in (1, 2, 3)]
                (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in curve))
                (folder / "samples.png").write_bytes(b"")
                if link == measured:
                    evaluation = {"rfd": next(numbers) / 7, "fd": {"mean": next(numbers) / 3}}
                    write_json(folder / "evaluation.json", evaluation)
                if link.stage == "generator":
                    tiny.generator().save_pretrained(folder / "generator")
                else:
                    tiny.Tokenizer(tiny.TOKENIZER).save_pretrained(folder / "tokenizer")
    found = studies.find_runs(study, (0, 1), out)
    studies.write_study(
        study, found, out / study.name, studies.make_record(study, World(budget="smoke"), (0, 1))
    )
    return study


@pytest.fixture
def zoo(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(places, "ZOO", tmp_path / "zoo")
    monkeypatch.setattr(studies.shipped, "SHIPPED", tmp_path / "zoo" / "studies")
    return tmp_path / "zoo"


def test_what_ships_is_the_study_without_what_is_heavy(zoo, tmp_path, monkeypatch, command):  # noqa: F811
    study = replace(PLUMBING, arms=(studies.BASELINE, studies.GEAR), weights=("gear",))
    made_study(study, out := tmp_path / "out", monkeypatch)
    monkeypatch.setattr(studies, "study_jobs", lambda *_: [])  # all is trained
    code, said, complaint = command("study", "plumbing", "--seeds", 0, 1, "--out", out, "--ship")
    assert code == 0 and "shipped: " in said, complaint
    there = zoo / "studies"
    names = {"warmup", "gear", "generator-baseline", "generator-gear"}
    assert [path.name for path in run_folders(there / "runs")] == sorted(
        f"{n}-s{s}" for n in names for s in (0, 1)
    )
    written = {"table.csv", "summary.md", "record.json"}
    assert {path.name for path in (there / "plumbing").iterdir()} == written
    assert not list(there.rglob("*.png"))
    for path in [*there.rglob("*.json"), *there.rglob("*.jsonl")]:
        assert str(tmp_path) not in path.read_text()
    heavy = {path.parents[1].name for path in there.rglob("model.safetensors")}
    assert heavy == {"warmup-s0", "gear-s0", "generator-gear-s0"}
    assert {path.name for path in (there / "runs").iterdir()} == heavy | {"plumbing.runs.jsonl"}

    generator = Run.from_pretrained("studies/runs/generator-gear-s0")
    assert generator.generator.config == tiny.GENERATOR and generator.tokenizer.grid == 4
    light = Run.from_pretrained("studies/runs/generator-baseline-s1")
    assert light.evaluation and light.metrics and light.parent.config["arm"] == "warmup"
    trained = Run(out / "runs" / "generator-baseline-s1")
    assert (light.config, light.metrics) == (trained.config, trained.metrics)
    with pytest.raises(FileNotFoundError, match="holds no generator"):
        light.generator  # noqa: B018
    assert list(runs.list_runs(there / "runs")) == ["gear-s0", "generator-gear-s0", "warmup-s0"]

    for path in (there / "plumbing").iterdir():
        assert path.read_bytes() == (out / "plumbing" / path.name).read_bytes()
    code, said, complaint = command("study", "plumbing", "--from-zoo", "--out", tmp_path / "again")
    assert code == 0, complaint
    assert (there / "plumbing" / "summary.md").read_text().strip() in said
    for path in (there / "plumbing").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / "plumbing" / path.name).read_bytes()


def test_a_run_that_two_studies_need_ships_once(zoo, tmp_path, monkeypatch):
    there, out = zoo / "studies" / "runs", tmp_path / "out"
    monkeypatch.setattr(studies.shipped, "STUDIES", {})  # whose weights ship
    first = made_study(replace(PLUMBING, name="first", arms=(studies.GEAR,), controls=()), out, monkeypatch)
    studies.ship_study(first, (0, 1), out)
    second = made_study(PLUMBING, out, monkeypatch)
    write_json(out / "runs" / "gear-s1" / "evaluation.json", {"rfd": 5.0})  # measured since
    studies.ship_study(second, (0, 1), out)
    assert {path.name: set(read_shared(path)) for path in there.iterdir()} == {
        "first.runs.jsonl": {f"{name}-s{s}" for name in ("warmup", "gear", "generator-gear") for s in (0, 1)},
        "plumbing.runs.jsonl": {"generator-baseline-s0", "generator-baseline-s1"},
    }
    assert Run(there / "gear-s1").evaluation == {"rfd": 5.0}

    monkeypatch.setattr(studies.shipped, "STUDIES", {"plumbing": replace(second, weights=("gear",))})
    studies.ship_study(second, (0, 1), out)
    assert Run(there / "gear-s0").has("tokenizer")
    assert "gear-s0" not in read_shared(there / "first.runs.jsonl")
    monkeypatch.setattr(studies.shipped, "STUDIES", {})
    studies.ship_study(second, (0, 1), out)
    assert not Run(there / "gear-s0").has("tokenizer")
    assert "gear-s0" in read_shared(there / "plumbing.runs.jsonl")


def test_runs_of_another_budget_are_not_put_under_tables_that_ship(zoo, tmp_path, monkeypatch):
    study = made_study(PLUMBING, out := tmp_path / "out", monkeypatch)
    studies.ship_study(study, (0, 1), out)
    studies.ship_study(study, (0, 1), out)  # the same again is no other
    config = out / "runs" / "gear-s1" / "config.json"
    write_json(config, json.loads(config.read_text()) | {"recipe": {"steps": 7}})
    before = times(zoo)
    with pytest.raises(ValueError, match="gear-s1 ships with another config.*delete"):
        studies.ship_study(study, (0, 1), out)
    assert times(zoo) == before


@pytest.mark.parametrize("folder", sorted(studies.SHIPPED.glob("*/table.csv")), ids=lambda p: p.parent.name)
def test_stored_tables_say_what_the_shipped_runs_say(folder, tmp_path):
    study = studies.study_of(folder.parent.name)
    found = studies.shipped_runs(study.name)
    assert {seed for _, seed in found} == set(studies.record_of_shipped(study)["seeds"])
    studies.write_study(study, found, tmp_path, studies.record_of_shipped(study))
    for name in ("table.csv", "summary.md", "record.json"):
        assert (tmp_path / name).read_text() == (folder.parent / name).read_text()


def test_weights_ship_where_a_study_names_them_and_the_zoo_stays_small():
    for study in STUDIES.values():
        assert set(study.weights) <= {arm.label for arm in study.arms}
        if study.weights and (studies.SHIPPED / study.name).is_dir():
            for arm in study.arms:
                for link in chain_of(arm) if arm.label in study.weights else ():
                    run = Run.from_pretrained(f"studies/runs/{link.name}-s0")
                    assert run.has("generator" if link.stage == "generator" else "tokenizer")
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) <= 60e6


def test_the_package_takes_along_all_that_ships():
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["gear_studio"]
    taken = {path for pattern in patterns for path in ZOO.parent.glob(pattern)}
    assert taken >= {path for path in ZOO.rglob("*") if path.is_file()}


def test_help_lists_every_study_with_its_question(command):  # noqa: F811
    code, said, _ = command("study", "--help")
    said = " ".join(said.split())
    assert code == 0 and all(f"{s.name}: {s.question}" in said for s in STUDIES.values())
    assert "seeds 100 and above" in said


def made_run(folder: Path, curve: list[float]) -> Run:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"stage": "generator", "seed": 0, "parent": None, "recipe": {"generator": {"tap": 2}}})
    )
    lines = [{"step": 100 * (i + 1), "val_ntp": value} for i, value in enumerate(curve)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Run(folder)


def test_the_summary_is_the_median_with_the_extremes_over_seeds(tmp_path):
    study = Study("made", "Which?", "arm", (Arm("a"), Arm("b")), ("ntp", "fd"), controls=("a",))
    curves = {"a": ([5, 4, 3.0], [5, 4, 2.5], [5, 4, 3.5]), "b": ([3, 2, 1.0], [5, 5, 5.0], [4, 3.5, 3.25])}
    runs = {
        (label, seed): made_run(tmp_path / f"{label}{seed}", curve)
        for label, of_seeds in curves.items()
        for seed, curve in enumerate(of_seeds)
    }
    rows = studies.table_rows(study, runs)
    assert [row["ntp_speed_up_over_a"] for row in rows[3:]] == [3.0, 0.0, 1.5]
    text = studies.summarize(study, runs)
    assert "| a | 3 | 3.000 (2.500 to 3.500) | not measured |" in text
    assert "| b | 3 | 3.250 (1.000 to 5.000) | not measured |" in text
    pairs = [runs[label, seed].series("val_ntp") for label in "ab" for seed in range(3)]
    expected = speed_up_over_seeds(pairs[:3], pairs[3:])
    assert (expected.value, expected.reached) == (1.5, 2) and f"| b | {expected.with_paired()} |" in text
    assert "paper" not in text


def test_arms_are_compared_within_a_seed():
    values = {"a": (1.0, 5.0, 9.0), "b": (0.5, 4.0, 8.0), "c": (1.5, 6.0, 0.0), "d": (1.0, 5.5, 8.5)}
    table = [{"arm": a, "seed": n, "fd": v} for a, of in values.items() for n, v in enumerate(of)]
    # Though their ranges overlap.
    assert studies.compare_arms(table, "a", "b", "fd") == ("above", "in every seed")
    assert studies.compare_arms(table, "b", "a", "fd") == ("below", "in every seed")
    assert studies.compare_arms(table, "a", "c", "fd") == ("below", "in 2 of 3 seeds")
    assert studies.compare_arms(table, "a", "d", "fd") == ("above and below", "in as many seeds")
    assert studies.compare_arms(table, "a", "a", "fd") == ("equal to", "in every seed")
    for wrong in (table[1:], [row | {"fd": None} for row in table[:1]] + table[1:]):
        with pytest.raises(ValueError, match="fd of a is there for seeds"):
            studies.compare_arms(wrong, "a", "b", "fd")


def test_a_tokenizer_s_change_is_over_its_own_warm_up_and_its_own_seed_s_control(tmp_path):
    z = {"warmup": 0.5, "gear": 0.4, "continued": 0.1, "warmup-ibq": 0.3, "gear-ibq": 0.7}
    generators = []
    for seed in (0, 1):
        for arm, value in z.items():
            name = f"{arm}-s{seed}"
            parent = None if arm.startswith("warmup") else f"warmup{arm.removeprefix('gear')}-s{seed}"
            parent = f"warmup-s{seed}" if arm == "continued" else parent
            quantizer = "ibq" if arm.endswith("ibq") else "vq"
            config = {"stage": "joint", "seed": seed, "parent": parent}
            config["recipe"] = {"tokenizer": {"quantizer": quantizer}}
            write_json(tmp_path / name / "config.json", config)
            write_json(tmp_path / f"of-{name}" / "config.json", {"stage": "generator", "parent": name})
            cka = {"tokenizer.z": {"cka": value + seed}, "tokenizer.c_q": {"cka": 2 * value}}
            write_json(tmp_path / f"of-{name}" / "evaluation.json", {"likeness": {"patch": cka}})
            generators.append(Run(tmp_path / f"of-{name}"))
    found = {(row["arm"], row["seed"]): row for row in studies.tokenizer_changes(generators)}
    assert found.keys() == {(arm, seed) for arm in ("gear", "continued", "gear-ibq") for seed in (0, 1)}
    for seed in (0, 1):
        expected = {"z_cka_over_warmup": -0.1, "c_q_cka_over_warmup": -0.2}
        expected |= {"z_cka_over_continued": 0.3, "c_q_cka_over_continued": 0.6}
        assert {k: found["gear", seed][k] for k in expected} == pytest.approx(expected)
        assert found["gear-ibq", seed]["z_cka_over_warmup"] == pytest.approx(0.4)
        assert found["continued", seed]["c_q_cka_over_warmup"] == pytest.approx(-0.8)
        assert found["continued", seed]["z_cka_over_continued"] is None
        assert found["gear-ibq", seed]["z_cka_over_continued"] is None
    reference = plots.by_seed(
        [found["gear", 0], found["gear", 1]], {"z_cka_over_warmup": "change of CKA"}, "arm", reference=0
    )
    assert [0, 0] in [list(line.get_ydata()) for line in reference.axes[0].lines]


def test_a_sweep_s_figure_has_a_dot_for_each_seed_and_a_line_at_the_median():
    rows = [
        {"arm": arm, "seed": seed, "fd": base + seed, "ntp": None}
        for arm, base in (("0.1", 1.0), ("0.3", 5.0))
        for seed in (0, 1, 2)
    ]
    figure = plots.by_seed(rows, {"fd": "FD", "ntp": "NTP (nats/token)"}, "tau")
    fd, ntp = figure.axes
    assert sorted(line.get_ydata()[0] for line in fd.lines) == [1, 2, 3, 5, 6, 7]
    assert [segment[0][1] for lines in fd.collections for segment in lines.get_segments()] == [2, 6]
    assert (fd.get_xlabel(), fd.get_ylabel(), ntp.get_ylabel()) == ("tau", "FD", "NTP (nats/token)")
    assert len({(line.get_color(), line.get_marker()) for line in fd.lines}) == 3
    assert not ntp.lines
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["seed 0", "seed 1", "seed 2", "median"]


def test_what_a_seed_takes_counts_each_training_once_and_guesses_by_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(studies.shipped, "ZOO", tmp_path / "zoo")
    monkeypatch.setattr(studies.shipped, "SHIPPED", tmp_path / "studies")
    study = studies.study_of("temperature")  # one warm-up; joint and generator of three temperatures

    def ships(name: str, stage: str, seconds: float, device: str = "x86_64 CPU, 1 threads") -> None:
        words = [] if stage == "warmup" else ["--stage", stage]  # what is the default is not written
        line = " ".join(["gear-studio train shapes", *words, "--arm x --budget quick --out x"])
        record = {"command": line, "seconds": seconds, "device": device, "finished": True}
        write_json(tmp_path / "studies" / "runs" / name / "record.json", record)

    ships("warmup-s0", "warmup", 10.0, "x86_64 CPU, 2 threads")
    ships("gear-s0", "joint", 100.0)
    assert studies.core_seconds(study, "quick") is None  # no generator ships
    ships("generator-gear-s0", "generator", 1000.0)
    ships("generator-gear-s1", "generator", 3000.0)
    ships("generator-baseline-s0", "generator", 5000.0)
    ships("generator-baseline-s1", "generator", 9.0, "NVIDIA GPU")
    # Its own runs' median where they ship, else that of all of the stage.
    assert studies.core_seconds(study, "quick") == 20 + 3 * 100 + 2000 + 2 * 3000
    assert studies.core_seconds(study, "smoke") is None


def test_a_study_says_first_what_its_numbers_are_worth():
    smoke = studies.describe_sizes(World(budget="smoke"))
    assert smoke.startswith("Budget smoke: ") and "say nothing" in smoke
    assert studies.describe_sizes(World("digits", recipe="imagenet-b-vq")) == "Recipe imagenet-b-vq."
