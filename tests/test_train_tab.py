"""The explorer's tab Train: what a form asks for, and what is said about trainings."""

import json
import sys
from pathlib import Path

import pytest

from gear_studio.files import write_json
from gear_studio.training.queue import Queue, Standing

sys.path.insert(0, str(Path(__file__).parents[1] / "apps"))
import train_look  # noqa: E402
from background import Background  # noqa: E402
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


def test_training_and_validation_stand_in_one_chart_under_one_name():
    rows = [
        {"step": 2, "ntp": 5.0, "val_ntp": 6.0, "seconds": 1.0},
        {"step": 4, "ntp": None, "val_ntp": 5.5, "val_psnr": 9.0, "seconds": 2.0},
    ]
    assert train_look.metrics_of(rows) == ["ntp", "psnr"]
    chart = json.loads(train_look.draw_curves("one", rows, "ntp").plot)
    points = chart["layer"][0]["data"]["values"]
    assert [(point["kind"], point["step"], point["value"]) for point in points] == [
        ("training", 2, 5.0), ("validation", 2, 6.0), ("validation", 4, 5.5)
    ]  # fmt: skip
    assert train_look.draw_curves("one", rows, "l1") is None


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
