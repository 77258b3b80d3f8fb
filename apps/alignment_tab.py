"""Alignment: the same picture as the teacher, the tokenizer and the generator see it, patch by patch.

A Run without a generator shows its tokenizer twice, before and after quantization. A second Run can stand
beside the first: the same picture, the same patch."""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import gradio as gr
import numbers_file
import snippets
import torch
from alignment_look import AFTER, BEFORE, Look
from background import OWN_TEACHER
from components import (
    SIDE,
    Place,
    clicked_place,
    computing,
    div,
    heading,
    panel,
    released,
    square,
    status,
    token_at,
)
from page import ALONE, Page
from pictures import Choice
from torch import Tensor

from gear_studio import plots
from gear_studio.analysis import features

TITLE = "Alignment"
GUIDE = (
    "The same picture as the teacher, the tokenizer and the generator see it. Click a patch: each map "
    "shows which other patches that model finds like it."
)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a visitor asks to see, in the order of the tab's inputs."""

    run: str
    beside: str
    chosen: Choice
    teacher: str
    block: float
    stage: str
    place: Place

    @property
    def looked_at(self) -> tuple:
        """What and where, however it is drawn."""
        return self.run, self.beside, self.chosen, self.teacher, self.place


class Column:
    """What one model makes of the picture: its features, and how like the framed patch each patch is.

    number: 0 is the teacher, 1 and 2 are the Run's own. name: of the ids in the page."""

    def __init__(self, number: int, name: str):
        self.number, self.name = number, name

    def lay_out_features(self) -> None:
        with gr.Column():
            self.title = gr.HTML(elem_id=f"{self.name}-title", padding=False)
            self.map = square(f"{self.name}-pca", f"{self.name}, PCA as RGB")

    def lay_out_similarity(self) -> None:
        with gr.Column():
            self.similarity_title = gr.HTML(padding=False)
            self.similarity = square(
                f"{self.name}-similarity", f"{self.name}, similarity to the framed patch"
            )
            self.scale = gr.HTML(elem_id=f"{self.name}-scale", padding=False)

    @property
    def pictures(self) -> list[gr.components.Component]:
        return [self.map, self.similarity]

    @property
    def texts(self) -> list[gr.components.Component]:
        return [self.title, self.similarity_title, self.scale]

    def draw_features(self, seen: Look) -> dict:
        values, symbol = seen.features(self.number), ": ".join(seen.words(self.number))
        if values is None:
            return {self.title: heading(symbol, seen.lack), self.map: None}
        colors = (features.pca_rgb(values) * 255).round().byte().cpu().numpy()
        return {
            self.title: heading(symbol, "PCA as RGB"),
            self.map: seen.framed(plots.grid_map(colors, SIDE)),
        }

    def draw_similarity(self, seen: Look, low: float) -> dict:
        """low: the lower end of the scale, the same for all that stand side by side."""
        values, (word, symbol) = seen.similarity(self.number), seen.words(self.number)
        title = heading(f"{word}: similarity", f"of {symbol}, to patch {seen.patch}")
        if values is None:
            return {self.similarity_title: title, self.similarity: None, self.scale: ""}
        said = "cosine, the same scale for all; darkest: their lowest 5 %"
        return {
            self.similarity_title: title,
            self.similarity: seen.framed(plots.heat_map(values, low, 1, "viridis", SIDE)),
            self.scale: plots.legend(said, low, 1, digits=2),
        }


def build(page: Page) -> None:
    """Lay the tab out. It follows the Run and the picture that are chosen."""
    runs, background = page.runs, page.background
    default = runs.default(runs.generators, "generator", "gear")
    config = runs.generator(default).config
    columns = [Column(number, name) for number, name in enumerate(("teacher", "tokenizer", "generator"))]
    beside_columns = [Column(1, "beside-tokenizer"), Column(2, "beside-generator")]
    with gr.Row(equal_height=True):
        with gr.Column(scale=3, min_width=170):
            run = page.choose_run(runs.names, default, "Run", "alignment-run")
            beside = page.choose_beside(runs.names, "alignment-beside")
        controls = page.add_picker("alignment", run)
        with gr.Column(scale=3, min_width=180):
            teacher = page.choose_teacher("teacher")
        with gr.Column(scale=3, min_width=180):
            block = gr.Slider(
                1, config.blocks, config.tap, step=1, label="Generator block b", elem_id="block",
                info="whose output is looked at",
            )  # fmt: skip
            stage = gr.Radio(
                [BEFORE, AFTER], value=BEFORE, label="Tokenizer features", elem_id="stage",
                info="before or after quantization",
            )  # fmt: skip
            page.remember(block, stage)
    controls.caption.render()
    controls.strip.render()
    state_line = gr.HTML(elem_id="alignment-status", padding=False)
    facts = gr.HTML(elem_id="alignment-facts", padding=False)
    with gr.Row(elem_classes="maps"):
        with gr.Column():
            original = panel("x", "the picture; click a patch", "alignment-picture")
        for column in columns:
            column.lay_out_features()
    with gr.Row(elem_classes="maps"):
        with gr.Column():
            cosine_title = gr.HTML(padding=False)
            cosine = square("cosine", "cos(g(h), f(x)), patch by patch")
            cosine_scale = gr.HTML(elem_id="cosine-scale", padding=False)
        for column in columns:
            column.lay_out_similarity()
    with gr.Column(visible="hidden", elem_id="alignment-beside-row") as beside_rows:
        beside_facts = gr.HTML(elem_id="beside-facts", padding=False)
        with gr.Row(elem_classes="maps"):
            for column in beside_columns:
                column.lay_out_features()
            for column in beside_columns:
                column.lay_out_similarity()
    note = gr.HTML(elem_id="protocol", padding=False)
    waiting = gr.Timer(1, active=False)
    known = gr.State(())

    def snippet(*values: Any) -> str:
        asked = Asked(*values)
        patch = token_at(asked.place, runs.tokenizer(asked.run).grid)
        named = None if asked.teacher == OWN_TEACHER else asked.teacher
        return snippets.of_alignment(runs, asked.run, asked.chosen, named, int(asked.block), patch)

    def numbers(*values: Any) -> dict[str, Tensor]:
        seen, _ = look(Asked(*values))
        found: dict[str, Tensor] = {"image": seen.view.image[0]}
        for column in range(len(columns)):
            shown, similarity = seen.features(column), seen.similarity(column)
            if shown is not None and similarity is not None:
                name = seen.words(column)[1]
                found |= {name: shown, f"similarity of {name} to patch {seen.patch}": similarity}
        return found if seen.cosines is None else found | {"cos(g(h), f(x))": seen.cosines}

    clickable: list[Any] = [original, cosine]
    texts: list[gr.components.Component] = [state_line, facts, beside_facts, cosine_title, cosine_scale, note]
    for column in (*columns, *beside_columns):
        clickable += column.pictures
        texts += column.texts
    cleared = [*clickable, *texts, controls.caption]
    inputs = [run, beside, page.choice, teacher, block, stage, page.place]
    snippets.lay_out(snippet, inputs, "alignment")
    numbers_file.lay_out(numbers, inputs, "alignment")
    outputs = [
        *cleared,
        page.place,
        block,
        stage,
        controls.index,
        controls.strip,
        waiting,
        known,
        beside_rows,
    ]

    def look(asked: Asked) -> tuple[Look, Look | None]:
        """What is looked at, and what beside it. Raises what may be said to the visitor."""
        picture = page.pictures.picture(asked.chosen, runs[asked.run])
        pictures = page.pictures.collection(asked.chosen.surveyed, runs[asked.run])

        def through(name: str) -> Look:
            view = runs.view(name, picture)
            if view.run.has("generator"):
                runs.generator(name)
            if view.run.has("projector"):
                runs.projector(name)
            return Look(
                view, name, asked.teacher, pictures, int(asked.block), asked.stage, asked.place, background
            )

        return through(asked.run), None if asked.beside == ALONE else through(asked.beside)

    def steps(asked: Asked) -> Iterator[dict]:
        seen, other = look(asked)
        view, steps = seen.view, 3 if other else 2

        def says(what: str, step: int, seconds: float | None) -> dict:
            return {state_line: computing(what, step, steps, seconds)}

        yield controls.show(view.picture, asked.chosen) | draw_picture(seen)
        yield controls.show_strip(page.pictures, asked.chosen, runs[asked.run])
        yield says("the tokenizer's features", 1, view.seconds("z"))
        yield draw_features(seen, columns[1:])
        if other:
            yield says(f"those of {other.name}", 2, other.view.seconds("z"))
            yield draw_features(other, beside_columns) | {beside_rows: gr.Column(visible=True)}
        yield says(f"teacher {seen.asked}", steps, view.seconds("teacher"))
        wait([each.coming for each in (seen, other) if each], timeout=5)
        yield draw_all(*look(asked))

    def at_once(asked: Asked) -> Iterator[dict]:
        """Most of what the views show has been computed before."""
        seen, other = look(asked)
        updates = controls.show(seen.view.picture, asked.chosen) | draw_picture(seen)
        updates |= draw_features(seen, columns[1:]) | draw_all(seen, other)
        if other:
            updates |= draw_features(other, beside_columns)
        yield updates | {page.place: asked.place}

    def catch_up(asked: Asked, before: tuple) -> dict:
        """What the background has finished by now."""
        seen, other = look(asked)
        return {} if news(seen, other) == before else draw_all(seen, other)

    def news(seen: Look, other: Look | None) -> tuple:
        return seen.news + (other.news if other else ())

    def draw_picture(seen: Look) -> dict:
        choice = gr.Slider(interactive=False)
        if seen.has_generator:
            blocks = seen.view.run.generator.config.blocks
            choice = gr.Slider(maximum=max(blocks, 2), value=seen.block, interactive=True)
        return {
            original: seen.framed(plots.enlarge(plots.to_rgb(seen.view.image[0]), SIDE)),
            block: choice,
            stage: gr.Radio(interactive=seen.has_generator),
        }

    def draw_features(seen: Look, columns: list[Column]) -> dict:
        updates: dict = {}
        for column in columns:
            updates |= column.draw_features(seen)
        return updates

    def draw_all(seen: Look, other: Look | None) -> dict:
        """What waits for a teacher, as far as it is there."""
        missing = seen.missing or (other.missing if other else "")
        line = f"{missing}; it appears here by itself" if missing else "done"
        protocols = [seen.protocol]
        beside: dict = {beside_rows: gr.Column(visible="hidden")}
        if other:
            named = heading(other.name, "the same picture, the same patch")
            protocols.append(f"{div('title', other.name)}{other.protocol}")
            beside = {beside_rows: gr.Column(visible=True), beside_facts: named + other.facts}
        return {
            **draw_features(seen, columns[:1]),
            **draw_similarities(seen, other),
            **draw_cosines(seen),
            **beside,
            facts: seen.facts,
            state_line: status(line, done=not missing),
            note: "".join(f'<div class="protocol">{protocol}</div>' for protocol in protocols),
            waiting: gr.Timer(active=bool(missing)),
            known: news(seen, other),
        }

    def draw_similarities(seen: Look, other: Look | None) -> dict:
        shown = [(column, seen) for column in columns]
        shown += [(column, other) for column in beside_columns] if other else []
        maps = [look.similarity(column.number) for column, look in shown]
        # One outlier (often position 0) would leave the rest one colour.
        low = float(torch.cat([each for each in maps if each is not None]).quantile(0.05))
        updates: dict = {}
        for column, look in shown:
            updates |= column.draw_similarity(look, low)
        return updates

    def draw_cosines(seen: Look) -> dict:
        cosines: Tensor | None = seen.cosines
        if cosines is None:
            why = seen.lack if seen.has_cosines else "needs a projector and the run's own teacher; see above"
            return {cosine_title: heading("cos(g(h), f(x))", why), cosine: None, cosine_scale: ""}
        worst = float(cosines.quantile(0.02))
        said = "cosine; 1 is perfect, darkest: the lowest 2 %"
        return {
            cosine_title: heading("cos(g(h), f(x))", "alignment at the tap, patch by patch"),
            cosine: seen.framed(plots.heat_map(cosines, worst, 1, "cividis", SIDE)),
            cosine_scale: plots.legend(said, worst, 1, "cividis", digits=2),
        }

    views = page.add_views(
        [run, beside],
        Asked,
        inputs=inputs,
        outputs=outputs,
        cleared=cleared,
        of_run=[controls.strip],
        state_line=state_line,
        first=lambda asked: {waiting: gr.Timer(active=False)},
        steps=steps,
        at_once=at_once,
    )
    for event in (released(block), stage.input, teacher.change):
        views.on(event)
    for shown in clickable:
        views.on_click(shown, clicked_place)
    views.on_arrows(lambda asked: runs.tokenizer(asked.run).grid)
    views.follow(waiting, known, catch_up)
