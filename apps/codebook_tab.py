"""Codebook: what a tokenizer makes of a picture, which codes a token could have had, what codes stand for."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import wait

import gradio as gr
import torch
from background import Background
from components import (
    LAST_COUNTS,
    SIDE,
    clicked_place,
    div,
    heading,
    panel,
    polite,
    released,
    square,
    status,
    token_at,
)
from page import OVERTAKEN, Page, emptied
from pictures import Choice, is_foreign
from PIL.Image import Image
from torch import Tensor

from gear_studio import plots
from gear_studio.analysis import codes
from gear_studio.analysis.codebook import usage_statistics
from gear_studio.analysis.codes import Survey
from gear_studio.errors import InputError
from gear_studio.looking.view import View

TITLE = "Codebook"
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
            run = page.choose_run(runs.tokenizers, default, "Tokenizer", "tokenizer-run")
        controls = page.add_picker("codebook", run)
        with gr.Column(scale=3, min_width=200):
            tau = gr.Slider(
                0.01, 1, 0.1, step=0.01, label="Temperature τ", info="of the soft read-out", elem_id="tau"
            )
    controls.caption.render()
    state_line = gr.HTML(elem_id="codebook-status", padding=False)
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
            usage_title = gr.HTML(padding=False)
            usage = gr.Plot(show_label=False, elem_id="usage", format="png")
            usage_text = gr.HTML(padding=False)
        with gr.Column(scale=3, min_width=420):
            layout_text = gr.HTML(padding=False)
            layout = gr.Plot(show_label=False, elem_id="layout", format="png")

    place = "codebook"
    image_views: list[gr.components.Component] = [
        original,
        rebuilt,
        indices_map,
        entropy_map,
        edited,
        difference,
        gallery,
    ]
    text_views: list[gr.components.Component]
    text_views = [quality, entropy_scale, token_text, table, edits_text, difference_text, difference_scale]
    text_views += [gallery_text, usage_title, usage_text, layout_text, state_line, controls.caption]
    cleared = [*image_views, *text_views, usage, layout]
    waiting = gr.Timer(1, active=False)
    known = gr.State(())
    outputs = [*cleared, editing, known, controls.index, choice, code, replace, waiting]
    base = [run, page.choice, tau]

    def look(name: str, chosen: Choice) -> Look:
        """What is looked at. Raises what may be said to the visitor."""
        picture = page.pictures.picture(chosen, runs[name])
        return Look(runs.view(name, picture), name, chosen.surveyed, background)

    def draw(name: str, chosen: Choice, tau: float, request: gr.Request) -> Iterator[dict]:
        """The views of another Run or picture, one after the other."""
        ticket = page.newest.take(place, request, (name, chosen))
        yield emptied(cleared) | {  # what was still on its way when the page emptied them goes, too
            state_line: status(f"reading {name} …"),
            editing: Editing(),
            waiting: gr.Timer(active=False),
        }
        try:
            with polite():
                for updates in steps(name, chosen, tau, Editing()):
                    if not ticket.valid:
                        return
                    yield updates
        except gr.Error:
            yield {state_line: status("This cannot be shown; the message says why.", done=True)}
            raise

    def steps(name: str, chosen: Choice, tau: float, state: Editing) -> Iterator[dict]:
        seen = look(name, chosen)
        yield controls.show(seen.view.picture, chosen) | draw_picture(seen, state) | says("encoding")
        _ = seen.view.assignment
        yield says("decoding")
        yield draw_reconstruction(seen, state) | says("the indices")
        yield draw_indices(seen, state) | draw_edits(seen, state) | says("the entropy")
        yield draw_entropy(seen, tau, state) | draw_token(seen, tau, state) | says("the survey")
        seen.wait(2)  # most often it is there: then nothing is drawn twice
        yield draw_surveyed(seen, tau, state)

    def answer(name: str, chosen: Choice, tau: float, state: Editing, request: gr.Request) -> Iterator[dict]:
        """All views at once, after a click or an edit; most of what they show has been computed before."""
        ticket = page.newest.take(place, request, (name, chosen))
        with polite():
            seen = look(name, chosen)
            updates = {editing: state, **controls.show(seen.view.picture, chosen)}
            for part in (draw_picture, draw_reconstruction, draw_indices, draw_edits, draw_gallery):
                updates |= part(seen, state)
            updates |= draw_entropy(seen, tau, state) | draw_token(seen, tau, state)
            if ticket.valid:
                yield updates
            if ticket.valid:
                seen.wait(0)
                yield draw_surveyed(seen, tau, state)

    def click(
        name: str, chosen: Choice, tau: float, state: Editing, request: gr.Request, event: gr.SelectData
    ) -> Iterator[dict]:
        state = dataclasses.replace(state, token=token_at(clicked_place(event), runs.tokenizer(name).grid))
        yield from answer(name, chosen, tau, state, request)

    def swap(
        name: str, chosen: Choice, tau: float, state: Editing, code: float | None, request: gr.Request
    ) -> Iterator[dict]:
        codes_in_all = runs.tokenizer(name).config.codes
        with polite():
            if code is None or not 0 <= code < codes_in_all:
                raise InputError(f"A code is wanted: choose a number from 0 to {codes_in_all - 1}.")
            if state.token is None:
                raise InputError("A token is wanted: click one in any picture.")
        state = dataclasses.replace(state, edits={**state.edits, state.token: int(code)})
        yield from answer(name, chosen, tau, state, request)

    def undo(name: str, chosen: Choice, tau: float, state: Editing, request: gr.Request) -> Iterator[dict]:
        yield from answer(name, chosen, tau, dataclasses.replace(state, edits={}), request)

    def poll(
        name: str, chosen: Choice, tau: float, state: Editing, before: tuple, request: gr.Request
    ) -> dict:
        """What the background has finished by now."""
        if not page.newest.is_looking_at((name, chosen), place, request):
            return {known: before}
        with polite():
            seen = look(name, chosen)
            return {known: before} if seen.news == before else draw_surveyed(seen, tau, state)

    def says(what: str) -> dict:
        return {state_line: status(f"computing: {what} …")}

    def draw_picture(seen: Look, state: Editing) -> dict:
        return {original: seen.framed(plots.enlarge(plots.to_rgb(seen.view.image[0]), SIDE), state)}

    def draw_reconstruction(seen: Look, state: Editing) -> dict:
        view = seen.view
        remark = FOREIGN if is_foreign(view.picture, view.run) else ""
        return {
            rebuilt: seen.framed(plots.enlarge(plots.to_rgb(view.reconstruction), SIDE), state),
            quality: div("note", f"PSNR {view.psnr:.1f} dB") + div("note", remark),
        }

    def draw_indices(seen: Look, state: Editing) -> dict:
        return {indices_map: seen.framed(plots.index_map(seen.view.indices, seen.colors, SIDE), state)}

    def draw_entropy(seen: Look, tau: float, state: Editing) -> dict:
        entropy, limit = seen.view.entropy(tau), math.log(seen.view.tokenizer.config.codes)
        said = f"nats; mean {entropy.mean():.2f}, effectively {entropy.exp().mean():.1f} codes a token"
        return {
            entropy_map: seen.framed(plots.heat_map(entropy, 0, limit, "viridis", SIDE), state),
            entropy_scale: plots.legend(said, 0, limit),
        }

    def draw_token(seen: Look, tau: float, state: Editing) -> dict:
        parts = token_text, table, choice, code, replace
        return dict(zip(parts, _describe_token(seen, tau, state), strict=True))

    def draw_edits(seen: Look, state: Editing) -> dict:
        view, edits = seen.view, len(state.edits)
        after = view.decode(state.edits)
        change = (after - view.reconstruction).abs().mean(0) * 127.5
        top = max(float(change.max()), 1.0)
        shown = seen.framed(plots.enlarge(plots.colored(change, 0, top, "magma"), SIDE), state)
        scale = plots.legend("grey levels of 255, mean over the channels", 0, top, "magma")
        return {
            edited: seen.framed(plots.enlarge(plots.to_rgb(after), SIDE), state),
            edits_text: div("note", f"{edits} of {len(view.indices)} tokens replaced", edits=edits),
            difference_text: heading("|Dec(q′) − Dec(q)|", "what changed" if edits else "no change yet"),
            difference: shown if edits else None,
            difference_scale: scale if edits else "",
        }

    def draw_gallery(seen: Look, state: Editing) -> dict:
        return dict(zip((gallery_text, gallery), _show_gallery(seen, state), strict=True))

    def draw_surveyed(seen: Look, tau: float, state: Editing) -> dict:
        """All that waits for the survey or the layout, as far as they are there."""
        survey, current = seen.survey, seen.current_code(state)
        planned = background.layout(seen.name)
        news = seen.news
        ready = seen.surveyed and seen.laid_out
        what = "the layout of the codes is still being computed" if seen.surveyed else seen.survey_note
        line = "done" if ready else f"{what}; it appears here by itself"
        updates = {
            state_line: status(line, done=ready),
            known: news,
            waiting: gr.Timer(active=not ready),
            **draw_gallery(seen, state),
        }
        if survey is None:
            updates |= {usage_title: heading("Usage", seen.survey_note), usage: None, usage_text: ""}
            return updates | {layout_text: heading("UMAP", seen.survey_note), layout: None}
        counts = survey.counts
        statistics, used, total = usage_statistics(counts), int((counts > 0).sum()), len(counts)
        said = (
            f"{used} of {total} codes used; perplexity {statistics['perplexity']:.0f} "
            f"(it would be {total} if all were used alike)"
        )
        so_far = "" if seen.surveyed else " so far"
        chart, note = None, "still being computed; it appears here by itself"
        if planned.done() and planned.exception():
            note = f"cannot be computed: {planned.exception()}"
        elif planned.done():
            note = "of the L2-normalised codes, by cosine distance"
            chart = plots.code_map(planned.result(), counts, survey.colors, "UMAP", current)
        return (
            updates
            | draw_indices(seen, state)
            | {
                table: _describe_token(seen, tau, state)[1],
                usage_title: heading("Usage", f"of {seen.pictures_said}{so_far}"),
                usage: plots.usage_histogram(counts, current),
                usage_text: div("note", said),
                layout_text: heading("UMAP", note),
                layout: chart,
            }
        )

    drawn = dict(outputs=outputs, **OVERTAKEN)
    others = [released(tau)(answer, [*base, editing], **drawn)]
    for map_ in (original, rebuilt, indices_map, entropy_map, edited, difference):
        others.append(map_.select(click, [*base, editing], **drawn))
    others.append(replace.click(swap, [*base, editing, code], **drawn))
    others.append(reset.click(undo, [*base, editing], **drawn))
    others.append(waiting.tick(poll, [*base, editing, known], outputs, **LAST_COUNTS))
    choice.input(lambda code: code, choice, code, **LAST_COUNTS)
    page.add_looking(run, draw, base, outputs, cleared=cleared, others=others)


class Look:
    """One picture through one tokenizer, with what the background knows of the collection's others.

    source: the collection that is surveyed."""

    def __init__(self, view: View, name: str, source: str, background: Background):
        self.view, self.name = view, name
        self._background, self._source = background, source
        self._coming = background.known_survey(name, source)
        self._grown = background.survey_so_far(name, source)  # one for all that this Look shows
        self._collection = background.pictures.collection(source, view.run).name

    def wait(self, seconds: float) -> None:
        """Have the survey made, and wait for it, but not for long."""
        self._coming = self._background.survey(self.name, self._source)
        wait([self._coming], timeout=seconds)
        self._grown = self._background.survey_so_far(self.name, self._source)

    @property
    def surveyed(self) -> bool:
        """Whether the survey has ended, well or not."""
        return self._coming is not None and self._coming.done()

    @property
    def laid_out(self) -> bool:
        return self._background.layout(self.name).done()

    @property
    def news(self) -> tuple:
        """What changes when there is more to see."""
        return self.surveyed, self.laid_out, self._grown.count if self._grown else 0

    @property
    def survey(self) -> Survey | None:
        """As far as it has grown; None before that, and where it cannot be made."""
        if self._coming is None or not self.surveyed:
            return self._grown.survey if self._grown else None
        return None if self._coming.exception() else self._coming.result()

    @property
    def survey_note(self) -> str:
        """What to say of a survey that is not there, or not whole."""
        if self._coming is not None and self.surveyed:
            return f"the survey cannot be made: {self._coming.exception()}"
        if self._grown is None:
            return "the survey is being computed"
        grown = self._grown
        return f"surveyed {grown.count} of {grown.total} pictures, about {grown.seconds_left:.0f} s left"

    @property
    def pictures_said(self) -> str:
        """What was surveyed, such as "10 pictures of photos"."""
        return f"{len(self.survey.images) if self.survey else 0:,} pictures of {self._collection}"

    @property
    def colors(self) -> Tensor:
        """The codes' mean colours, (K, 3) in [0, 1]; grey while they are not known."""
        return self.survey.colors if self.survey else torch.full((self.view.tokenizer.config.codes, 3), 0.75)

    def framed(self, picture: Image, state: Editing) -> Image:
        """The picture with the token looked at framed."""
        return plots.mark(picture, state.token, self.view.grid)

    def current_code(self, state: Editing) -> int | None:
        """The code that the token looked at has now, replaced or not."""
        return None if state.token is None else int(self.view.edited(state.edits)[state.token])


def _describe_token(seen: Look, tau: float, state: Editing) -> tuple:
    """Heading, table of the top codes, the choices to replace by, the first of them, and the button."""
    view, token, colors = seen.view, state.token, seen.colors
    if token is None:
        title = heading("Token", "Click a token in any picture.")
        return title, "", gr.Dropdown(choices=[], value=None), None, gr.Button(interactive=False)
    candidates = codes.top_codes(view.assignment.scores[0, token], tau)
    row, column = divmod(token, view.grid)
    was, now = int(view.indices[token]), seen.current_code(state)
    replaced = f", replaced by {now}" if now != was else ""
    place = f"Token {token} (row {row + 1}, column {column + 1})"
    title = div("title", f"{place}: code {was}{replaced}", token=token)
    title += div("note", "Its likeliest codes, and their weight in the two read-outs of GEAR")
    lines = []
    for c in candidates:
        swatch = "rgb(" + ",".join(str(round(255 * v)) for v in colors[c.code].tolist()) + ")"
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


def _show_gallery(seen: Look, state: Editing) -> tuple:
    """Heading and patches of the code of the token looked at."""
    code, survey = seen.current_code(state), seen.survey
    if code is None:
        return heading("Patches", "that share the token's code"), None
    if survey is None:
        return heading(f"Patches of code {code}", seen.survey_note), None
    crops, total = codes.gallery(survey, code, count=16)
    note = f"{total} of {survey.indices.numel():,} patches in {seen.pictures_said} use it"
    return heading(f"Patches of code {code}", note), plots.patch_gallery(crops, columns=4) if total else None


def _weight_cell(share: float) -> str:
    """A table cell with a share in [0, 1] and a bar behind it."""
    return f'<td class="weight" style="--share:{100 * share:.1f}%">{share:.3f}</td>'
