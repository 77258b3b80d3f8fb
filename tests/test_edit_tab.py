"""The explorer's tab Edit: painting, and what is drawn with the generators that ship."""

import sys
from pathlib import Path

import pytest
import torch

from gear_studio.looking.pictures import Picture, pictures_of_source

sys.path.insert(0, str(Path(__file__).parents[1] / "apps"))
import edit_tab  # noqa: E402
import gradio as gr  # noqa: E402
from background import Background  # noqa: E402
from edit_tab import ONE, RECTANGLE, Canvas, Version  # noqa: E402
from page import Page  # noqa: E402
from runs_on_offer import RunsOnOffer  # noqa: E402
from side_by_side import ANY  # noqa: E402

pytestmark = pytest.mark.slow  # training, or the app

NAME = "generator-gear"
BLANK = Canvas((Version(tuple(range(16))),))
HOW = {"count": 2, "guidance": 1.5, "seed": 3, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


@pytest.fixture(scope="module")
def page() -> Page:
    runs = RunsOnOffer(None)
    return Page(runs, Background(runs), gr.Blocks())


def draw(
    page: Page, picture: Picture, region: list[int], wanted: str = edit_tab.OWN_CLASS, **changes
) -> list:
    view = page.runs.view(NAME, picture)
    tokens = tuple(view.indices.tolist())
    return list(edit_tab._draw(page, view, NAME, tokens, region, wanted, **HOW | changes))


def test_a_click_paints_a_token_and_a_second_one_clears_it():
    painted = BLANK.click(5, ONE)
    assert painted.region(onward=False) == [5] and not painted.click(5, ONE).now.painted
    assert painted.region(onward=True) == list(range(5, 16)) and BLANK.region(onward=True) == []


@pytest.mark.parametrize(("first", "second"), [(5, 10), (10, 5), (6, 9), (9, 6)])
def test_two_corners_paint_a_rectangle(first, second):
    half = BLANK.click(first, RECTANGLE)
    assert half.corner == first and not half.now.painted
    whole = half.click(second, RECTANGLE)
    assert whole.now.painted == {5, 6, 9, 10} and whole.corner is None
    assert half.undo() == BLANK and whole.undo() == BLANK


def test_undo_takes_back_paint_and_answers_one_by_one():
    painted = BLANK.click(5, ONE)
    answered = painted.then(tokens=(1,) * 16)
    assert answered.now.painted == {5} and answered.undo() == painted
    assert answered.undo().undo() == answered.undo().undo().undo() == BLANK
    assert painted.then(tokens=painted.now.tokens) == painted  # nothing changed: nothing to undo
    many = BLANK
    for number in range(edit_tab.UNDONE + 5):
        many = many.click(number % 16, ONE)
    assert len(many.history) == edit_tab.UNDONE
    with pytest.raises(ValueError, match="still being read"):
        Canvas().click(0, ONE)


def test_answers_differ_in_the_region_alone_and_come_row_by_row(page):
    picture, region = Picture(pictures_of_source("shapes"), 3), [27, 28, 35, 36]
    own = page.runs.view(NAME, picture).indices
    steps = draw(page, picture, region)
    assert [f"token {8 * row} of 64" in status for row, (*_, status) in enumerate(steps, 1)] == [True] * 8
    for gallery, answers, *_ in steps:
        assert len(gallery["value"] if isinstance(gallery, dict) else gallery.value) == 2
        different = (torch.tensor(answers) != own).any(0).nonzero().flatten().tolist()
        assert set(different) <= set(region)
    assert different and len(set(answers)) == 2
    names = page.runs[NAME].config["classes"]
    text = steps[-1][2]
    assert names[picture.class_number(names)] in text and "of the picture as it is" in text


def test_the_class_is_the_picture_s_own_any_or_none(page):
    photo, known = Picture(pictures_of_source("photos")), Picture(pictures_of_source("shapes"))
    region = list(range(20, 64))
    (_, none, text, _) = draw(page, photo, region)[-1]
    assert f"{ANY}, guidance 1" in text and "as it is" not in text  # no class, and nothing is kept behind
    assert none == draw(page, photo, region, ANY)[-1][1]
    first = page.runs[NAME].config["classes"][0]
    assert draw(page, known, region, first)[-1][1] != draw(page, known, region, ANY)[-1][1]
    for wrong, message in (({"wanted": "tabby"}, "does not know the class"), ({"region": []}, "No token is")):
        with pytest.raises(ValueError, match=message):
            draw(page, known, **{"region": region} | wrong)
