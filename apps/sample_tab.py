"""Sample: two generators draw the same class from the same random numbers, row by row."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
import snippets
from components import QUIET, div, polite, sheet
from page import Page
from PIL.Image import Image
from runs_on_offer import RunsOnOffer
from side_by_side import (
    ANY,
    advance_side_by_side,
    class_condition,
    decode_by_row,
    drawn_by,
    map_scales,
    next_seed,
    progress,
    run_choice,
    sampling_controls,
    sampling_settings,
    seed_number,
)

from gear_studio import plots, sampling

TITLE = "Sample"
GUIDE = (
    "Two generators draw the same class from the same random numbers: at first one trained on the "
    "tokenizer as it was, and one on GEAR's. Choose a class and press Sample."
)


def build(page: Page) -> None:
    """Lay the tab out. It draws when the page is opened: visitors see it first."""
    runs = page.runs
    names = runs.generators
    left = runs.default(names, "generator", "baseline")
    right = runs.default(names, "generator", "gear")
    classes = runs[left].config["classes"]
    codes = runs.tokenizer(left).config.codes

    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            label = gr.Dropdown(
                [ANY, *classes], value=classes[min(13, len(classes) - 1)], label="Class", elem_id="class",
                info="of the left run; type to search", allow_custom_value=True,  # the API asks any run
            )  # fmt: skip
            sliders, seed = sampling_controls(codes)
            page.remember(label, *sliders, seed)
            go = gr.Button("Sample", variant="primary", elem_id="sample")
            again = gr.Button("Next seed", elem_id="next-seed", elem_classes="again")
        with gr.Column(scale=4):
            with gr.Row():
                choices, captions, sheets = [], [], []
                for side, name in (("left", left), ("right", right)):
                    with gr.Column(min_width=320):
                        choices.append(run_choice(page, names, name, f"{side}-run"))
                        captions.append(gr.HTML(elem_id=f"{side}-caption", padding=False))
                        sheets.append(sheet(f"{side}-sheet"))
            if runs.lacking:
                lacks = "; ".join(f"{name}: {why}" for name, why in runs.lacking.items())
                gr.HTML(div("note", f"Not offered: {lacks}."), elem_id="lacking", padding=False)
            status = gr.HTML(elem_id="sample-status", padding=False)
            map_scales(codes)
            gr.Markdown(
                "Both runs use the same random number for the same token of the same picture, so what "
                "differs is what they learnt; each paints with the tokenizer it was trained on. The maps "
                "under a picture show, token by token, how likely the chosen code was and how undecided the "
                "generator was before it chose: of the guided distribution, before temperature, top-k and "
                "top-p. The numbers are means over the picture, in nats. Grey is not decoded yet."
            )

    # The names of the parameters are the app's API.
    def sample(
        left: str,
        right: str,
        label: str,
        count: float,
        guidance: float,
        temperature: float,
        top_k: float,
        top_p: float,
        seed: int | None,
    ) -> Iterator[tuple]:
        """Draw the same class with two generators from the same random numbers. Answers in the files of two
        sheets of pictures, and what they show."""
        with polite():
            how = guidance, temperature, int(top_k), top_p, seed_number(seed)
            yield from _draw(runs, (left, right), label, int(count), *how)

    def snippet(left: str, right: str, label: str, count: float, guidance: float, *how: Any) -> str:
        settings = sampling_settings(guidance if label != ANY else 1.0, *how)
        return snippets.of_samples(runs, (left, right), None if label == ANY else label, int(count), settings)

    def offer_classes(name: str, label: str) -> gr.Dropdown:
        classes = runs[name].config["classes"]
        return gr.Dropdown(choices=[ANY, *classes], value=label if label in classes else ANY)

    snippets.lay_out(snippet, [*choices, label, *sliders, seed], "sample")
    results: dict[str, Any] = {
        "inputs": [*choices, label, *sliders, seed],
        "outputs": [*sheets, *captions, status],
        "show_progress": "hidden",
        "concurrency_id": "sample",
    }
    unlisted: dict[str, Any] = {**results, "api_visibility": "private"}
    gr.on([go.click, seed.submit], sample, **results, api_name="sample")
    page.draw_first(sample, **unlisted)
    again.click(next_seed, seed, seed, **QUIET).then(sample, **unlisted)
    choices[0].change(offer_classes, [choices[0], label], label, **QUIET)
    # What is typed then replaces the class chosen, instead of being added to its name.
    label.focus(None, js="() => document.querySelector('#class input').select()", **QUIET)


def _draw(
    runs: RunsOnOffer,
    names: tuple[str, ...],
    label: str,
    count: int,
    guidance: float,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> Iterator[tuple]:
    """Yields (left sheet, right sheet, their captions, status) after every row of tokens."""
    # Guidance compares with the null condition: without a class there is nothing to guide towards.
    scale = 1.0 if label == ANY else guidance
    sides = []
    for name in names:
        generator, condition = runs.generator(name), class_condition(runs, name, label, count)
        stream = sampling.sample_by_row(generator, condition, scale, temperature, top_k, top_p, seed)
        sides.append(_draw_sheets(runs, name, stream))
    captions = [drawn_by(name, label, scale, seed) for name in names]
    for items in advance_side_by_side(sides):
        done, tokens = min((place for _, place in items), key=lambda place: place[0] / place[1])
        yield (*(sheet for sheet, _ in items), *captions, progress(done, tokens))


def _draw_sheets(
    runs: RunsOnOffer, name: str, stream: Iterator[sampling.Progress]
) -> Iterator[tuple[Image, tuple[int, int]]]:
    """Yields (sheet, (tokens decoded, tokens in all)) of one Run after every row of tokens."""
    tokenizer = runs.tokenizer(name)
    for images, step in decode_by_row(tokenizer, stream):
        sheet = plots.sample_sheet(images, step.log_probs, step.entropy, step.done, tokenizer.config.codes)
        yield sheet, (step.done, step.indices.shape[1])
