"""The choice of a picture, in every tab that looks at one: a number of the world, or an upload."""

import random
from dataclasses import dataclass
from typing import Any

import gradio as gr
from components import QUIET, polite, released
from pictures import WORLD_PICTURES, Picture, read_photo
from runs_on_offer import RunsOnOffer


@dataclass
class Picker:
    """The controls in one tab; the tab renders the caption where it likes."""

    index: gr.Slider
    another: gr.Button
    upload: gr.UploadButton
    caption: gr.Markdown


def build(prefix: str) -> Picker:
    """Lay the controls out. prefix: of their ids in the page."""
    with gr.Column(scale=4, min_width=260):
        index = gr.Slider(
            0,
            WORLD_PICTURES - 1,
            0,
            step=1,
            label="Picture",
            info="number in the world, held out from training",
            elem_id=f"{prefix}-index",
        )
    with gr.Column(scale=3, min_width=170):
        another = gr.Button("Another picture", elem_id=f"{prefix}-another")
        # All types are let through: the reader says in words what it cannot read.
        upload = gr.UploadButton("Your own picture", elem_id=f"{prefix}-upload")
    caption = gr.Markdown(Picture().caption(), render=False, elem_id=f"{prefix}-caption")
    return Picker(index, another, upload, caption)


def connect(runs: RunsOnOffer, pickers: list[Picker], picture: gr.State) -> list[Any]:
    """Keep the pickers alike and `picture` what they say. Returns the events after which it may differ."""

    def chosen(picture: Picture) -> list:
        return [picture] + [picture.caption()] * len(pickers) + [picture.index] * len(pickers)

    def choose_number(index: float) -> list:
        return chosen(Picture(index=int(index)))

    def choose_another() -> list:
        return chosen(Picture(index=random.randrange(WORLD_PICTURES)))

    def choose_photo(path: str) -> list:
        with polite():
            photo = read_photo(path, runs.largest_picture())
        return [photo] + [photo.caption()] * len(pickers) + [gr.skip()] * len(pickers)

    outputs = [picture, *(each.caption for each in pickers), *(each.index for each in pickers)]
    events = []
    for each in pickers:
        events += [
            released(each.index)(choose_number, each.index, outputs, **QUIET),
            each.another.click(choose_another, None, outputs, **QUIET),
            each.upload.upload(choose_photo, each.upload, outputs, **QUIET),
        ]
    return events
