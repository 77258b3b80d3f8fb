"""Prompt: two generators draw what is asked for in words, and show which words they looked at."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
import snippets
import torch
from components import LAST_COUNTS, QUIET, div, polite, released, sheet
from page import Page
from PIL.Image import Image
from runs_on_offer import RunsOnOffer
from side_by_side import (
    advance_side_by_side,
    drawn_by,
    map_scales,
    next_seed,
    progress,
    run_choice,
    sampling_controls,
    sampling_settings,
    seed_number,
)
from torch import Tensor

from gear_studio import data, plots, sampling
from gear_studio.analysis.attention import attention_to_words
from gear_studio.data import prompts, shapes
from gear_studio.errors import InputError
from gear_studio.looking.pictures import WORLD_PICTURES
from gear_studio.models.text_encoders import TextEncoder

TITLE = "Prompt"
GUIDE = (
    "Two generators are asked in words. Write what they shall draw and press Draw; then click a word to "
    "see where it was looked at."
)
LONGEST = 2000  # characters of a prompt
OPEN = "any"  # in the list of an attribute: the caption leaves it out
FIRST_PROMPT = {"color": "red", "texture": "striped", "shape": "star", "position": "top left"}
NO_RUNS = """
### No run here is asked in words yet

Train one on a tokenizer that ships, which takes two cores half an hour:

```sh
gear-studio train shapes --stage generator --condition caption --parent gear
```

then open the explorer with `--runs runs`. `--arm baseline --parent warmup` trains a second one to see
beside it.
"""


@dataclass(frozen=True)
class Drawn:
    """The finished pictures in the page. text: their prompt. sides: name of the Run and tokens (B, N) of
    each; empty while pictures are under way."""

    text: str = ""
    sides: tuple[tuple[str, Tensor], ...] = ()


def build(page: Page) -> None:
    """Lay the tab out; it draws for the first time when it is opened."""
    runs = page.runs
    names = runs.captioned
    if not names:
        gr.Markdown(NO_RUNS, elem_id="prompt-none")
        return
    chosen = list(dict.fromkeys(runs.default(names, "generator", arm) for arm in ("baseline", "gear")))
    if len(chosen) == 1:  # one arm alone, perhaps of several seeds
        chosen = names[:2]
    codes = runs.tokenizer(chosen[0]).config.codes
    drawn = gr.State(Drawn())

    text = gr.Textbox(
        shapes.describe(FIRST_PROMPT), label="Prompt", elem_id="prompt-text", max_length=LONGEST,
        info="free text; the lists below write a caption into it. Empty asks for nothing (null caption)",
    )  # fmt: skip
    with gr.Row():
        lists = [
            gr.Dropdown(
                [OPEN, *values], value=FIRST_PROMPT.get(key, OPEN), label=key.capitalize(), min_width=120,
                elem_id=f"prompt-{key}",
            )
            for key, values in shapes.ATTRIBUTES.items()
        ]  # fmt: skip
    notes = gr.HTML(elem_id="prompt-notes", padding=False)
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            sliders, seed = sampling_controls(codes, "prompt-")
            control = gr.Checkbox(
                label="Negative control", elem_id="prompt-control",
                info="the same random numbers, asked for another picture's caption",
            )  # fmt: skip
            page.remember(text, control, *sliders, seed)
            go = gr.Button("Draw", variant="primary", elem_id="prompt-go")
            again = gr.Button("Next seed", elem_id="prompt-next-seed", elem_classes="again")
        with gr.Column(scale=4):
            choices, captions, sheets, titles, controls, maps, scales = [], [], [], [], [], [], []
            with gr.Row():
                for number, name in enumerate(chosen):
                    with gr.Column(min_width=320):
                        choices.append(run_choice(page, names, name, f"prompt-run-{number}"))
                        captions.append(gr.HTML(padding=False, elem_id=f"prompt-caption-{number}"))
                        sheets.append(sheet(f"prompt-sheet-{number}"))
                        titles.append(gr.HTML(padding=False, elem_id=f"prompt-control-title-{number}"))
                        controls.append(sheet(f"prompt-control-{number}", "The control", visible=False))
            status = gr.HTML(elem_id="prompt-status", padding=False)
            map_scales(codes)
            with gr.Row(equal_height=True):
                word = gr.Radio([], label="Words looked at", elem_id="prompt-words", scale=3,
                                info="click one, once the pictures are finished")  # fmt: skip
                config = runs.generator(chosen[-1]).config
                deepest = max(runs[name].config["recipe"]["generator"]["blocks"] for name in names)
                block = gr.Slider(1, deepest, config.tap, step=1, label="Generator block b", scale=1,
                                  min_width=180, elem_id="prompt-block")  # fmt: skip
            with gr.Row():
                for number in range(len(chosen)):
                    with gr.Column(min_width=320):
                        maps.append(sheet(f"prompt-map-{number}", "Attention to the word"))
                        scales.append(gr.HTML(padding=False))
            gr.Markdown(
                "Runs side by side use the same random number for the same token of the same picture. A map "
                "shows, at the place of every token, the share of its attention that its prediction gave to "
                "the word: softmax weights of the block, mean over heads, with the prompt as condition "
                "(guidance compares with a second pass, without words). The rest went to other words and to "
                "earlier tokens, of which there are more the further down. Attention is where the generator "
                "looked, not what the word did; that is what the control is for: where words decide, the "
                "same random numbers show the other caption and not the prompt."
            )

    views = [*sheets, *titles, *controls, status, notes, drawn, word, *maps, *scales, *captions]
    inputs = [text, control, *sliders, seed, *choices]

    def prompt(
        text: str | None,
        control: bool,
        count: float,
        guidance: float,
        temperature: float,
        top_k: float,
        top_p: float,
        seed: int | None,
        *names: str,
    ) -> Iterator[tuple]:
        """Draw what a prompt asks for with generators of captions, from the same random numbers. Answers in
        the files of their sheets of pictures, and what they show."""
        with polite():
            how = guidance, temperature, int(top_k), top_p, seed_number(seed)
            if text and len(text) > LONGEST:
                raise InputError(f"The prompt has {len(text):,} characters; at most {LONGEST:,} are read.")
            yield from _draw(runs, names, text or "", control, int(count), *how)

    def snippet(text: str | None, _: bool, count: float, guidance: float, *values: Any) -> str:
        how, names = values[:4], values[4:]
        return snippets.of_samples(runs, names, text or "", int(count), sampling_settings(guidance, *how))

    snippets.lay_out(snippet, inputs, "prompt")

    def draw_first(drawn: Drawn, *values: Any) -> Iterator[tuple]:
        if drawn.sides:
            yield (gr.skip(),) * len(views)
        else:
            yield from prompt(*values)

    def look(drawn: Drawn, word: int | None, block: float) -> list:
        if word is None or not drawn.sides:
            return [gr.skip()] * (len(maps) + len(scales))
        with polite():
            return _look(runs, drawn, word, int(block))

    results: dict[str, Any] = {"outputs": views, "show_progress": "hidden", "concurrency_id": "sample"}
    unlisted: dict[str, Any] = {**results, "api_visibility": "private"}
    gr.on([go.click, text.submit, seed.submit], prompt, inputs, **results, api_name="prompt")
    page.tab.select(draw_first, [drawn, *inputs], **unlisted)
    again.click(next_seed, seed, seed, **QUIET).then(prompt, inputs, **unlisted)
    for each in lists:
        each.input(_write_caption, lists, text, **QUIET)
    for event in (word.input, released(block)):
        event(look, [drawn, word, block], [*maps, *scales], **LAST_COUNTS)


def _write_caption(*values: str) -> str:
    """The values of the lists as a caption, in the plainest words; nothing where all are open."""
    chosen = {k: v for k, v in zip(shapes.ATTRIBUTES, values, strict=True) if v and v != OPEN}
    return shapes.describe(chosen) if chosen else ""


def _notes_on(runs: RunsOnOffer, names: tuple[str, ...], text: str) -> str:
    """What a visitor should know about the prompt, as HTML."""
    encoders = [_text_encoder(runs, name) for name in names]
    notes = []
    if not encoders[0].words(text):
        notes.append(
            "The prompt has no words: the pictures are unconditioned, and there is nothing to guide towards."
        )
    # Of other sources only the captions would tell.
    if any(data.find_source(runs[name].config["source"]).embedded for name in names):
        notes += [
            f"‘{word}’ is not a word of this world's captions; the picture will ignore or misread it."
            for word in prompts.unknown_words(text)[:5]
        ]
    limits = [encoder.length for encoder in encoders if encoder.count_cut(text)]
    if limits:
        notes.append(f"The prompt is too long: it is cut after its first {min(limits)} words.")
    return "".join(div("big", note) for note in notes)


def _draw(
    runs: RunsOnOffer,
    names: tuple[str, ...],
    text: str,
    control: bool,
    count: int,
    guidance: float,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> Iterator[tuple]:
    """Yields, in the order of `views`, after every row of tokens; words can be clicked after the last."""
    other = shapes.Shapes("val").caption(seed % WORLD_PICTURES) if control else ""
    encoders = [_text_encoder(runs, name) for name in names]  # once for all visitors, before they encode
    words = encoders[0].words(text)
    captions, numbers = [text] * count, list(range(count))
    if control:  # in one batch, which costs less than two
        captions, numbers = captions + [other] * count, numbers * 2
    scale = guidance if words or control else 1.0
    sides = []
    for name in names:
        condition, generator = runs[name].encode(captions), runs.generator(name)
        stream = sampling.sample_by_row(generator, condition, scale, temperature, top_k, top_p, seed, numbers)
        sides.append(_draw_sheets(runs, name, stream, count))
    notes, blank = _notes_on(runs, names, text), (None,) * len(names)
    title = f"Control: the same random numbers, asked for “{other}”" if control else ""
    for items in advance_side_by_side(sides):
        step = min((step for *_, step in items), key=lambda step: step.done / step.indices.shape[1])
        tokens, drawn, choices = step.indices.shape[1], Drawn(), []
        if step.done == tokens:
            indices = (step.indices[:count] for *_, step in items)
            drawn = Drawn(text, tuple(zip(names, indices, strict=True)))
            choices = [(word, number) for number, word in enumerate(words)]
        yield (
            *(sheet for sheet, *_ in items),
            *(div("title", title) for _ in items),
            *(gr.update(value=sheet, visible=control) for _, sheet, _ in items),
            progress(step.done, tokens),
            notes,
            drawn,
            gr.Radio(choices, value=None),
            *blank,
            *blank,
            *(drawn_by(name, f"“{text}”", scale, seed) for name in names),
        )


def _text_encoder(runs: RunsOnOffer, name: str) -> TextEncoder:
    encoder = runs.text_encoder(name)
    assert encoder is not None  # the Runs offered here are asked in words
    return encoder


@torch.no_grad()
def _draw_sheets(
    runs: RunsOnOffer, name: str, stream: Iterator[sampling.Progress], count: int
) -> Iterator[tuple[Image, Image | None, sampling.Progress]]:
    """Yields (sheet of the first `count` pictures, sheet of the others or None, progress) of one Run."""
    tokenizer = runs.tokenizer(name)
    for step in stream:
        values = tokenizer.decode(step.indices), step.log_probs, step.entropy
        sheets = [
            plots.sample_sheet(images, log_probs, entropy, step.done, tokenizer.config.codes)
            for images, log_probs, entropy in zip(*(value.split(count) for value in values), strict=True)
        ]
        yield sheets[0], sheets[1] if len(sheets) > 1 else None, step


@torch.no_grad()
def _look(runs: RunsOnOffer, drawn: Drawn, number: int, block: int) -> list:
    """The maps of attention to word `number` of the prompt, then their scales, of each side."""
    maps: list[Image | None] = []
    scales = []
    first_words = _text_encoder(runs, drawn.sides[0][0]).words(drawn.text)
    for name, indices in drawn.sides:
        generator, tokenizer = runs.generator(name), runs.tokenizer(name)
        words = _text_encoder(runs, name).words(drawn.text)
        if words != first_words:
            maps.append(None)
            scales.append(div("note", "The text encoder of this run reads other words."))
            continue
        condition = runs[name].encode([drawn.text] * len(indices)).to(indices.device)
        block_here = min(block, generator.config.blocks)
        shares = attention_to_words(generator, indices, condition)[:, block_here - 1, :, number]
        top = float(shares.max())
        maps.append(plots.attention_sheet(tokenizer.decode(indices), shares, top))
        quantity = f"attention to “{words[number]}” in block {block_here}; mean {float(shares.mean()):.3f}"
        scales.append(plots.legend(quantity, 0, top, "cividis", digits=3))
    return [*maps, *scales]
