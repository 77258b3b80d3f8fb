"""The explorer's tab Prompt: its callbacks on a run trained here, as the tab says how, for a few steps."""

import sys
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import tiny
import torch

from gear_studio import studies
from gear_studio.data import shapes

sys.path.insert(0, str(Path(__file__).parents[1] / "apps"))
import prompt_tab  # noqa: E402
from background import Background  # noqa: E402
from page import Page  # noqa: E402
from runs_on_offer import RunsOnOffer  # noqa: E402

NAME = "shapes-caption-generator-gear-s0"
HOW = {"guidance": 1.5, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> RunsOnOffer:
    return RunsOnOffer(tiny.caption_runs(tmp_path_factory.mktemp("prompt")))


def draw(runs: RunsOnOffer, text: str, names=(NAME,), control: bool = False, **changes) -> list[tuple]:
    return list(prompt_tab._draw(runs, names, text, control, 2, **HOW | changes))


def test_pictures_come_row_by_row_and_words_with_the_last(runs):
    seen = draw(runs, "A red ring!")
    assert len(seen) == 8
    for row, (*views, image, scale, caption) in enumerate(seen, start=1):
        sheet, title, control, status, notes, drawn, words = views
        assert f"token {8 * row} of 64" in status and notes == "" and "Control" not in title
        assert sheet.size[0] > 256 and control == {"value": None, "visible": False, "__type__": "update"}
        assert (image, scale) == (None, None)
        assert f"{NAME}: “A red ring!”, guidance 1.5, seed 3" in caption
        assert bool(drawn.sides) == bool(words.choices) == (row == 8)
    assert words.choices == [("a", 0), ("red", 1), ("ring", 2)]
    ((name, indices),) = drawn.sides
    assert (drawn.text, name, indices.shape) == ("A red ring!", NAME, (2, 64))


def test_the_same_seed_and_words_give_the_same_pictures_with_and_without_control(runs):
    alone, controlled = draw(runs, "a red ring")[-1], draw(runs, "a red ring", control=True)[-1]
    assert torch.equal(alone[5].sides[0][1], controlled[5].sides[0][1])
    np.testing.assert_array_equal(*(np.asarray(each[0]) for each in (alone, controlled)))
    caption = shapes.Shapes("val").caption(3)
    assert caption in controlled[1] and controlled[2]["visible"]
    assert controlled[2]["value"].size == controlled[0].size
    itself = draw(runs, caption, control=True)[-1]  # the control of its own caption: the same pictures
    np.testing.assert_array_equal(np.asarray(itself[0]), np.asarray(itself[2]["value"]))


def test_two_sides(runs):
    last = draw(runs, "a ring", names=(NAME, NAME))[-1]
    np.testing.assert_array_equal(*map(np.asarray, last[:2]))
    maps = prompt_tab._look(runs, last[8], 1, 1)
    np.testing.assert_array_equal(*map(np.asarray, maps[:2]))
    assert maps[2] == maps[3]


def test_a_word_has_a_map_of_its_own_in_every_block(runs):
    drawn = draw(runs, "a red ring")[-1][5]
    maps = {
        (place, block): prompt_tab._look(runs, drawn, place, block) for place in (1, 2) for block in (1, 6)
    }
    assert len({picture.tobytes() for picture, _ in maps.values()}) == 4
    assert "attention to “ring” in block 6; mean" in maps[2, 6][1]
    assert "in block 6;" in prompt_tab._look(runs, drawn, 1, 99)[1]


def test_what_the_encoder_makes_of_a_prompt_is_said(runs):
    def notes(text):
        return prompt_tab._notes_on(runs, (NAME,), text)

    assert notes("a small red striped star, top left, on a dark blue background") == ""
    assert "‘zebra’ is not a word of this world&#x27;s captions" in notes("a red zebra and a Zebra")
    assert notes("zebra zebra").count("zebra") == 1
    assert "‘script’" in notes("<script>") and "<script>" not in notes("<script>")
    assert "no words: the pictures are unconditioned" in notes("") and "no words" in notes(" ?!")
    assert "cut after its first 20 words" in notes("a " * 21) and "cut" not in notes("a " * 20)


def test_without_words_guidance_changes_nothing(runs):
    one, other = (draw(runs, "", guidance=g)[-1] for g in (1.0, 4.0))
    assert torch.equal(one[5].sides[0][1], other[5].sides[0][1])
    assert not other[6].choices


def test_lists_write_captions():
    values = dict.fromkeys(shapes.ATTRIBUTES, prompt_tab.OPEN)
    assert prompt_tab._write_caption(*values.values()) == ""
    values |= {"color": "orange", "shape": "ring", "background": "dark blue"}
    assert prompt_tab._write_caption(*values.values()) == "an orange ring, on a dark blue background"


def built(runs: RunsOnOffer) -> dict[str, gr.components.Component]:
    """The tab's components that have a name in the page."""
    with gr.Blocks() as demo:
        Page(runs, Background(runs), demo).add(prompt_tab)
    return {block.elem_id: block for block in demo.blocks.values() if block.elem_id}


def test_without_a_generator_of_captions_the_way_to_one_is_shown(runs, monkeypatch):
    monkeypatch.setattr(runs, "captioned", [])
    assert "--condition caption --parent gear" in built(runs)["prompt-none"].value


def test_the_generators_that_ship_stand_side_by_side(runs):
    if not (studies.SHIPPED / "text").is_dir():
        pytest.skip("no runs of the study text ship yet: gear-studio study text --ship")
    shipped = [f"generator-{arm}+captions-s0 (studies)" for arm in ("baseline", "gear")]
    tab = built(runs)
    assert [tab[f"prompt-run-{number}"].value for number in range(2)] == shipped
    assert {value for _, value in tab["prompt-run-0"].choices} >= {NAME, *shipped}
    last = draw(runs, "a red ring", names=shipped)[-1]
    assert not np.array_equal(np.asarray(last[0]), np.asarray(last[1]))
