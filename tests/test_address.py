"""The page's address: what it says is put into controls that can hold it, and nothing else is."""

import sys
from pathlib import Path

import gradio as gr
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "apps"))
import address  # noqa: E402
from components import MIDDLE  # noqa: E402

CONTROLS = {
    "run": lambda: gr.Dropdown(["gear", "warmup"], elem_id="control"),
    "class": lambda: gr.Dropdown(["star"], elem_id="control", allow_custom_value=True),
    "runs": lambda: gr.Dropdown(["gear", "warmup"], multiselect=True, elem_id="control"),
    "slider": lambda: gr.Slider(1, 16, 4, step=1, precision=0, elem_id="control"),
    "seed": lambda: gr.Number(0, precision=0, minimum=0, elem_id="control"),
    "radio": lambda: gr.Radio(["z", "c_q"], elem_id="control"),
    "box": lambda: gr.Checkbox(elem_id="control"),
    "text": lambda: gr.Textbox(elem_id="control"),
}


@pytest.mark.parametrize(
    ("control", "text", "value"),
    [
        ("run", "warmup", "warmup"),
        ("class", "no such class", "no such class"),
        ("runs", '["warmup", "gear"]', ["warmup", "gear"]),
        ("slider", "7", 7),
        ("seed", "123", 123),
        ("radio", "c_q", "c_q"),
        ("box", "true", True),
        ("text", "[a] <b>", "[a] <b>"),
    ],
)
def test_what_a_control_can_hold_is_put_into_it(control, text, value):
    assert address.read(CONTROLS[control](), {"control": text}) == value


@pytest.mark.parametrize(
    ("control", "text"),
    [
        ("run", "nobody"),
        ("run", ""),
        ("runs", '["nobody"]'),
        ("runs", "gear"),
        ("runs", "[" * 1500),
        ("slider", "99"),
        ("slider", "NaN"),
        ("slider", '"7"'),
        ("slider", "[7]"),
        ("seed", "-1"),
        ("seed", "1e400"),
        ("seed", "abc"),
        ("radio", "x"),
        ("box", "7"),
        ("text", "a" * (address.LONGEST + 1)),
    ],
)
def test_what_it_cannot_hold_is_passed_over(control, text):
    assert address.read(CONTROLS[control](), {"control": text}) == gr.skip()


def test_a_place_comes_back_and_another_text_is_the_middle():
    assert address.read_place(address.write_place((0.25, 0.875))) == (0.25, 0.875)
    for text in ("", "a", "1", "1,2,3", "nan,0.5", "2,0.5", "inf,inf", "-0.1,0"):
        assert address.read_place(text) == MIDDLE
