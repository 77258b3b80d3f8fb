"""The explorer's tab Train: what a form asks for, and what is said about trainings."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gear_studio.files import write_json
from gear_studio.places import ZOO
from gear_studio.training.queue import Queue, Standing

sys.path.insert(0, str(Path(__file__).parents[1] / "apps"))
import train_look  # noqa: E402
from background import Background  # noqa: E402
from convergence_arms import Measured  # noqa: E402
from runs_on_offer import RunsOnOffer  # noqa: E402

FORM = {
    "stage": "warmup",
    "arm": "warmup",
    "budget": "quick",
    "quantizer": "vq",
    "source": "shapes",
    "condition": "its class",
    "folder": "",
    "seed": 0,
    "steps": "",
    "name": "",
    "recipe": "small",
    "parent": train_look.BY_NAME,
    "settings": "",
}
HOSTILE = "<img src=x onerror=window.ran=1>"


def commands(queue: Queue, **form) -> list[str]:
    return train_look.describe_command(train_look.read_form(queue, **FORM | form)).splitlines()


def test_a_form_is_the_command_line_that_it_shows():
    queue = Queue(Path("runs"))
    assert commands(queue) == ["gear-studio train shapes --budget quick"]
    assert commands(queue, stage="joint", arm="latent", seed=3, steps="40", quantizer="lfq") == [
        "gear-studio train shapes --stage joint --arm latent --seed 3 --budget quick --steps 40 "
        "--tokenizer mini-lfq"
    ]
    assert commands(queue, stage=train_look.ALL, arm="baseline", settings="tau=0.2 'teacher=my folder'") == [
        "gear-studio train shapes --budget quick --set tau=0.2 'teacher=my folder'",
        "gear-studio train shapes --stage generator --arm baseline --budget quick --set tau=0.2 "
        "'teacher=my folder'",
    ]
    assert commands(queue, condition="words") == commands(queue)  # a tokenizer is asked for nothing
    assert commands(queue, stage="generator", arm="gear", condition="words") == [
        "gear-studio train shapes --stage generator --budget quick --condition caption"
    ]
    told = Queue(Path("runs"), device="cpu")
    assert commands(told) == ["gear-studio train shapes --budget quick --device cpu"]
    named = commands(Queue(Path("a/b")), stage="joint", arm="gear", name="mine", parent="other")
    assert named == [
        "gear-studio train shapes --stage joint --out a/b/mine --parent a/b/other --budget quick"
    ]
    parents = train_look.list_parents(queue)
    assert [each for each in parents if ":" in each] == [
        f"shipped:{each}" for each in ("continued", "gear", "warmup")
    ]
    shipped = commands(queue, stage="generator", arm="gear", condition="words", parent="shipped:gear")
    words = "--parent gear --budget quick --condition caption"
    assert shipped == [f"gear-studio train shapes --stage generator {words}"]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"steps": "-1"}, "steps is -1; it has to be greater than or equal to 1"),
        ({"steps": "many"}, "steps is 'many'; give a whole number"),
        ({"seed": None}, "seed is empty"),
        ({"seed": -2}, "seed is -2; it has to be greater than or equal to 0"),
        ({"name": "a/b"}, "The name 'a/b' cannot be a folder's"),
        ({"name": ".."}, r"The name '\.\.' cannot be a folder's"),
        ({"parent": "../x"}, r"The name '\.\./x' cannot be a folder's"),
        ({"parent": "shipped:../gear"}, r"The name 'shipped:\.\./gear' cannot be a folder's"),
        ({"arm": "gear"}, "stage warmup has no arm 'gear'"),
        ({"source": "elsewhere"}, "unknown data source 'elsewhere'"),
        ({"recipe": "imagenet-b-vq"}, "budget 'quick' is of the small recipe"),
        ({"settings": "tua=1"}, "no setting 'tua'"),
        ({"settings": "tau='1"}, "No closing quotation"),
    ],
)
def test_what_cannot_be_is_said_in_the_words_of_the_command_line(form, message):
    with pytest.raises(ValueError, match=message):
        train_look.read_form(Queue(Path("runs")), **FORM | form)


def test_how_long_it_takes_is_said_where_runs_like_it_ship():
    queue = Queue(Path("runs"))

    def effort(**form) -> str:
        return train_look.describe_effort(train_look.read_form(queue, **FORM | form))

    assert "runs/shapes-warmup-quick-s0: 2,000 steps, about " in effort()
    assert effort(source="digits").endswith("2,000 steps</div>")
    assert effort(budget="smoke").endswith("4 steps</div>")


def test_a_failed_training_shows_its_last_lines_as_text(tmp_path: Path):
    queue = Queue(tmp_path)
    queue.logs.mkdir()
    (queue.logs / "one.log").write_text(f"gear-studio: {HOSTILE}\n")
    failed = Standing("one", ["train", "shapes", "--out", HOSTILE], "failed", step=50, steps=2000)
    shown = train_look.describe_standing(failed, queue)
    assert "Ended before it was finished, step 50 of 2,000." in shown
    assert 'data-state="failed"' in shown and "goes on from its last checkpoint" in shown
    assert shown.count("&lt;img src=x onerror=window.ran=1&gt;") == 2 and "<img" not in shown


def test_a_study_is_the_command_line_that_it_shows():
    asked = train_look.read_study(Queue(Path("runs")), "start", "smoke", "1, 0")
    question, command, effort = train_look.describe_study(asked, Queue(Path("runs"), at_once=2))
    assert command == "gear-studio study start --budget smoke --seeds 1 0 --at-once 2"
    told = train_look.read_study(Queue(Path("runs"), device="cpu"), "tap", "quick", "0 1 2")
    assert told.command() == ["study", "tap", "--budget", "quick", "--device", "cpu"]
    assert "runs/studies-smoke: 8 trainings; those" in effort and "a fresh one take its place?" in question
    quick = train_look.read_study(Queue(Path("a")), "convergence", "quick", "0 1 2")
    _, command, effort = train_look.describe_study(quick, Queue(Path("a"), at_once=1))
    assert command == "gear-studio study convergence --budget quick --at-once 1 --out a/studies-quick"
    assert re.search(r"18 trainings, about \d+\.\d h on one core", effort)
    for name, budget, seeds, message in (
        ("none", "quick", "0", "unknown study 'none'"),
        ("tap", "none", "0", "unknown budget 'none'"),
        ("tap", "quick", "one", "seeds is 'one'; give 1 to 20 whole numbers"),
        ("tap", "quick", "", "seeds is ''; give 1 to 20 whole numbers"),
        ("tap", "quick", "0 " * 21, "give 1 to 20 whole numbers"),
        ("tap", "quick", "9999999999", "has to be less than 4294967296"),
    ):
        with pytest.raises(ValueError, match=message):
            train_look.read_study(Queue(Path("runs")), name, budget, seeds)


def test_of_a_study_one_sees_how_many_trainings_are_done_what_runs_and_in_the_end_its_tables(tmp_path: Path):
    queue, result = Queue(tmp_path), "studies-smoke/tap/record.json"
    begun = (Standing("studies-smoke/runs/gear-s0", [], "running", step=50, steps=2000),)
    study = Standing("study", ["study", "tap"], "running", "", 1, 5, None, result, begun)
    shown = train_look.describe_standing(study, queue)
    assert "Running, 1 of 5 trainings." in shown and 'value="1" max="5"' in shown
    assert "gear-s0: running, step 50 of 2,000" in shown
    assert train_look.shown_runs(study, queue) == [tmp_path / "studies-smoke" / "runs" / "gear-s0"]
    assert train_look.read_summary(study, queue) == ""
    measuring = train_look.describe_standing(replace(study, step=5, begun=()), queue)
    assert "now their pictures are measured" in measuring
    done = replace(study, state="finished", step=5, begun=())
    assert "Finished, 5 trainings." in train_look.describe_standing(done, queue)
    assert train_look.read_summary(done, queue).startswith("Its tables cannot be read")
    (tmp_path / result).parent.mkdir(parents=True)
    (tmp_path / result).with_name("summary.md").write_text(f"| tap |\n| --- |\n| {HOSTILE} -> 4 |\n")
    said = train_look.read_summary(done, queue)
    assert said == "| tap |\n| --- |\n| &lt;img src=x onerror=window.ran=1&gt; -&gt; 4 |\n"
    assert train_look.shown_pictures(done, queue) == {"figure": tmp_path / "studies-smoke/tap/figure.png"}


def test_the_runs_of_a_study_are_in_the_lists_with_its_name(tmp_path: Path):
    runs = tmp_path / "studies-smoke" / "runs"
    shutil.copytree(ZOO / "gear", runs / "gear-s0")
    shutil.copytree(ZOO / "generator-gear", runs / "generator-gear-s0")
    shutil.rmtree(runs / "generator-gear-s0" / "generator")  # still being trained
    offered = RunsOnOffer(tmp_path)
    assert offered.tokenizers[-1] == "gear-s0 (studies-smoke)"
    assert offered["gear-s0 (studies-smoke)"].folder == runs / "gear-s0"
    measured = Measured(offered)
    assert {"gear-s0 (studies-smoke)", "generator-gear-s0 (studies-smoke)"} <= measured.keys()
    assert "gear-s0" in RunsOnOffer(runs).names


def test_training_and_validation_stand_in_one_chart_under_one_name():
    rows = [
        {"step": 2, "ntp": 5.0, "val_ntp": 6.0, "seconds": 1.0},
        {"step": 4, "ntp": None, "val_ntp": 5.5, "val_psnr": 9.0, "seconds": 2.0},
    ]
    assert train_look.metrics_of(rows) == ["ntp", "psnr"]
    chart = json.loads(train_look.draw_curves({"one": rows}, "ntp").plot)
    points = chart["layer"][0]["data"]["values"]
    assert [(point["kind"], point["step"], point["value"]) for point in points] == [
        ("training", 2, 5.0), ("validation", 2, 6.0), ("validation", 4, 5.5)
    ]  # fmt: skip
    assert train_look.draw_curves({"one": rows}, "l1") is None


def test_a_folder_where_nothing_but_trainings_is_yet_is_taken(tmp_path: Path):
    """An explorer that is started again while its first training runs."""
    with pytest.raises(ValueError, match="holds no finished run"):
        RunsOnOffer(tmp_path)
    asked = train_look.read_form(Queue(tmp_path), **FORM | {"name": "mine"})
    assert Queue(tmp_path).add(asked) == ["mine"]
    background = Background(RunsOnOffer(tmp_path))
    assert [each.name for each in background.trainings.standings()] == ["mine"]
    assert train_look.list_parents(background.trainings)[:2] == [train_look.BY_NAME, "mine"]
    write_json(tmp_path / "logs" / "mine.job.json", {})
    with pytest.raises(ValueError, match="is damaged"):
        background.trainings.standings()
