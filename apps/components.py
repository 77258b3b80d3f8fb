"""Pieces of the page that several tabs use: pictures, pieces of HTML, sliders, messages.

What comes from a file or a visitor (names of Runs and classes, notes, prompts) may hold `<`: `div` and
`heading` show it as text, and nothing else may put it into HTML.
"""

import hashlib
import html
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr
from gradio import processing_utils
from PIL.Image import Image

from gear_studio.errors import describe
from gear_studio.files import atomic

Place: TypeAlias = tuple[float, float]  # in a picture: down and across, in parts of its sides
SIDE = 512  # of every square picture and map in the page, in pixels
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


def write_pictures_once() -> None:
    """Have Gradio write the file of a picture once, whole. By itself it writes equal ones again in place,
    also while a browser reads them, which then shows none."""

    def save(image: Image, cache_dir: str, name: str = "image", format: str = "webp") -> str:
        content = processing_utils.encode_pil_to_bytes(image, format)
        path = Path(cache_dir).resolve() / hashlib.sha256(content).hexdigest() / f"{name}.{format}"
        if path.exists():
            path.touch()  # files are deleted by age
        else:
            with atomic(path) as temporary:
                temporary.write_bytes(content)
        return str(path)

    processing_utils.save_pil_to_cache = save


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
    across, down = (pixel / SIDE for pixel in event.index)
    return down, across


def token_at(place: Place, grid: int) -> int:
    """The token of a grid that covers a place, in raster order."""
    row, column = (min(grid - 1, max(0, int(part * grid))) for part in place)
    return row * grid + column


def released(slider: gr.Slider) -> Callable[..., Any]:
    """The event of a slider let go or typed in: a step after it, when the page has clamped the number."""
    return slider.release(None, js="() => {}", **QUIET).then


def status(text: str, done: bool = False) -> str:
    """A line that says what is being computed, or that all is there, as HTML."""
    return div("note", text, state="done" if done else "computing")


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
