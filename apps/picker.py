"""The choice of a picture, in every tab that looks at one: a number of a collection, or of one's own."""

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

import gradio as gr
from components import QUIET, as_markdown, polite, released
from pictures import OWN, STRIP, YOURS, Choice, PicturesOnOffer
from PIL import Image
from runs_on_offer import RunsOnOffer

from gear_studio.looking.pictures import WORLD_PICTURES, Picture, Upload
from gear_studio.runs import Run


@dataclass
class Picker:
    """The controls in one tab, whose Run is chosen in `run`; the tab renders caption and strip where it
    likes."""

    run: gr.Dropdown
    source: gr.Dropdown
    index: gr.Slider
    another: gr.Button
    upload: gr.UploadButton
    caption: gr.Markdown
    strip: gr.Gallery

    def show_strip(self, pictures: PicturesOnOffer, choice: Choice, run: Run) -> dict[Any, Any]:
        """The pictures beside the chosen one."""
        first, thumbs = pictures.strip(choice, run)
        images = [Image.fromarray(thumb) for thumb in thumbs.movedim(1, -1).numpy()]
        chosen = min(choice.index - first, len(images) - 1)
        return {self.strip: gr.Gallery(images, selected_index=chosen)}

    def show(self, picture: Picture, choice: Choice) -> dict[Any, Any]:
        """What the controls say once the picture is known."""
        yours = choice.source == YOURS
        last = len(choice.uploads if yours else picture.pictures) - 1
        number = min(choice.index, last) if yours else picture.index
        # Not what it says already: a number that is just being typed would be overwritten.
        other: dict[str, Any] = {} if number == choice.index else {"value": number}
        index = gr.Slider(maximum=max(last, 1), interactive=last > 0, **other)
        return {self.caption: _caption(picture), self.index: index}


def build(prefix: str, run: gr.Dropdown, pictures: PicturesOnOffer) -> Picker:
    """Lay the controls out. prefix: of their ids in the page."""
    with gr.Column(scale=4, min_width=260):
        source = gr.Dropdown(pictures.names, value=OWN, label="Pictures", elem_id=f"{prefix}-source")
        index = gr.Slider(
            0, WORLD_PICTURES - 1, 0, step=1, label="Picture", info="its number", elem_id=f"{prefix}-index"
        )
    with gr.Column(scale=3, min_width=170):
        another = gr.Button("Another picture", elem_id=f"{prefix}-another")
        # All types are let through: the reader says in words what it cannot read.
        upload = gr.UploadButton("Your own picture", elem_id=f"{prefix}-upload")
    caption = gr.Markdown("", render=False, elem_id=f"{prefix}-caption")
    strip = gr.Gallery(
        columns=STRIP, rows=1, object_fit="cover", allow_preview=False, show_label=False, buttons=[],
        interactive=False, format="png", render=False, elem_id=f"{prefix}-strip", elem_classes="strip",
    )  # fmt: skip
    return Picker(run, source, index, another, upload, caption, strip)


def connect(
    runs: RunsOnOffer, pictures: PicturesOnOffer, pickers: list[Picker], choice: gr.State
) -> list[Any]:
    """Keep the pickers alike and `choice` what they say. Returns the events after which it may differ."""

    def chosen(choice: Choice) -> list:
        return [choice, *[choice.source] * len(pickers), *[choice.index] * len(pickers)]

    def choose_source(source: str, choice: Choice) -> list:
        return chosen(choice.of_source(source))

    def choose_number(index: float, choice: Choice) -> list:
        return chosen(dataclasses.replace(choice, index=int(index)))

    def choose_another(choice: Choice, name: str) -> list:
        with polite():
            count = pictures.count(choice, runs[name])
        others = [index for index in range(min(count, 10**6)) if index != choice.index]
        return chosen(dataclasses.replace(choice, index=random.choice(others or [0])))

    def choose_in_strip(choice: Choice, event: gr.SelectData) -> list:
        return chosen(dataclasses.replace(choice, index=choice.index // STRIP * STRIP + int(event.index)))

    def choose_upload(path: str, choice: Choice) -> list:
        with polite():
            return chosen(choice.with_upload(Upload(path, runs.largest_picture())))

    outputs = [choice, *(each.source for each in pickers), *(each.index for each in pickers)]
    events = []
    for each in pickers:
        events += [
            each.source.input(choose_source, [each.source, choice], outputs, **QUIET),
            released(each.index)(choose_number, [each.index, choice], outputs, **QUIET),
            each.strip.select(choose_in_strip, choice, outputs, **QUIET),
            each.another.click(choose_another, [choice, each.run], outputs, **QUIET),
            each.upload.upload(choose_upload, [each.upload, choice], outputs, **QUIET),
        ]
    return events


def _caption(picture: Picture) -> str:
    """A picture's caption in Markdown; what comes from files and folders stands as it is."""
    return as_markdown(picture.caption)
