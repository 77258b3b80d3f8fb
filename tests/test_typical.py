"""What is typical of the pictures that a tokenizer knows: numbers, and words about another picture."""

import sys
from pathlib import Path

import pytest
import torch

from gear_studio import Run, data
from gear_studio.analysis import codes
from gear_studio.analysis.codebook import assignment_statistics
from gear_studio.analysis.reconstruction import psnr
from gear_studio.analysis.typical import (
    FIGURES,
    figures_of,
    find_untypical,
    place_among,
    range_of,
)
from gear_studio.looking.pictures import Picture, pictures_of_source
from gear_studio.looking.view import Kept, View

sys.path.insert(0, str(Path(__file__).parents[1] / "apps"))
from codebook_look import describe_typical  # noqa: E402


@pytest.fixture(scope="module")
def survey() -> codes.Survey:
    """Of 48 of the embedded world's pictures that the shipped tokenizer was not trained on."""
    return codes.survey(Run.from_pretrained("gear").tokenizer, data.load("shapes", "val"), 48)


@torch.no_grad()
def test_figures_are_those_of_the_measures_picture_by_picture(survey):
    tokenizer = Run.from_pretrained("gear").tokenizer
    images = data.to_float(survey.images[40:43])
    assignment = tokenizer.assign(images)
    again = tokenizer.decode(assignment.indices)
    assert {key: len(values) for key, values in survey.figures.items()} == dict.fromkeys(FIGURES, 48)
    for number in range(3):
        scores, found = assignment.scores[number : number + 1], assignment_statistics
        expected = {
            key: float(found(scores, 0.1)[f"{key}_tau"]) for key in ("entropy", "effective_size", "mass_1")
        }
        expected["score"] = float(scores.amax(-1).mean())
        expected["psnr"] = float(psnr(again, images)[number])
        figures = {key: float(values[40 + number]) for key, values in survey.figures.items()}
        assert figures == pytest.approx(expected, rel=2e-3)
    view = View(Kept(), Run.from_pretrained("gear"), Picture(pictures_of_source("shapes"), 42))
    assert view.figures == pytest.approx(figures, rel=2e-3)


def test_a_survey_that_grows_has_the_figures_of_what_it_has_seen(survey):
    first, *_ = codes.grow_survey(Run.from_pretrained("gear").tokenizer, data.load("shapes", "val"), 48)
    assert len(first.images) == 32
    for key, values in first.figures.items():
        torch.testing.assert_close(values, survey.figures[key][:32], rtol=2e-3, atol=0)


def test_in_pieces_figures_are_what_they_are_as_a_whole(monkeypatch):
    tokenizer = Run.from_pretrained("warmup").tokenizer
    images = data.to_float(data.load("shapes", "val").read([1, 2])["image"])
    with torch.no_grad():
        assignment = tokenizer.assign(images)
    whole = figures_of(assignment, images, images)
    monkeypatch.setattr("gear_studio.readout.AT_ONCE", 5 * 1024)
    for key, values in figures_of(assignment, images, images).items():
        torch.testing.assert_close(values, whole[key])


def test_a_range_is_the_median_and_nine_in_ten_pictures():
    values = torch.arange(101.0)
    found = range_of(values)
    assert (found.low, found.median, found.high) == pytest.approx((5, 50, 95))
    assert range_of(values[:7]) is None and place_among(-1, values[:7]) == ""
    places = [place_among(value, values) for value in (-1, 3, 5, 50, 95, 96, 101)]
    assert places == ["below all", "below 95 %", "", "", "", "above 95 %", "above all"]


@torch.no_grad()
def test_what_a_tokenizer_of_shapes_has_never_seen_lies_outside(survey):
    tokenizer = Run.from_pretrained("gear").tokenizer
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    photo = data.to_float(data.load("photos", "val", 64).read([0])["image"])
    own = data.to_float(data.load("shapes", "val").read([100])["image"])
    said = []
    for image in (noise, photo, own):
        assignment = tokenizer.assign(image)
        found = figures_of(assignment, image, tokenizer.decode(assignment.indices))
        figures = {key: float(value) for key, value in found.items()}
        said.append(find_untypical(figures, survey.figures))
        words = describe_typical(figures, survey.figures, "48 pictures of shapes")
        assert ("Every figure lies in the range" in words) == (not said[-1])
        outside = words.count('class="outside"')
        assert outside == len(said[-1]) and "beside 48 pictures of shapes" in words
    assert said[0]["psnr"] == said[1]["psnr"] == "below all" and "psnr" not in said[2]


def test_words_name_the_figures_that_lie_outside_and_wait_for_enough_pictures():
    known = {key: torch.linspace(1, 2, 100) for key in FIGURES}
    figures = dict.fromkeys(FIGURES, 1.5) | {"psnr": 0.5, "entropy": 1.99}
    said = describe_typical(figures, known, "100 pictures of <b>")
    assert "PSNR lies below all of them (0.5 dB); mean entropy lies above 95 %" in said
    assert 'data-outside="psnr entropy"' in said and "<b>" not in said
    few = describe_typical(figures, {key: values[:4] for key, values in known.items()}, "4 pictures of x")
    assert "4 pictures of x so far, too few for a range" in few and "<table" not in few
