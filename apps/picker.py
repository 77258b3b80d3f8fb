"""The choice of a picture, shared by the Codebook and Alignment tabs: one of the world, or the user's own."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr
from studio import WORLD_PICTURES, Picture, Studio, polite, released


@dataclass
class Picker:
    """The controls as they stand in one tab; the tab renders the caption where it likes."""

    index: gr.Slider
    another: gr.Button
    upload: gr.UploadButton
    caption: gr.Markdown


def build(studio: Studio, tab: str) -> Picker:
    """Lay the controls out. tab: prefix of their ids in the page."""
    with gr.Column(scale=4, min_width=260):
        index = gr.Slider(
            0,
            WORLD_PICTURES - 1,
            0,
            step=1,
            label="Picture",
            info="number in the world, held out from training",
            elem_id=f"{tab}-index",
        )
    with gr.Column(scale=3, min_width=170):
        another = gr.Button("Another picture", elem_id=f"{tab}-another")
        # All types are let through: the reader says in words what it cannot read.
        upload = gr.UploadButton("Your own picture", elem_id=f"{tab}-upload")
    return Picker(
        index, another, upload, gr.Markdown(studio.caption(Picture()), render=False, elem_id=f"{tab}-caption")
    )


def connect(studio: Studio, pickers: list[Picker], picture: gr.State, renders: list[Callable]) -> None:
    """Keep the pickers alike; after a change run `renders`, which attach themselves to the event given."""

    def shown(chosen: Picture) -> list:
        return [chosen] + [studio.caption(chosen)] * len(pickers) + [chosen.index] * len(pickers)

    def number(index: float) -> list:
        return shown(Picture(index=int(index)))

    def another() -> list:
        return shown(Picture(index=random.randrange(WORLD_PICTURES)))

    def photo(path: str) -> list:
        with polite():
            chosen = studio.photo(path)
        return [chosen] + [studio.caption(chosen)] * len(pickers) + [gr.skip()] * len(pickers)

    outputs = [picture, *(each.caption for each in pickers), *(each.index for each in pickers)]
    hidden = {"show_progress": "hidden", "api_visibility": "private"}
    for each in pickers:
        for event in (
            released(each.index)(number, each.index, outputs, **hidden),
            each.another.click(another, None, outputs, **hidden),
            each.upload.upload(photo, each.upload, outputs, **hidden),
        ):
            for render in renders:
                render(event.success)
