"""Codebook: what a tokenizer makes of a picture, which codes a token could have had, what codes stand for.

A second tokenizer can stand beside it: the same picture, the same place in it."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import gradio as gr
import numbers_file
import snippets
from codebook_look import Edits, Look
from components import (
    LAST_COUNTS,
    SIDE,
    Place,
    clicked_place,
    computing,
    div,
    heading,
    panel,
    released,
    sheet,
    square,
    status,
    token_at,
)
from page import ALONE, Page
from pictures import FOREIGN, OWN, Choice, is_foreign
from torch import Tensor

from gear_studio import plots
from gear_studio.errors import InputError
from gear_studio.looking.view import View

TITLE = "Codebook"
GUIDE = (
    "What a tokenizer makes of a picture. Click a token to see which codes it could have had and how sure "
    "the choice was; replace it and see what changes."
)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a visitor asks to see, in the order of the tab's inputs. edits: made to the picture's tokens."""

    run: str
    beside: str
    chosen: Choice
    tau: float
    place: Place
    edits: Edits

    @property
    def looked_at(self) -> tuple:
        """What and where, however it is drawn."""
        return self.run, self.beside, self.chosen, self.place


class TokenizerMaps:
    """Three panels of one tokenizer: reconstruction, indices, entropy. prefix: of their ids in the page."""

    def __init__(self, prefix: str = ""):
        with gr.Column():
            self.rebuilt = panel("Dec(q)", "its reconstruction", f"{prefix}reconstruction")
            self.quality = gr.HTML(elem_id=f"{prefix}quality", padding=False)
        with gr.Column():
            self.indices = panel("q = argmax A", "indices, on their codes' mean colours", f"{prefix}indices")
        with gr.Column():
            self.entropy = panel("H(softmax(A / τ))", "entropy of the soft assignment", f"{prefix}entropy")
            self.scale = gr.HTML(elem_id=f"{prefix}entropy-scale", padding=False)
        self.typical = gr.HTML(elem_id=f"{prefix}typical", elem_classes="whole", padding=False)

    @property
    def pictures(self) -> list[gr.components.Component]:
        return [self.rebuilt, self.indices, self.entropy]

    @property
    def texts(self) -> list[gr.components.Component]:
        return [self.quality, self.scale, self.typical]

    def draw_reconstruction(self, seen: Look) -> dict:
        view = seen.view
        remark = FOREIGN if is_foreign(view.picture, view.run) else ""
        return {
            self.rebuilt: seen.framed(plots.enlarge(plots.to_rgb(view.reconstruction), SIDE)),
            self.quality: div("note", f"PSNR {view.psnr:.1f} dB") + div("note", remark),
        }

    def draw_indices(self, seen: Look) -> dict:
        return {self.indices: seen.framed(plots.index_map(seen.view.indices, seen.colors, SIDE))}

    def draw_typical(self, seen: Look) -> dict:
        return {self.typical: seen.typical}

    def draw_entropy(self, seen: Look, tau: float) -> dict:
        entropy, limit = seen.view.entropy(tau), math.log(seen.view.tokenizer.config.codes)
        said = (
            f"nats; mean {entropy.mean():.2f}, effectively {entropy.exp().mean():.1f} codes a token; "
            f"framed token {entropy[seen.token]:.2f}"
        )
        return {
            self.entropy: seen.framed(plots.heat_map(entropy, 0, limit, "viridis", SIDE)),
            self.scale: plots.legend(said, 0, limit),
        }


def build(page: Page) -> None:
    """Lay the tab out. It follows the picture that is chosen."""
    runs, background = page.runs, page.background
    default = runs.default(runs.tokenizers, "joint", "gear")
    edits = gr.State({})
    with gr.Row(equal_height=True):
        with gr.Column(scale=3, min_width=170):
            run = page.choose_run(runs.tokenizers, default, "Tokenizer", "tokenizer-run")
            beside = page.choose_beside(runs.tokenizers, "tokenizer-beside")
        controls = page.add_picker("codebook", run)
        with gr.Column(scale=3, min_width=200):
            tau = gr.Slider(
                0.01, 1, 0.1, step=0.01, label="Temperature τ", info="of the soft read-out", elem_id="tau"
            )
            page.remember(tau)
    controls.caption.render()
    controls.strip.render()
    state_line = gr.HTML(elem_id="codebook-status", padding=False)
    with gr.Row(elem_classes="maps"):
        with gr.Column():
            original = panel("x", "the picture; click a token", "original")
        maps = TokenizerMaps()
    with gr.Row(elem_classes="maps", visible="hidden", elem_id="beside") as beside_row:
        with gr.Column():
            beside_title = gr.HTML(elem_id="beside-title", padding=False)
            beside_table = gr.HTML(elem_id="beside-codes", padding=False)
        beside_maps = TokenizerMaps("beside-")
    with gr.Row(elem_classes="maps"):
        with gr.Column():
            token_text = gr.HTML(elem_id="codebook-token", padding=False)
            table = gr.HTML(elem_id="top-codes", padding=False)
            with gr.Row():
                choice = gr.Dropdown([], label="Replace by top code", elem_id="new-choice", min_width=120)
                code = gr.Number(label="or any code", precision=0, elem_id="new-code", min_width=100)
            with gr.Row():
                replace = gr.Button("Replace", variant="primary", elem_id="replace", min_width=100)
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
            gallery = sheet("gallery", "Patches that use the code")
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            usage_title = gr.HTML(padding=False)
            usage = sheet("usage", "How often each code is used, most used first; the token's code marked")
            usage_text = gr.HTML(padding=False)
        with gr.Column(scale=3, min_width=320):
            layout_text = gr.HTML(padding=False)
            layout = sheet("layout", "The codes laid out by UMAP; the token's code marked")
    waiting = gr.Timer(1, active=False)
    known = gr.State(())

    def snippet(*values: Any) -> str:
        asked = Asked(*values)
        token = token_at(asked.place, runs.tokenizer(asked.run).grid)
        return snippets.of_codebook(runs, asked.run, asked.chosen, token, asked.edits, asked.tau)

    def numbers(*values: Any) -> dict[str, Tensor]:
        asked = Asked(*values)
        view = look(asked)[0].view
        shape = view.grid, view.grid
        return {
            "image": view.image[0],
            "reconstruction": view.reconstruction,
            "edited": view.decode(asked.edits),
            "indices": view.indices.view(shape),
            "edited_indices": view.edited(asked.edits).view(shape),
            "entropy": view.entropy(asked.tau).view(shape),
            "z": view.z,
            "c_q": view.c_q,
        }

    clickable: list[Any] = [original, *maps.pictures, *beside_maps.pictures, edited, difference]
    cleared = [*clickable, gallery, *maps.texts, *beside_maps.texts, beside_title, beside_table, token_text]
    cleared += [table, edits_text, difference_text, difference_scale, gallery_text, usage_title, usage_text]
    cleared += [layout_text, state_line, controls.caption, usage, layout]
    inputs = [run, beside, page.choice, tau, page.place, edits]
    snippets.lay_out(snippet, inputs, "codebook")
    numbers_file.lay_out(numbers, inputs, "codebook")
    outputs = [
        *cleared,
        edits,
        page.place,
        known,
        controls.index,
        controls.strip,
        choice,
        code,
        beside_row,
        waiting,
    ]

    def look(asked: Asked) -> tuple[Look, Look | None]:
        """What is looked at, and what beside it. Raises what may be said to the visitor."""

        picture = page.pictures.picture(asked.chosen, runs[asked.run])
        surveyed = page.pictures.collection(asked.chosen.surveyed, runs[asked.run])

        def through(name: str) -> Look:
            known = page.pictures.collection(OWN, runs[name])
            return Look(runs.view(name, picture), name, surveyed, known, asked.place, background)

        return through(asked.run), None if asked.beside == ALONE else through(asked.beside)

    def steps(asked: Asked) -> Iterator[dict]:
        seen, other = look(asked)
        view, steps = seen.view, 5 if other else 4

        def says(what: str, step: int, *parts: tuple[View, str]) -> dict:
            seconds = [view.seconds(part) or 0 for view, part in parts]
            return {state_line: computing(what, step, steps, sum(seconds))}

        yield controls.show(view.picture, asked.chosen) | draw_picture(seen)
        yield controls.show_strip(page.pictures, asked.chosen, runs[asked.run])
        yield says("encoding", 1, (view, "z"))
        _ = view.assignment
        yield says("decoding", 2, (view, "decoded"))
        yield maps.draw_reconstruction(seen) | says("indices and entropy", 3)
        yield maps.draw_indices(seen) | draw_edits(seen, asked)
        yield maps.draw_entropy(seen, asked.tau) | draw_token(seen, asked)
        if other:
            yield says(f"the same of {other.name}", 4, (other.view, "z"), (other.view, "decoded"))
        yield draw_beside(other, asked) | says("the survey", steps)
        for each in filter(None, (seen, other)):
            each.wait(2)  # most often it is there: then nothing is drawn twice
        yield draw_surveyed(seen, other, asked)

    def at_once(asked: Asked) -> Iterator[dict]:
        """Most of what the views show has been computed before."""
        seen, other = look(asked)
        updates = {edits: asked.edits, page.place: asked.place}
        updates |= controls.show(seen.view.picture, asked.chosen) | draw_picture(seen)
        updates |= maps.draw_reconstruction(seen) | maps.draw_indices(seen)
        updates |= maps.draw_entropy(seen, asked.tau) | draw_token(seen, asked)
        yield updates | draw_edits(seen, asked) | draw_gallery(seen, asked)
        yield draw_beside(other, asked)
        for each in filter(None, (seen, other)):
            each.wait(0)
        yield draw_surveyed(seen, other, asked)

    def catch_up(asked: Asked, before: tuple) -> dict:
        """What the background has finished by now."""
        seen, other = look(asked)
        for each in filter(None, (seen, other)):
            each.wait(0)  # which begins what waited for another survey
        return {} if news(seen, other) == before else draw_surveyed(seen, other, asked)

    def swap(asked: Asked, code: float | None) -> Asked:
        """With another code at the token looked at."""
        codes_in_all = runs.tokenizer(asked.run).config.codes
        if code is None or not 0 <= code < codes_in_all:
            raise InputError(f"A code is wanted: choose a number from 0 to {codes_in_all - 1}.")
        return dataclasses.replace(asked, edits={**asked.edits, look(asked)[0].token: int(code)})

    def undo(asked: Asked) -> Asked:
        return dataclasses.replace(asked, edits={})

    def news(seen: Look, other: Look | None) -> tuple:
        return seen.news + (other.news if other else ())

    def draw_picture(seen: Look) -> dict:
        return {original: seen.framed(plots.enlarge(plots.to_rgb(seen.view.image[0]), SIDE))}

    def draw_token(seen: Look, asked: Asked) -> dict:
        choices, second = seen.replacements(asked.tau)
        return {
            token_text: seen.token_title(asked.edits),
            table: seen.token_table(asked.tau),
            choice: choices,
            code: second,
        }

    def draw_beside(other: Look | None, asked: Asked) -> dict:
        """The second tokenizer's row; hidden where there is none."""
        if other is None:
            return {beside_row: gr.Row(visible="hidden")}
        drawn = maps_of_other(other, asked)
        return drawn | {beside_row: gr.Row(visible=True)}

    def maps_of_other(other: Look, asked: Asked) -> dict:
        drawn = beside_maps.draw_reconstruction(other) | beside_maps.draw_indices(other)
        return drawn | beside_maps.draw_entropy(other, asked.tau) | draw_beside_token(other, asked)

    def draw_beside_token(other: Look, asked: Asked) -> dict:
        used = div("note", other.usage_said or other.survey_note)
        return {
            beside_title: heading(other.name, "the same picture, the same place") + used,
            beside_table: other.token_title({}) + other.token_table(asked.tau),
        }

    def draw_edits(seen: Look, asked: Asked) -> dict:
        view, count = seen.view, len(asked.edits)
        after = view.decode(asked.edits)
        change = (after - view.reconstruction).abs().mean(0) * 127.5
        top = max(float(change.max()), 1.0)
        shown = seen.framed(plots.enlarge(plots.colored(change, 0, top, "magma"), SIDE))
        scale = plots.legend("grey levels of 255, mean over the channels", 0, top, "magma")
        return {
            edited: seen.framed(plots.enlarge(plots.to_rgb(after), SIDE)),
            edits_text: div("note", f"{count} of {len(view.indices)} tokens replaced", edits=count),
            difference_text: heading("|Dec(q′) − Dec(q)|", "what changed" if count else "no change yet"),
            difference: shown if count else None,
            difference_scale: scale if count else "",
        }

    def draw_gallery(seen: Look, asked: Asked) -> dict:
        return dict(zip((gallery_text, gallery), seen.gallery(asked.edits), strict=True))

    def draw_surveyed(seen: Look, other: Look | None, asked: Asked) -> dict:
        """All that waits for a survey or the layout, as far as they are there."""
        missing = seen.missing or (other.survey_missing if other else "")
        line = f"{missing}; it appears here by itself" if missing else "done"
        updates = {
            state_line: status(line, done=not missing),
            known: news(seen, other),
            waiting: gr.Timer(active=bool(missing)),
            **draw_gallery(seen, asked),
        }
        updates |= maps.draw_typical(seen)
        if other:
            updates |= beside_maps.draw_indices(other) | draw_beside_token(other, asked)
            updates |= beside_maps.draw_typical(other)
        if seen.survey is None:
            updates |= {usage_title: heading("Usage", seen.survey_note), usage: None, usage_text: ""}
            return updates | {layout_text: heading("UMAP", seen.survey_note), layout: None}
        current, planned = seen.current_code(asked.edits), seen.layout
        so_far = "" if seen.surveyed else " so far"
        note = "still being computed; it appears here by itself"
        if planned and planned.done() and planned.exception():
            note = f"cannot be computed: {planned.exception()}"
        elif planned and planned.done():
            note = "of the L2-normalised codes that the survey found in use, by cosine distance"
        return updates | {
            **maps.draw_indices(seen),
            table: seen.token_table(asked.tau),
            usage_title: heading("Usage", f"of {seen.pictures_said}{so_far}"),
            usage: seen.usage_chart(current),
            usage_text: div("note", seen.usage_said),
            layout_text: heading("UMAP", note),
            layout: seen.code_map(current),
        }

    views = page.add_views(
        [run, beside],
        Asked,
        inputs=inputs,
        outputs=outputs,
        cleared=cleared,
        of_run=[controls.strip],
        state_line=state_line,
        first=lambda asked: {edits: {}, waiting: gr.Timer(active=False)},
        steps=lambda asked: steps(undo(asked)),
        at_once=at_once,
    )
    views.on(released(tau))
    for shown in clickable:
        views.on_click(shown, clicked_place)
    views.on(replace.click, swap, [code])
    views.on(reset.click, undo)
    views.on_arrows(lambda asked: runs.tokenizer(asked.run).grid)
    views.follow(waiting, known, catch_up)
    choice.input(lambda code: code, choice, code, **LAST_COUNTS)
