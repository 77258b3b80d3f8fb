"""Prompt: two generators draw what is asked for in words, and show which words they looked at."""

import html
from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr
import torch
from studio import (
    WORLD_PICTURES,
    Studio,
    dice,
    drawn_by,
    map_scales,
    polite,
    progress,
    released,
    sheet,
    together,
    whole,
)
from torch import Tensor

from gear_studio import data, plots, sampling
from gear_studio.analysis.attention import attention_to_words
from gear_studio.data import prompts, shapes

OPEN = "any"
FIRST = {"color": "red", "texture": "striped", "shape": "star", "position": "top left"}
NONE = """
### No run here is asked in words yet

Train one on a tokenizer that ships:

```sh
mkdir -p runs && cp -r gear_studio/zoo/gear runs/shapes-joint-gear-s0
gear-studio train shapes --stage generator --arm gear --condition caption
```

then open the explorer with `--runs runs`. For a second one beside it, copy `gear_studio/zoo/warmup` to
`runs/shapes-warmup-s0` and train with `--arm baseline`.
"""


@dataclass(frozen=True)
class Drawn:
    """What the finished pictures in the page are. sides: Run and tokens (B, N) of each."""

    text: str = ""
    sides: tuple[tuple[str, Tensor], ...] = ()


def build(tab: gr.Tab, studio: Studio) -> None:
    """Lay the tab out; it draws for the first time when it is opened."""
    names = studio.captioned
    if not names:
        gr.Markdown(NONE, elem_id="prompt-none")
        return
    chosen = list(dict.fromkeys(studio.first(names, ("generator", arm)) for arm in ("baseline", "gear")))
    if len(chosen) == 1:  # one arm alone, perhaps of several seeds
        chosen = names[:2]
    codes = studio.tokenizer(chosen[0]).config.codes
    drawn = gr.State(Drawn())

    text = gr.Textbox(
        shapes.describe(FIRST), label="Prompt", elem_id="prompt-text",
        info="free text; the lists below write a caption into it. Empty asks for nothing (null caption)",
    )  # fmt: skip
    with gr.Row():
        lists = [
            gr.Dropdown(
                [OPEN, *values], value=FIRST.get(key, OPEN), label=key.capitalize(), min_width=120,
                elem_id=f"prompt-{key}",
            )
            for key, values in shapes.ATTRIBUTES.items()
        ]  # fmt: skip
    notes = gr.HTML(elem_id="prompt-notes", padding=False)
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            settings = dice(codes, "prompt-")
            seed = settings[-1]
            control = gr.Checkbox(
                label="Negative control", elem_id="prompt-control",
                info="the same random numbers, asked for another picture's caption",
            )  # fmt: skip
            go = gr.Button("Draw", variant="primary", elem_id="prompt-go")
            again = gr.Button("Next seed", elem_id="prompt-next-seed")
        with gr.Column(scale=4):
            runs, captions, sheets, titles, controls, maps, scales = [], [], [], [], [], [], []
            with gr.Row():
                for number, name in enumerate(chosen):
                    with gr.Column(min_width=320):
                        run = gr.Dropdown(names, value=name, label="Run", elem_id=f"prompt-run-{number}")
                        about = gr.HTML(studio.about(name), padding=False)
                        captions.append(gr.HTML(padding=False, elem_id=f"prompt-caption-{number}"))
                        sheets.append(sheet(f"prompt-sheet-{number}"))
                        titles.append(gr.HTML(padding=False, elem_id=f"prompt-control-title-{number}"))
                        controls.append(sheet(f"prompt-control-{number}", "The control", visible=False))
                        run.change(studio.about, run, about, show_progress="hidden", api_visibility="private")
                        runs.append(run)
            status = gr.HTML(elem_id="prompt-status", padding=False)
            map_scales(codes)
            with gr.Row(equal_height=True):
                word = gr.Radio([], label="Words looked at", elem_id="prompt-words", scale=3,
                                info="click one, once the pictures are finished")  # fmt: skip
                config = studio.generator(chosen[-1]).config
                deepest = max(studio.runs[name].config["recipe"]["generator"]["blocks"] for name in names)
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
    inputs = [text, control, *settings, *runs]

    def draw(text, control, count, guidance, temperature, top_k, top_p, seed, *names) -> Iterator[tuple]:
        with polite():
            how = guidance, temperature, int(top_k), top_p, whole(seed)
            yield from _draw(studio, names, text, control, int(count), *how)

    def first(drawn: Drawn, *given) -> Iterator[tuple]:
        if drawn.sides:
            yield (gr.skip(),) * len(views)
        else:
            yield from draw(*given)

    def look(drawn: Drawn, word: int | None, block: int) -> list:
        if word is None or not drawn.sides:
            return [gr.skip()] * (len(maps) + len(scales))
        with polite():
            return _look(studio, drawn, word, int(block))

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    results = {"outputs": views, "show_progress": "hidden", "concurrency_id": "sample"}
    gr.on([go.click, text.submit, seed.submit], draw, inputs, **results, api_name="prompt")
    tab.select(first, [drawn, *inputs], **results, api_visibility="private")
    again.click(lambda seed: (seed or 0) + 1, seed, seed, **quiet).then(
        draw, inputs, **results, api_visibility="private"
    )
    for each in lists:
        each.input(_caption, lists, text, **quiet)
    for event in (word.input, released(block)):
        event(look, [drawn, word, block], [*maps, *scales], trigger_mode="always_last", **quiet)


def _caption(*values: str) -> str:
    """What the pick-lists say, in the plainest words; nothing where all are open."""
    said = {k: v for k, v in zip(shapes.ATTRIBUTES, values, strict=True) if v and v != OPEN}
    return shapes.describe(said) if said else ""


def _notes(studio: Studio, names: tuple[str, ...], text: str) -> str:
    """What the user should know about the prompt, as HTML."""
    runs = [studio.runs[name] for name in names]
    said = []
    if not runs[0].text_encoder.words(text):
        said.append(
            "The prompt has no words: the pictures are unconditioned, and there is nothing to guide towards."
        )
    # Of other sources only the captions would tell.
    if any(data.find_source(run.config["source"]).embedded for run in runs):
        said += [
            f"‘{word}’ is not a word of this world's captions; the picture will ignore or misread it."
            for word in prompts.unknown_words(text)[:5]
        ]
    limits = [run.text_encoder.length for run in runs if run.text_encoder.beyond(text)]
    if limits:
        said.append(f"The prompt is too long: it is cut after its first {min(limits)} words.")
    return "".join(f'<div class="big">{html.escape(line)}</div>' for line in said)


def _draw(studio, names, text, control, count, guidance, temperature, top_k, top_p, seed) -> Iterator[tuple]:
    """Yields, in the order of `views`, after every row of tokens; words can be clicked after the last."""
    text = text or ""
    other = data.load("shapes", "val").caption(seed % WORLD_PICTURES) if control else ""
    words = studio.runs[names[0]].text_encoder.words(text)
    captions, numbers = [text] * count, list(range(count))
    if control:  # in one batch, which costs less than two
        captions, numbers = captions + [other] * count, numbers * 2
    scale = guidance if words or control else 1.0
    sides = []
    for name in names:
        given, generator = studio.runs[name].encode(captions), studio.generator(name)
        stream = sampling.sample_by_row(generator, given, scale, temperature, top_k, top_p, seed, numbers)
        sides.append(_sheets(studio, name, stream, count))
    notes, blank = _notes(studio, names, text), (None,) * len(names)
    title = f"Control: the same random numbers, asked for “{other}”" if control else ""
    for rows in together(sides):
        *_, (*_, step) = rows
        tokens, drawn, choices = step.indices.shape[1], Drawn(), []
        if step.done == tokens:
            indices = (step.indices[:count] for *_, step in rows)
            drawn = Drawn(text, tuple(zip(names, indices, strict=True)))
            choices = [(word, place) for place, word in enumerate(words)]
        yield (
            *(sheet for sheet, *_ in rows),
            *(f'<div class="title">{title}</div>' for _ in rows),
            *(gr.update(value=sheet, visible=control) for _, sheet, _ in rows),
            progress(step.done, tokens),
            notes,
            drawn,
            gr.Radio(choices, value=None),
            *blank,
            *blank,
            *(drawn_by(name, f"“{text}”", scale, seed) for name in names),
        )


@torch.no_grad()
def _sheets(studio: Studio, name: str, stream: Iterator[sampling.Progress], count: int) -> Iterator[tuple]:
    """Yields (sheet of the first `count` pictures, sheet of the others or None, progress) of one Run."""
    tokenizer = studio.tokenizer(name)
    for step in stream:
        values = tokenizer.decode(step.indices), step.log_probs, step.entropy
        sheets = [
            plots.sample_sheet(*part, step.done, tokenizer.config.codes)
            for part in zip(*(value.split(count) for value in values), strict=True)
        ]
        yield sheets[0], sheets[1] if len(sheets) > 1 else None, step


@torch.no_grad()
def _look(studio: Studio, drawn: Drawn, place: int, block: int) -> list:
    """The maps of attention to the word at `place` of the prompt, then their scales, of each side."""
    maps, scales = [], []
    words = [studio.runs[name].text_encoder.words(drawn.text) for name, _ in drawn.sides]
    for (name, indices), there in zip(drawn.sides, words, strict=True):
        generator, tokenizer = studio.generator(name), studio.tokenizer(name)
        if there != words[0]:
            maps.append(None)
            scales.append('<div class="note">The text encoder of this run reads other words.</div>')
            continue
        given = studio.runs[name].encode([drawn.text] * len(indices)).to(indices.device)
        at = min(block, generator.config.blocks)
        shares = attention_to_words(generator, indices, given)[:, at - 1, :, place]
        top = float(shares.max())
        maps.append(plots.attention_sheet(tokenizer.decode(indices), shares, top))
        told = f"attention to “{there[place]}” in block {at}; mean {float(shares.mean()):.3f}"
        scales.append(plots.legend(told, 0, top, "cividis", digits=3))
    return [*maps, *scales]
