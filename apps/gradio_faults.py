"""Faults of Gradio that visitors would notice, put right here, each by the smallest change."""

import hashlib
from pathlib import Path

import gradio as gr
from gradio import processing_utils
from PIL.Image import Image

from gear_studio.files import atomic


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


def keep_streams_open(demo: gr.Blocks) -> None:
    """Leave the stream of answers to a page open until the page is closed. To be called before the launch.

    By itself Gradio closes it whenever nothing is under way, and the page opens another for its next request.
    A request made just then takes the closing stream for open, and its answer waits for a later request."""
    demo._queue.pending_event_ids_session = _NeverEmpty()


class _NeverEmpty(dict[str, set[str]]):
    """The requests under way of every session, and one more, so that there are always some."""

    def __setitem__(self, session: str, requests: set[str]) -> None:
        super().__setitem__(session, requests | {"the page itself"})
