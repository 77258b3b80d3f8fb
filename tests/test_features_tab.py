"""The explorer's tab Features: what is said of the Runs that ship, of measures and maps written by hand."""

import html
import json
import re
import sys
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch

from gear_studio.analysis.similarity import Estimate, Null
from gear_studio.looking.by_block import ByBlock, Patches
from gear_studio.looking.pictures import Picture, pictures_of_source

sys.path.insert(0, str(Path(__file__).parents[1] / "apps"))
import app  # noqa: E402
import background as background_module  # noqa: E402
import features_look  # noqa: E402
from background import OWN_TEACHER, Background, PatchMap  # noqa: E402
from features_look import AT_TAP, Line, Look, Measures, draw_chosen, draw_map  # noqa: E402
from runs_on_offer import RunsOnOffer  # noqa: E402

pytestmark = pytest.mark.slow  # training, or the app

HOSTILE = "<img src=x onerror=window.ran=1>"
FEW = 16  # pictures


@pytest.fixture(scope="module")
def background() -> Background:
    return Background(RunsOnOffer(None))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_module, "MEASURED", FEW)


def look(background: Background, name: str, asked: str = OWN_TEACHER, layer: str = AT_TAP, place=(0.4, 0.4)):
    pictures = pictures_of_source("shapes")
    view = background.runs.view(name, Picture(pictures, 3))
    return Look(view, name, asked, pictures, layer, place, background)


def test_a_run_is_read_then_measured_then_mapped(background, monkeypatch):
    monkeypatch.setattr(background_module, "umap_layout", np.copy)  # UMAP takes long, and is tested elsewhere
    seen = look(background, "generator-gear")
    seen.coming.result(60)
    first = look(background, "generator-gear")
    assert not first.is_mapped and first.mapping is None and "after the measures" in first.map_said
    first.measuring.result(120)
    second = look(background, "generator-gear")
    assert second.progress == f"measured over {FEW} pictures of shapes" and second.news != seen.news
    assert second.mapping.result(60).patches is second.found.patches
    third = look(background, "generator-gear")
    said = f"{FEW * 64:,} patches of {FEW} pictures of shapes by their h3 in generator-gear"
    assert third.is_mapped and third.map_said.startswith(said)
    tap = third.found.patches.features["generator.3"]
    np.testing.assert_array_equal(third.patch_map.layout, tap.numpy())


def test_the_strip_shows_every_block_with_the_same_patch_framed(background):
    seen = look(background, "generator-gear", place=(0.99, 0.01))
    seen.coming.result(60)
    strip = look(background, "generator-gear", place=(0.99, 0.01)).strip()
    titles = re.findall("<b>(.*?)</b>", strip)
    assert titles == ["x", "f(x)", "z", "c_q", *(f"h{block}" for block in range(1, 7))]
    assert strip.count("<img") == 10 and "block 3, the tap" in strip
    frames = set(re.findall('<i style="(.*?)"', strip))
    assert frames == {"left:87.500%;top:0.000%;width:12.500%;height:12.500%"}
    early = seen.strip(tokenizer=False, generator=False)
    assert early.count("computing …") == 8
    alone = look(background, "warmup").strip()
    assert re.findall("<b>(.*?)</b>", alone) == ["x", "f(x)", "z", "c_q"]


def test_without_a_teacher_all_but_likeness_is_measured_and_the_reason_is_text(background):
    asked = f"no {HOSTILE}"
    look(background, "warmup", asked).coming.exception(60)
    seen = look(background, "warmup", asked, layer="f(x)")
    seen.measuring.result(120)
    seen = look(background, "warmup", asked, layer="f(x)")
    measures = Measures([seen])
    assert measures.names == ["Moran's I", "high-frequency ratio", "probe of texture", "probe of shape"]
    assert seen.is_mapped and seen.patch_map is None and "cannot be had" in seen.map_said
    for shown in (seen.strip(), measures.said, measures.protocol):
        assert "<img src=x" not in shown
    assert "warmup, no likeness: teacher no " in html.unescape(measures.protocol)


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.1, value + 0.1, Null(0.05, 0, 0.1))


def test_a_chart_marks_chance_the_teacher_and_the_tap_of_every_run(background):
    looks = [look(background, name) for name in ("warmup", "generator-gear")]
    measures = Measures(looks)
    places = ["teacher", "tokenizer.z", "tokenizer.c_q", *(f"generator.{block}" for block in range(1, 13))]
    values = {"CKA": {place: estimate(0.1 * i) for i, place in enumerate(places)}}
    values["CKA"]["tokenizer.c_q"] = f"no value {HOSTILE}"
    some = {"CKA": {"tokenizer.z": estimate(0.7)}}
    measures.lines = [
        Line(HOSTILE, "#000", None, ByBlock(16, some, "how")),
        Line("gear", "#111", 3, ByBlock(64, values, "how")),
    ]
    drawing = measures.drawing("CKA")
    json.dumps(drawing, allow_nan=False)
    marks = [layer["mark"] | {"rows": layer["data"]["values"]} for layer in drawing["layer"]]
    (curve,) = [mark for mark in marks if mark["type"] == "line" and mark["strokeWidth"] > 2]
    assert [row["at"] for row in curve["rows"]] == [f"h{block}" for block in range(1, 13)]
    dots = [mark for mark in marks if mark["type"] == "point"]
    assert [len(mark["rows"]) for mark in dots] == [1, 13]
    assert dots[0]["xOffset"] == -dots[1]["xOffset"] != 0
    assert [row["chance"] for row in dots[0]["rows"]] == [0.05]
    teacher = [mark["rows"] for mark in marks if mark["type"] == "rule" and mark.get("strokeDash") == [7, 4]]
    assert [row["value"] for row in teacher[0]] == [0.0]
    taps = [mark["rows"] for mark in marks if mark.get("strokeDash") == [2, 2]]
    assert taps == [[{"run": "gear", "at": "h3"}]]
    assert "gear, h12 1.400" in drawing["description"]
    assert HOSTILE not in measures.protocol and "CKA of c_q" in measures.protocol


@pytest.fixture
def laid() -> PatchMap:
    images = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    images[1, 1:] = 0  # red
    picture, token = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 15, 5, 6])
    patches = Patches(images, range(7, 9), 4, picture, token, {})
    return PatchMap(patches, np.array([[0, 0], [1, 0], [0, 2], [1, 2]], dtype=np.float32))


def test_a_map_has_a_point_in_its_colour_for_each_patch(laid):
    drawn = draw_map(laid)
    fills = re.findall('fill="(.*?)"', drawn)
    assert fills == ["rgb(255,255,255)"] * 2 + ["rgb(255,0,0)"] * 2
    across = [float(x) for x in re.findall('cx="(.*?)"', drawn)]
    assert across[0] == across[2] < across[1] == across[3] <= features_look.MAP


def test_chosen_patches_are_framed_in_their_pictures_those_with_most_first(laid):
    drawn = draw_chosen(laid, [2, 3, 3, 1, 99, -1])
    assert "3 patches of 2 pictures" in drawn
    assert re.findall("<b>(.*?)</b>", drawn) == ["picture 8", "picture 7"]
    frames = re.findall("left:(.*?)%;top:(.*?)%", drawn)
    assert frames == [("25.000", "25.000"), ("50.000", "25.000"), ("75.000", "75.000")]
    assert ">1 patch<" in draw_chosen(laid, [0]) and "<figure" not in draw_chosen(laid, [99])


def test_the_tab_stands_between_alignment_and_edit(background):
    titles = [tab.TITLE for tab in app.TABS]
    assert titles[titles.index("Features") - 1 :][:3] == ["Alignment", "Features", "Edit"]
    assert isinstance(app.build(background.runs, background), gr.Blocks)
