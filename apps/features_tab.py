"""Features: what tokenizer and generator hold of a picture at every block, and measured over many pictures.

A second Run can stand beside the first: the same picture, the same patch, the same charts."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import gradio as gr
import numbers_file
import snippets
from background import OWN_TEACHER, pictures_measured
from components import QUIET, Place, computing, div, heading, polite, status
from features_look import AT_TAP, LAYERS, Look, Measures, draw_chosen, draw_map
from page import ALONE, Page
from pictures import Choice
from views import OVERTAKEN, emptied

TITLE = "Features"
GUIDE = (
    "What the tokenizer and every block of the generator hold of a picture, and how like the teacher they "
    "are over many pictures."
)
PANELS = 6  # measures at most
# In the page: which place of a cell was clicked, in shares of its width and height.
CLICK = """element.addEventListener('click', (event) => {
    const patches = event.target.closest('.patches');
    if (!patches) return;
    const box = patches.getBoundingClientRect();
    trigger('select', {value: null,
        index: [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]});
});"""
MAP = Path(__file__).with_name("patch_map.js")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a visitor asks to see, in the order of the tab's inputs."""

    run: str
    beside: str
    chosen: Choice
    teacher: str
    layer: str
    place: Place

    @property
    def looked_at(self) -> tuple:
        """What and where, however it is drawn."""
        return self.run, self.beside, self.chosen, self.teacher, self.place


def build(page: Page) -> None:
    """Lay the tab out. It follows the Run and the picture that are chosen."""
    runs, background = page.runs, page.background
    default = runs.default(runs.generators, "generator", "gear")
    with gr.Row(equal_height=True):
        with gr.Column(scale=3, min_width=170):
            run = page.choose_run(runs.names, default, "Run", "features-run")
            beside = page.choose_beside(runs.names, "features-beside")
        controls = page.add_picker("features", run)
        with gr.Column(scale=3, min_width=180):
            teacher = page.choose_teacher("features-teacher")
    controls.caption.render()
    controls.strip.render()
    state_line = gr.HTML(elem_id="features-status", padding=False)
    gr.HTML(
        heading(
            "One picture, block by block",
            "PCA as RGB of the features of each patch, fitted to each square alone: compare outlines, not "
            "colours. Click a patch.",
        ),
        padding=False,
    )
    cells = gr.HTML(elem_id="features-cells", padding=False, js_on_load=CLICK)
    beside_title = gr.HTML(elem_id="features-beside-title", padding=False)
    beside_cells = gr.HTML(elem_id="features-beside-cells", padding=False, js_on_load=CLICK)
    gr.HTML(
        heading(
            "Many pictures, block by block",
            "each measure at the tokenizer's z and c_q, then after every block of the generator; point at a "
            "mark for its value, interval and chance",
        ),
        padding=False,
    )
    said = gr.HTML(elem_id="features-said", padding=False)
    with gr.Row(elem_classes="charts"):
        charts = [
            gr.Plot(show_label=False, elem_id=f"features-chart-{number}", min_width=0, visible=number < 4)
            for number in range(PANELS)
        ]
    protocol = gr.HTML(elem_id="features-protocol", padding=False)
    gr.HTML(
        heading(
            "Many patches",
            "UMAP of their features at one place: near patches are alike there; axes and far distances mean "
            "nothing. Point at one to see it, click it or draw a loop around several to see their pictures.",
        ),
        padding=False,
    )
    layer = gr.Radio(
        [*LAYERS, AT_TAP], value=AT_TAP, label="Features", elem_id="features-layer",
        info="of a run without a generator z in place of h",
    )  # fmt: skip
    page.remember(layer)
    map_said = gr.HTML(elem_id="features-map-said", padding=False)
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            patch_map = gr.HTML(elem_id="features-map", padding=False, js_on_load=MAP.read_text())
        with gr.Column(scale=2, min_width=300):
            chosen = gr.HTML(elem_id="features-chosen", padding=False)
    waiting = gr.Timer(1, active=False)
    known = gr.State(())

    of_map: list[Any] = [map_said, patch_map, chosen]
    cleared: list[Any] = [state_line, cells, beside_title, beside_cells, said, *charts, protocol]
    cleared += [*of_map, controls.caption]
    inputs = [run, beside, page.choice, teacher, layer, page.place]
    outputs = [*cleared, page.place, controls.index, controls.strip, waiting, known]

    def snippet(*values: Any) -> str:
        asked = Asked(*values)
        names = [name for name in (asked.run, asked.beside) if name != ALONE]
        named = None if asked.teacher == OWN_TEACHER else asked.teacher
        size = runs.tokenizer(asked.run).config.image_size
        return snippets.of_features(runs, names, asked.chosen, named, pictures_measured(size))

    snippets.lay_out(snippet, inputs, "features")

    def numbers(*values: Any) -> list[dict[str, Any]]:
        measures = Measures(look(Asked(*values)))
        return [
            {"measure": name, **row}
            for name in measures.names
            for line in measures.lines
            for row in line.rows(name)
        ]

    numbers_file.lay_out(numbers, inputs, "features")

    def look(asked: Asked) -> list[Look]:
        """What is looked at, and what beside it. Raises what may be said to the visitor."""
        picture = page.pictures.picture(asked.chosen, runs[asked.run])
        pictures = page.pictures.collection(asked.chosen.surveyed, runs[asked.run])

        def through(name: str) -> Look:
            view = runs.view(name, picture)
            if view.run.has("generator"):
                runs.generator(name)
            return Look(view, name, asked.teacher, pictures, asked.layer, asked.place, background)

        return [through(name) for name in (asked.run, asked.beside) if name != ALONE]

    def steps(asked: Asked) -> Iterator[dict]:
        looks = look(asked)
        seen, step = looks[0], itertools.count(1)
        all_steps = len(looks) + sum(each.has_generator for each in looks) + 1

        def says(what: str, *of: float | None) -> dict:
            return {state_line: computing(what, next(step), all_steps, sum(each or 0 for each in of))}

        yield controls.show(seen.view.picture, asked.chosen)
        yield controls.show_strip(page.pictures, asked.chosen, runs[asked.run])
        for each, place in zip(looks, (cells, beside_cells), strict=False):
            if place is beside_cells:
                yield {beside_title: heading(each.name, "the same picture, the same patch")}
            view = each.view
            yield {place: each.strip(False, False)} | says(f"the tokenizer of {each.name}", view.seconds("z"))
            if each.has_generator:
                yield {place: each.strip(True, False)}
                yield says(f"the blocks of {each.name}", view.seconds("block colors"))
            yield {place: each.strip()}
        yield says(f"teacher {seen.asked}", seen.view.seconds("teacher"))
        wait([each.coming for each in looks], timeout=5)
        yield draw_all(look(asked))

    def at_once(asked: Asked) -> Iterator[dict]:
        """Another patch: all that it frames has been computed before."""
        yield draw_strips(look(asked)) | {page.place: asked.place}

    def catch_up(asked: Asked, before: tuple) -> dict:
        """What the background has finished by now."""
        looks = look(asked)
        now, (measured, mapped, _) = news(looks), before or ((), (), "")
        updates = {} if now == before else draw_state(looks)
        if now[0] != measured:
            updates |= draw_measures(looks)
        if now[1] != mapped:
            updates |= draw_patches(looks[0])
        return updates

    def draw_layer(asked: Asked) -> Iterator[dict]:
        """The map of other features; the page has emptied the last one."""
        looks = look(asked)
        yield draw_state(looks) | draw_patches(looks[0])

    def choose_patches(event: gr.SelectData, *values: Any) -> dict:
        with polite():
            laid = look(Asked(*values))[0].patch_map
        if laid is None:
            return {known: gr.skip()}
        return {chosen: draw_chosen(laid, map(int, event.index))}

    def missing(looks: list[Look]) -> str:
        """What is still being computed; empty when all is there."""
        coming = [f"{each.name}: {each.progress}" for each in looks if not each.measured]
        return "; ".join(coming or ([] if looks[0].is_mapped else [looks[0].map_said]))

    def news(looks: list[Look]) -> tuple:
        """What changes when there is more to see: of the measures, of the map, how far they are."""
        return tuple(each.news for each in looks), looks[0].map_news, missing(looks)

    def draw_strips(looks: list[Look]) -> dict:
        return {place: each.strip() for each, place in zip(looks, (cells, beside_cells), strict=False)}

    def draw_all(looks: list[Look]) -> dict:
        return draw_measures(looks) | draw_patches(looks[0]) | draw_state(looks)

    def draw_state(looks: list[Look]) -> dict:
        """What is still being computed."""
        coming = missing(looks)
        return {
            state_line: status(f"{coming}; it appears here by itself" if coming else "done", done=not coming),
            said: Measures(looks).said,
            waiting: gr.Timer(active=bool(coming)),
            known: news(looks),
        }

    def draw_measures(looks: list[Look]) -> dict:
        """What waits for a teacher and for measures, as far as they are there."""
        measures = Measures(looks)
        updates: dict = {chart: gr.Plot(None, visible=False) for chart in charts}
        for chart, name in zip(charts, measures.names, strict=False):
            updates[chart] = gr.Plot(measures.chart(name), visible=True)
        return updates | draw_strips(looks) | {protocol: measures.protocol}

    def draw_patches(seen: Look) -> dict:
        laid, nothing = seen.patch_map, div("note", "Nothing is chosen in the map yet.")
        drawing, beside = (draw_map(laid), nothing) if laid else ("", "")
        return {map_said: div("note", seen.map_said), patch_map: drawing, chosen: beside}

    views = page.add_views(
        [run, beside, teacher],
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
    for shown in (cells, beside_cells):
        views.on_click(shown, clicked_share)
    nothing = json.dumps(list(emptied(of_map).values()))
    layer.input(None, None, of_map, js=f"() => {nothing}", **QUIET)
    views.on(layer.input, draw=draw_layer)
    views.cancelled.append(patch_map.select(choose_patches, inputs, outputs, **OVERTAKEN))
    views.on_arrows(lambda asked: runs.tokenizer(asked.run).grid)
    views.follow(waiting, known, catch_up)


def clicked_share(event: gr.SelectData) -> Place:
    """Where one of the squares was clicked: see CLICK."""
    across, down = (min(max(float(share), 0.0), 1.0) for share in event.index)
    return across, down
