"""Pieces of the page that several tabs use: pictures, pieces of HTML, sliders, messages.

What comes from a file or a visitor (names of Runs and classes, notes, prompts) may hold `<`: `div` and
`heading` show it as text, and nothing else may put it into HTML.
"""

import html
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from gear_studio.errors import describe

SIDE = 512  # of every square picture and map in the page, in pixels
Place = tuple[float, float]  # in a picture: shares of its width and height, in [0, 1]
MIDDLE: Place = (0.45, 0.45)  # of most pictures' object: every visitor sees a map of it at once
# Of an event that answers in place: no progress bar, and no entry in the app's API.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Of clicks and sliders: while an answer is on its way, only the last of further ones counts.
LAST_COUNTS: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}


def div(kind: str, text: str, **data: object) -> str:
    """A `<div>` of CSS class `kind` that shows `text` as it stands. data: its data- attributes."""
    attributes = "".join(f' data-{name}="{html.escape(str(value))}"' for name, value in data.items())
    return f'<div class="{kind}"{attributes}>{html.escape(text)}</div>'


def heading(title: str, note: str) -> str:
    """A title with a line of explanation, as HTML."""
    return div("title", title) + div("note", note)


def as_markdown(text: str) -> str:
    """Markdown that shows `text` as it stands, whatever marks it holds."""
    return re.sub(r"[^\w\s]|_", lambda mark: f"&#{ord(mark[0])};", text)


def panel(title: str, note: str, elem_id: str) -> gr.Image:
    """A square picture to click tokens in, under a heading."""
    gr.HTML(heading(title, note), padding=False)
    return square(elem_id, title)


def square(elem_id: str, alt: str) -> gr.Image:
    """A square picture to click tokens in, for a panel whose heading changes."""
    return gr.Image(
        show_label=False,
        interactive=False,
        format="png",
        buttons=[],
        elem_id=elem_id,
        elem_classes="panel",
        alt_text=alt,
    )


def sheet(elem_id: str, alt: str = "Sampled pictures with their maps", visible: bool = True) -> gr.Image:
    """One image that shows many pictures, of any size."""
    return gr.Image(
        show_label=False,
        interactive=False,
        format="png",
        buttons=["download", "fullscreen"],
        elem_id=elem_id,
        elem_classes="sheet",
        alt_text=alt,
        visible=visible,
    )


def clicked_place(event: gr.SelectData) -> Place:
    """Where a picture SIDE pixels wide and high was clicked."""
    across, down = (min(max(pixel / SIDE, 0.0), 1.0) for pixel in event.index)
    return across, down


def token_at(place: Place, grid: int) -> int:
    """The token that covers a place, in raster order, of any grid."""
    column, row = (min(int(share * grid), grid - 1) for share in place)
    return row * grid + column


def released(slider: gr.Slider) -> Callable[..., Any]:
    """The event of a slider let go or typed in: a step after it, when the page has clamped the number."""
    return slider.release(None, js="() => {}", **QUIET).then


def status(text: str, done: bool = False) -> str:
    """A line that says what is being computed, or that all is there, as HTML."""
    return div("note", text, state="done" if done else "computing")


def computing(what: str, step: int, steps: int, seconds: float | None = None) -> str:
    """A line that says how far a view is, and how long a step takes where that is known, as HTML."""
    long = f", about {seconds:.0f} s" if seconds is not None and seconds >= 1 else ""
    return status(f"computing: {what} (step {step} of {steps}{long}) …")


@contextmanager
def polite() -> Iterator[None]:
    """Show an error that the visitor can act on as a message in the page, without a traceback in the log."""
    try:
        yield
    except Exception as error:
        said = describe(error)
        if said is None:
            raise
        # Gradio shows a message as HTML. Quotes are harmless there, and other clients show it as it is.
        raise gr.Error(html.escape(said, quote=False), duration=12, print_exception=False) from error
