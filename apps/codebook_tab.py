"""Codebook: what a tokenizer makes of a picture, which codes a token could have had, what codes stand for."""

import math

import gradio as gr
import picker
import torch
from studio import SIDE, Picture, Studio, clicked_token, heading, panel, polite, released, square, text

from gear_studio import plots
from gear_studio.analysis import codes
from gear_studio.analysis.codebook import usage_statistics
from gear_studio.analysis.reconstruction import psnr

FOREIGN = (
    "This tokenizer has only ever seen the embedded world: another picture comes out as the nearest that it "
    "can draw."
)
EXACT = 126.0  # dB shown where picture and reconstruction are equal, whose PSNR is infinite
UNTOUCHED = {"token": None, "edits": {}}  # of a picture: the token looked at, and position -> code replaced


def build(studio: Studio, picture: gr.State):
    """Lay the tab out. Returns its picker and a function that renders the tab after an event."""
    default = studio.first(studio.tokenizers, ("joint", "gear"))
    editing = gr.State(UNTOUCHED)
    with gr.Row(equal_height=True):
        with gr.Column(scale=3, min_width=170):
            run = gr.Dropdown(studio.tokenizers, value=default, label="Tokenizer", elem_id="tokenizer-run")
        controls = picker.build(studio, "codebook")
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
            text("Usage", "over 512 held-out pictures of the world")
            usage = gr.Plot(show_label=False, elem_id="usage", format="png")
            usage_text = gr.HTML(padding=False)
        with gr.Column(scale=3, min_width=420):
            layout_text = gr.HTML(padding=False)
            layout = gr.Plot(show_label=False, elem_id="layout", format="png")

    def show(name: str, chosen: Picture, tau: float, state: dict) -> tuple:
        with polite():
            tokenizer = studio.tokenizer(name)
            image = studio.image(chosen, _size(tokenizer))
            remark = FOREIGN if studio.foreign(chosen, name) else ""
            return _show(tokenizer, studio.survey(name), image, remark, tau, state)

    def start(name: str, chosen: Picture, tau: float) -> tuple:
        return UNTOUCHED, *show(name, chosen, tau, UNTOUCHED)

    def click(name: str, chosen: Picture, tau: float, state: dict, event: gr.SelectData) -> tuple:
        state = {**state, "token": clicked_token(event, studio.tokenizer(name).grid)}
        return state, *show(name, chosen, tau, state)

    def swap(name: str, chosen: Picture, tau: float, state: dict, code: int | None) -> tuple:
        codes_there = studio.tokenizer(name).config.codes
        if code is None or not 0 <= code < codes_there:
            given = "Nothing" if code is None else code
            raise gr.Error(
                f"{given} is not a code; choose a number from 0 to {codes_there - 1}.",
                print_exception=False,
            )
        state = {**state, "edits": {**state["edits"], state["token"]: code}}
        return state, *show(name, chosen, tau, state)

    def undo(name: str, chosen: Picture, tau: float, state: dict) -> tuple:
        state = {**state, "edits": {}}
        return state, *show(name, chosen, tau, state)

    def charts(name: str, chosen: Picture, state: dict) -> tuple:
        found, points = studio.survey(name), studio.layout(name)
        current = _current_code(studio, name, chosen, state)
        statistics = usage_statistics(found.counts)
        used, total = int((found.counts > 0).sum()), len(found.counts)
        facts = (
            f'<div class="note">{used} of {total} codes used; perplexity {statistics["perplexity"]:.0f} '
            f"(it would be {total} if all were used alike)</div>"
        )
        if points.done():
            note = "of the L2-normalised codes, by cosine distance"
            chart = plots.code_map(points.result(), found.counts, found.colors, "UMAP", current)
        else:
            note, chart = "still being computed; it appears here by itself", None
        return (
            plots.usage_histogram(found.counts, current),
            facts,
            heading("UMAP", note),
            chart,
            gr.Timer(active=not points.done()),
        )

    def wait(name: str, chosen: Picture, state: dict) -> tuple:
        if not studio.layout(name).done():
            return (gr.skip(),) * 5
        return charts(name, chosen, state)

    # While an answer is on its way, only the last of further clicks counts.
    hidden = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
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
    base = [run, picture, tau]
    waiting = gr.Timer(2, active=False)
    drawn = [usage, usage_text, layout_text, layout, waiting]
    waiting.tick(wait, [run, picture, editing], drawn, **hidden)

    def redraw(event) -> None:
        event.then(charts, [run, picture, editing], drawn, **hidden)

    def render(trigger) -> None:
        redraw(trigger(start, base, [editing, *views], **hidden))

    render(run.change)
    released(tau)(show, [*base, editing], views, **hidden)
    for map_ in (original, rebuilt, indices_map, entropy_map, edited, difference):
        redraw(map_.select(click, [*base, editing], [editing, *views], **hidden))
    choice.input(lambda code: code, choice, code, **hidden)
    redraw(replace.click(swap, [*base, editing, code], [editing, *views], **hidden))
    redraw(reset.click(undo, [*base, editing], [editing, *views], **hidden))
    return controls, render


def _size(tokenizer) -> int:
    return tokenizer.config.image_size


@torch.no_grad()
def _current_code(studio: Studio, name: str, chosen: Picture, state: dict) -> int | None:
    """The code that the token looked at has now, replaced or not."""
    if state["token"] is None:
        return None
    tokenizer = studio.tokenizer(name)
    own = tokenizer.assign(studio.image(chosen, _size(tokenizer))).indices[0, state["token"]]
    return state["edits"].get(state["token"], int(own))


@torch.no_grad()
def _show(tokenizer, found: codes.Survey, image: torch.Tensor, remark: str, tau: float, state: dict) -> tuple:
    """Everything but the charts, in the order of `views`. remark: what to say of the reconstruction."""
    grid, token, limit = tokenizer.grid, state["token"], math.log(tokenizer.config.codes)
    assignment = tokenizer.assign(image)
    scores, q = assignment.scores[0], assignment.indices[0]
    edited_q = codes.with_codes(q, state["edits"], tokenizer.config.codes)
    before, after = tokenizer.decode(torch.stack([q, edited_q]))
    quality = min(float(psnr(before[None], image)), EXACT)
    entropy = codes.token_entropy(scores, tau)
    change = (after - before).abs().mean(0) * 127.5
    top = max(float(change.max()), 1.0)

    def framed(picture):
        return plots.mark(picture, token, grid)

    pictures = {name: framed(plots.enlarge(plots.to_rgb(x), SIDE)) for name, x in
                (("x", image[0]), ("before", before), ("after", after))}  # fmt: skip
    edits = len(state["edits"])
    return (
        pictures["x"],
        pictures["before"],
        f'<div class="note">PSNR {quality:.1f} dB</div><div class="note">{remark}</div>',
        framed(plots.index_map(q, found.colors, SIDE)),
        framed(plots.heat_map(entropy, 0, limit, "viridis", SIDE)),
        plots.legend(
            f"nats; mean {entropy.mean():.2f}, effectively {entropy.exp().mean():.1f} codes a token", 0, limit
        ),
        *_token(tokenizer, found, scores, q, edited_q, token, tau),
        pictures["after"],
        f'<div class="note" data-edits="{edits}">{edits} of {len(q)} tokens replaced</div>',
        heading("|Dec(q′) − Dec(q)|", "what changed" if edits else "no change yet"),
        framed(plots.enlarge(plots.colored(change, 0, top, "magma"), SIDE)) if edits else None,
        plots.legend("grey levels of 255, mean over the channels", 0, top, "magma") if edits else "",
        *_gallery(found, None if token is None else int(edited_q[token])),
    )


def _token(tokenizer, found, scores, q, edited_q, token: int | None, tau: float) -> tuple:
    """Heading, table of the top codes, the choices to replace by, and the button."""
    if token is None:
        title = heading("Token", "Click a token in any picture.")
        return title, "", gr.Dropdown(choices=[], value=None), None, gr.Button(interactive=False)
    candidates = codes.top_codes(scores[token], tau)
    row, column = divmod(token, tokenizer.grid)
    now = int(edited_q[token])
    replaced = f", replaced by {now}" if now != int(q[token]) else ""
    title = (
        f'<div class="title" data-token="{token}">Token {token} (row {row + 1}, column {column + 1}): '
        f'code {int(q[token])}{replaced}</div><div class="note">Its likeliest codes, and their weight in the '
        "two read-outs of GEAR</div>"
    )
    lines = []
    for c in candidates:
        swatch = "rgb(" + ",".join(str(round(255 * v)) for v in found.colors[c.code].tolist()) + ")"
        lines.append(
            f'<tr><td>{c.code}</td><td><i class="swatch" style="background:{swatch}"></i></td>'
            f"<td>{c.score:.3f}</td><td>{c.hard:.0f}</td>{_weight(c.soft)}</tr>"
        )
    rest = 1 - sum(c.soft for c in candidates)
    table = (
        '<table class="codes"><tr><th>code</th><th>colour</th><th>score A</th><th>hard</th><th>soft</th>'
        "</tr>"
        + "".join(lines)
        + f'<tr class="rest"><td colspan="4">all other codes</td>{_weight(rest)}</tr></table>'
    )
    choices = [(str(c.code), c.code) for c in candidates]
    second = choices[1][1]
    return title, table, gr.Dropdown(choices=choices, value=second), second, gr.Button(interactive=True)


def _gallery(found: codes.Survey, code: int | None) -> tuple:
    if code is None:
        return heading("Patches", "that share the token's code"), None
    crops, total = codes.gallery(found, code, count=16)
    note = f"{total} of {found.indices.numel():,} patches in 512 held-out pictures use it"
    return heading(f"Patches of code {code}", note), plots.patch_gallery(crops, columns=4) if total else None


def _weight(share: float) -> str:
    """A table cell with a share in [0, 1] and a bar behind it."""
    return f'<td class="weight" style="--share:{100 * share:.1f}%">{share:.3f}</td>'
