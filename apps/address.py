"""The page's address, which says what is looked at, so that a view can be sent.

What a visitor changes is written into it, a control under its id in the page or another key. What an opened
address says is put into the controls, where they can hold it; the rest is passed over.
"""

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr
from components import MIDDLE, QUIET, Place

LONGEST = 2000  # characters of a value that are read
READ = "() => { window.addressRead = true; }"  # JavaScript to run then


def write(key: str) -> str:
    """JavaScript that puts a value into the address under `key`, once the address has been read (READ)."""
    return f"""(value) => {{
        if (!window.addressRead) return;
        const at = new URL(location);
        at.searchParams.set({json.dumps(key)}, typeof value === "string" ? value : JSON.stringify(value));
        history.replaceState(history.state, "", at);
    }}"""


def remember(control: Any, key: str) -> None:
    """Write every change of a control into the address."""
    control.change(None, control, None, js=write(key), **QUIET)


def read(control: Any, said: Mapping[str, str]) -> Any:
    """The value for a control that an address says; as it is where there is none that it can hold."""
    text = said.get(control.elem_id, "")
    if not text or len(text) > LONGEST:
        return gr.skip()
    plain = isinstance(control, gr.Textbox | gr.Radio) or (
        isinstance(control, gr.Dropdown) and not control.multiselect
    )
    try:
        value = text if plain else json.loads(text)
        control.preprocess(value)  # judges it as Gradio judges what a page sends
    except (gr.Error, ValueError, TypeError, OverflowError, RecursionError):
        return gr.skip()
    if isinstance(control, gr.Checkbox) != isinstance(value, bool):
        return gr.skip()
    return value


def read_place(text: str) -> Place:
    """As `write_place` has written it; the middle for another text."""
    try:
        across, down = (float(number) for number in text.split(","))
    except ValueError:
        return MIDDLE
    return (across, down) if 0 <= across <= 1 and 0 <= down <= 1 else MIDDLE


def write_place(place: Place) -> str:
    return ",".join(f"{share:.3f}" for share in place)
