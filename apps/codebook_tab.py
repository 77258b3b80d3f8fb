"""Codebook: what a tokenizer makes of a picture, which codes a token could have had, what codes stand for."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import gradio as gr
import torch
from components import LAST_COUNTS, SIDE, clicked_token, div, heading, panel, polite, released, square
from page import Page, Trigger
from pictures import Picture
from PIL.Image import Image
from runs_on_offer import RunsOnOffer
from torch import Tensor

from gear_studio import plots
from gear_studio.analysis import codes
from gear_studio.analysis.codebook import usage_statistics
from gear_studio.analysis.reconstruction import psnr
from gear_studio.models.tokenizer import Tokenizer

TITLE = "Codebook"
EXACT = 126.0  # dB: shown where a reconstruction is the picture itself and PSNR would be infinite
FOREIGN = (
    "This tokenizer has only ever seen the embedded world: another picture comes out as the nearest that it "
    "can draw."
)


@dataclasses.dataclass(frozen=True)
class Editing:
    """What a visitor did to the picture. token: the position looked at. edits: position -> its new code."""

    token: int | None = None
    edits: Mapping[int, int] = dataclasses.field(default_factory=dict)


def build(page: Page) -> None:
    """Lay the tab out. It follows the picture that is chosen."""
    runs, background = page.runs, page.background
    default = runs.default(runs.tokenizers, "joint", "gear")
    editing = gr.State(Editing())
    with gr.Row(equal_height=True):
        with gr.Column(scale=3, min_width=170):
            run = gr.Dropdown(runs.tokenizers, value=default, label="Tokenizer", elem_id="tokenizer-run")
        controls = page.add_picker("codebook")
        with gr.Column(scale=3, min_width=200):
            tau = gr.Slider(
                0.01, 1, 0.1, step=0.01, label="Temperature τ", info="of the soft read-out", elem_id="tau"
            )
    controls.caption.render()
    with gr.Row(elem_classes="maps"):
        with gr.Column():
            original = panel("x", "the picture; click a token", "original")
        with gr.Column():
            rebuilt = panel("Dec(q)", "its reconstruction", "reconstruction")
            quality = gr.HTML(elem_id="quality", padding=False)
        with gr.Column():
            indices_map = panel("q = argmax A", "indices, on their codes' mean colours", "indices")
        with gr.Column():
            entropy_map = panel("H(softmax(A / τ))", "entropy of the soft assignment", "entropy")
            entropy_scale = gr.HTML(elem_id="entropy-scale", padding=False)
    with gr.Row(elem_classes="maps"):
        with gr.Column():
            token_text = gr.HTML(elem_id="codebook-token", padding=False)
            table = gr.HTML(elem_id="top-codes", padding=False)
            with gr.Row():
                choice = gr.Dropdown([], label="Replace by top code", elem_id="new-choice", min_width=120)
                code = gr.Number(label="or any code", precision=0, elem_id="new-code", min_width=100)
            with gr.Row():
                replace = gr.Button(
                    "Replace", variant="primary", interactive=False, elem_id="replace", min_width=100
                )
                reset = gr.Button("Undo all", elem_id="reset", min_width=100)
        with gr.Column():
            edited = panel("Dec(q′)", "with your codes", "edited")
            edits_text = gr.HTML(elem_id="edits", padding=False)
        with gr.Column():
            difference_text = gr.HTML(elem_id="difference-text", padding=False)
            difference = square("difference", "What the new codes change")
            difference_scale = gr.HTML(padding=False)
        with gr.Column():
            gallery_text = gr.HTML(padding=False)
            gallery = gr.Image(
                show_label=False, interactive=False, format="png", buttons=[], elem_id="gallery",
                elem_classes="sheet", alt_text="Patches that use the code",
            )  # fmt: skip
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            gr.HTML(heading("Usage", "over 512 held-out pictures of the world"), padding=False)
            usage = gr.Plot(show_label=False, elem_id="usage", format="png")
            usage_text = gr.HTML(padding=False)
        with gr.Column(scale=3, min_width=420):
            layout_text = gr.HTML(padding=False)
            layout = gr.Plot(show_label=False, elem_id="layout", format="png")

    def show(name: str, picture: Picture, tau: float, state: Editing) -> tuple:
        with polite():
            tokenizer = runs.tokenizer(name)
            remark = FOREIGN if picture.is_foreign_to(runs[name]) else ""
            image = _to_image(runs, name, picture)
            return _show(tokenizer, background.survey(name), image, remark, tau, state)

    def start(name: str, picture: Picture, tau: float) -> tuple:
        return Editing(), *show(name, picture, tau, Editing())

    def click(name: str, picture: Picture, tau: float, state: Editing, event: gr.SelectData) -> tuple:
        state = dataclasses.replace(state, token=clicked_token(event, runs.tokenizer(name).grid))
        return state, *show(name, picture, tau, state)

    def swap(name: str, picture: Picture, tau: float, state: Editing, code: int | None) -> tuple:
        count = runs.tokenizer(name).config.codes
        if code is None or not 0 <= code < count:
            typed = "Nothing" if code is None else code
            raise gr.Error(
                f"{typed} is not a code; choose a number from 0 to {count - 1}.", print_exception=False
            )
        assert state.token is not None  # the button is off until a token is clicked
        state = dataclasses.replace(state, edits={**state.edits, state.token: code})
        return state, *show(name, picture, tau, state)

    def undo(name: str, picture: Picture, tau: float, state: Editing) -> tuple:
        state = dataclasses.replace(state, edits={})
        return state, *show(name, picture, tau, state)

    def draw_charts(name: str, picture: Picture, state: Editing) -> tuple:
        survey, layout = background.survey(name), background.layout(name)
        current = _current_code(runs, name, picture, state)
        statistics = usage_statistics(survey.counts)
        used, total = int((survey.counts > 0).sum()), len(survey.counts)
        if layout.done():
            note = "of the L2-normalised codes, by cosine distance"
            chart = plots.code_map(layout.result(), survey.counts, survey.colors, "UMAP", current)
        else:
            note, chart = "still being computed; it appears here by itself", None
        return (
            plots.usage_histogram(survey.counts, current),
            div(
                "note",
                f"{used} of {total} codes used; perplexity {statistics['perplexity']:.0f} "
                f"(it would be {total} if all were used alike)",
            ),
            heading("UMAP", note),
            chart,
            gr.Timer(active=not layout.done()),
        )

    def wait(name: str, picture: Picture, state: Editing) -> tuple:
        if not background.layout(name).done():
            return (gr.skip(),) * len(charts)
        return draw_charts(name, picture, state)

    views = [
        original,
        rebuilt,
        quality,
        indices_map,
        entropy_map,
        entropy_scale,
        token_text,
        table,
        choice,
        code,
        replace,
    ]
    views += [edited, edits_text, difference_text, difference, difference_scale, gallery_text, gallery]
    base = [run, page.picture, tau]
    waiting = gr.Timer(2, active=False)
    charts = [usage, usage_text, layout_text, layout, waiting]
    waiting.tick(wait, [run, page.picture, editing], charts, **LAST_COUNTS)

    def redraw_charts(event: Any) -> None:
        event.then(draw_charts, [run, page.picture, editing], charts, **LAST_COUNTS)

    def render(trigger: Trigger) -> None:
        redraw_charts(trigger(start, base, [editing, *views], **LAST_COUNTS))

    render(run.change)
    released(tau)(show, [*base, editing], views, **LAST_COUNTS)
    for map_ in (original, rebuilt, indices_map, entropy_map, edited, difference):
        redraw_charts(map_.select(click, [*base, editing], [editing, *views], **LAST_COUNTS))
    choice.input(lambda code: code, choice, code, **LAST_COUNTS)
    redraw_charts(replace.click(swap, [*base, editing, code], [editing, *views], **LAST_COUNTS))
    redraw_charts(reset.click(undo, [*base, editing], [editing, *views], **LAST_COUNTS))
    page.on_picture(render)


def _to_image(runs: RunsOnOffer, name: str, picture: Picture) -> Tensor:
    """The picture as the tokenizer of Run `name` takes it, (1, 3, H, W) in [-1, 1]."""
    return picture.to_tensor(runs.tokenizer(name).config.image_size).to(runs.device)


@torch.no_grad()
def _current_code(runs: RunsOnOffer, name: str, picture: Picture, state: Editing) -> int | None:
    """The code that the token looked at has now, replaced or not."""
    if state.token is None:
        return None
    indices = runs.tokenizer(name).assign(_to_image(runs, name, picture)).indices[0]
    return state.edits.get(state.token, int(indices[state.token]))


@torch.no_grad()
def _show(
    tokenizer: Tokenizer, survey: codes.Survey, image: Tensor, remark: str, tau: float, state: Editing
) -> tuple:
    """Everything but the charts, in the order of `views`. remark: what to say of the reconstruction."""
    grid, token, limit = tokenizer.grid, state.token, math.log(tokenizer.config.codes)
    assignment = tokenizer.assign(image)
    scores, q = assignment.scores[0], assignment.indices[0]
    edited_q = codes.with_codes(q, state.edits, tokenizer.config.codes)
    before, after = tokenizer.decode(torch.stack([q, edited_q]))
    quality = min(float(psnr(before[None], image)), EXACT)
    entropy = codes.token_entropy(scores, tau)
    change = (after - before).abs().mean(0) * 127.5
    top = max(float(change.max()), 1.0)

    def framed(picture: Image) -> Image:
        return plots.mark(picture, token, grid)

    pictures = {name: framed(plots.enlarge(plots.to_rgb(x), SIDE)) for name, x in
                (("x", image[0]), ("before", before), ("after", after))}  # fmt: skip
    edits = len(state.edits)
    return (
        pictures["x"],
        pictures["before"],
        div("note", f"PSNR {quality:.1f} dB") + div("note", remark),
        framed(plots.index_map(q, survey.colors, SIDE)),
        framed(plots.heat_map(entropy, 0, limit, "viridis", SIDE)),
        plots.legend(
            f"nats; mean {entropy.mean():.2f}, effectively {entropy.exp().mean():.1f} codes a token", 0, limit
        ),
        *_describe_token(tokenizer, survey, scores, q, edited_q, token, tau),
        pictures["after"],
        div("note", f"{edits} of {len(q)} tokens replaced", edits=edits),
        heading("|Dec(q′) − Dec(q)|", "what changed" if edits else "no change yet"),
        framed(plots.enlarge(plots.colored(change, 0, top, "magma"), SIDE)) if edits else None,
        plots.legend("grey levels of 255, mean over the channels", 0, top, "magma") if edits else "",
        *_show_gallery(survey, None if token is None else int(edited_q[token])),
    )


def _describe_token(
    tokenizer: Tokenizer,
    survey: codes.Survey,
    scores: Tensor,
    q: Tensor,
    edited_q: Tensor,
    token: int | None,
    tau: float,
) -> tuple:
    """Heading, table of the top codes, the choices to replace by, the first of them, and the button."""
    if token is None:
        title = heading("Token", "Click a token in any picture.")
        return title, "", gr.Dropdown(choices=[], value=None), None, gr.Button(interactive=False)
    candidates = codes.top_codes(scores[token], tau)
    row, column = divmod(token, tokenizer.grid)
    now = int(edited_q[token])
    replaced = f", replaced by {now}" if now != int(q[token]) else ""
    place = f"Token {token} (row {row + 1}, column {column + 1})"
    title = div("title", f"{place}: code {int(q[token])}{replaced}", token=token)
    title += div("note", "Its likeliest codes, and their weight in the two read-outs of GEAR")
    lines = []
    for c in candidates:
        swatch = "rgb(" + ",".join(str(round(255 * v)) for v in survey.colors[c.code].tolist()) + ")"
        lines.append(
            f'<tr><td>{c.code}</td><td><i class="swatch" style="background:{swatch}"></i></td>'
            f"<td>{c.score:.3f}</td><td>{c.hard:.0f}</td>{_weight_cell(c.soft)}</tr>"
        )
    rest = 1 - sum(c.soft for c in candidates)
    table = (
        '<table class="codes"><tr><th>code</th><th>colour</th><th>score A</th><th>hard</th><th>soft</th>'
        "</tr>"
        + "".join(lines)
        + f'<tr class="rest"><td colspan="4">all other codes</td>{_weight_cell(rest)}</tr></table>'
    )
    choices = [(str(c.code), c.code) for c in candidates]
    second = choices[1][1]
    return title, table, gr.Dropdown(choices=choices, value=second), second, gr.Button(interactive=True)


def _show_gallery(survey: codes.Survey, code: int | None) -> tuple:
    """Heading and patches of a code."""
    if code is None:
        return heading("Patches", "that share the token's code"), None
    crops, total = codes.gallery(survey, code, count=16)
    note = f"{total} of {survey.indices.numel():,} patches in 512 held-out pictures use it"
    return heading(f"Patches of code {code}", note), plots.patch_gallery(crops, columns=4) if total else None


def _weight_cell(share: float) -> str:
    """A table cell with a share in [0, 1] and a bar behind it."""
    return f'<td class="weight" style="--share:{100 * share:.1f}%">{share:.3f}</td>'
