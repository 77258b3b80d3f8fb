"""Alignment: the same picture as the teacher, the tokenizer and the generator see it, patch by patch.

A Run without a generator shows its tokenizer twice, before and after quantization."""

import html
from collections.abc import Iterator
from concurrent.futures import Future, wait

import gradio as gr
import torch
from background import OWN_TEACHER
from components import (
    LAST_COUNTS,
    SIDE,
    Place,
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
from pictures import Choice
from PIL.Image import Image
from torch import Tensor

from gear_studio import plots
from gear_studio.analysis import features
from gear_studio.looking.likeness import Likeness
from gear_studio.looking.view import View
from gear_studio.models.teachers import Teacher
from gear_studio.runs import Run

TITLE = "Alignment"
BEFORE, AFTER = "z", "c_q"
MODELS = ("teacher", "tokenizer", "generator")
TEACHERS = [OWN_TEACHER, "tiny", "efficientnet-lite0", "dinov2-s", "dinov2-b", "dinov2-l"]
STAND_IN = "efficientnet-lite0"  # for Runs that were imported, which name no teacher


def build(page: Page) -> None:
    """Lay the tab out. It follows the Run and the picture that are chosen."""
    runs, background = page.runs, page.background
    default = runs.default(runs.generators, "generator", "gear")
    config = runs.generator(default).config
    where = gr.State((0.4, 0.4))  # near the middle: every visitor sees a heat map at once
    with gr.Row(equal_height=True):
        with gr.Column(scale=3, min_width=170):
            run = page.choose_run(runs.names, default, "Run", "alignment-run")
            teacher = gr.Dropdown(
                TEACHERS, value=OWN_TEACHER, label="Teacher", allow_custom_value=True, elem_id="teacher",
                info="or type a name of timm's",
            )  # fmt: skip
        controls = page.add_picker("alignment", run)
        with gr.Column(scale=3, min_width=180):
            block = gr.Slider(
                1, config.blocks, config.tap, step=1, label="Generator block b", elem_id="block",
                info="whose output is looked at",
            )  # fmt: skip
        with gr.Column(scale=3, min_width=180):
            stage = gr.Radio(
                [BEFORE, AFTER], value=BEFORE, label="Tokenizer features", info="before or after quantization"
            )
    controls.caption.render()
    state_line = gr.HTML(elem_id="alignment-status", padding=False)
    facts = gr.HTML(elem_id="alignment-facts", padding=False)
    maps, similarities, titles, similarity_titles, scales = [], [], [], [], []
    with gr.Row(elem_classes="maps"):
        with gr.Column():
            original = panel("x", "the picture; click a patch", "alignment-picture")
        for model in MODELS:
            with gr.Column():
                titles.append(gr.HTML(elem_id=f"{model}-title", padding=False))
                maps.append(square(f"{model}-pca", f"{model}, PCA as RGB"))
    with gr.Row(elem_classes="maps"):
        with gr.Column():
            cosine_title = gr.HTML(padding=False)
            cosine = square("cosine", "cos(g(h), f(x)), patch by patch")
            cosine_scale = gr.HTML(elem_id="cosine-scale", padding=False)
        for model in MODELS:
            with gr.Column():
                similarity_titles.append(gr.HTML(padding=False))
                similarities.append(square(f"{model}-similarity", f"{model}, similarity to the framed patch"))
                scales.append(gr.HTML(elem_id=f"{model}-scale", padding=False))
    note = gr.HTML(elem_id="protocol", padding=False)
    waiting = gr.Timer(1, active=False)
    known = gr.State(())

    cleared: list[gr.components.Component] = [state_line, facts, original, cosine_title, cosine, cosine_scale]
    cleared += [*titles, *similarity_titles, *maps, *similarities, *scales, note, controls.caption]
    outputs = [*cleared, where, block, stage, controls.index, waiting, known]
    inputs = [run, page.choice, teacher, block, stage, where]

    def look(name: str, chosen: Choice, asked: str, block: float, stage: str, place: Place) -> "Look":
        picture = page.pictures.picture(chosen, runs[name])
        view = runs.view(name, picture)
        if view.run.has("generator"):
            runs.generator(name)
        if view.run.has("projector"):
            runs.projector(name)
        asked = teacher_for(view.run, asked)
        coming = background.teacher(name, asked)
        return Look(view, asked, coming, int(block), stage, place)

    def draw(
        name: str, chosen: Choice, asked: str, block: float, stage: str, place: Place, request: gr.Request
    ) -> Iterator[dict]:
        """The views, one after the other; a newer request stops it."""
        ticket = page.newest.take("alignment", request, (name, chosen, asked))
        yield emptied(cleared) | {  # what was still on its way when the page emptied them goes, too
            state_line: status(f"reading {name} …"),
            waiting: gr.Timer(active=False),
        }
        try:
            with polite():
                for updates in steps(name, chosen, asked, block, stage, place):
                    if not ticket.valid:
                        return
                    yield updates
        except gr.Error:
            yield {state_line: status("This cannot be shown; the message says why.", done=True)}
            raise

    def steps(
        name: str, chosen: Choice, asked: str, block: float, stage: str, place: Place
    ) -> Iterator[dict]:
        seen = look(name, chosen, asked, block, stage, place)
        yield controls.show(seen.view.picture, chosen) | draw_picture(seen) | says("the tokenizer's features")
        yield draw_columns(seen, range(1, 3)) | says(f"teacher {seen.asked}")
        wait([seen.coming], timeout=5)
        yield draw_all(seen, name, chosen)

    def answer(
        name: str, chosen: Choice, asked: str, block: float, stage: str, place: Place, request: gr.Request
    ) -> Iterator[dict]:
        """All views at once; most of what they show has been computed before."""
        ticket = page.newest.take("alignment", request, (name, chosen, asked))
        with polite():
            seen = look(name, chosen, asked, block, stage, place)
            updates = controls.show(seen.view.picture, chosen) | draw_picture(seen)
            updates |= draw_columns(seen, range(1, 3)) | draw_all(seen, name, chosen)
        if ticket.valid:
            yield updates

    def click(
        name: str,
        chosen: Choice,
        asked: str,
        block: float,
        stage: str,
        place: Place,
        request: gr.Request,
        event: gr.SelectData,
    ) -> Iterator[dict]:
        place = clicked_place(event)
        for updates in answer(name, chosen, asked, block, stage, place, request):
            yield updates | {where: place}

    def poll(
        name: str,
        chosen: Choice,
        asked: str,
        block: float,
        stage: str,
        place: Place,
        before: tuple,
        request: gr.Request,
    ) -> dict:
        """What the background has finished by now."""
        if not page.newest.is_looking_at((name, chosen, asked), "alignment", request):
            return {known: before}
        with polite():
            seen = look(name, chosen, asked, block, stage, place)
            like = likeness(seen, name, chosen)
            if (seen.coming.done(), bool(like and like.done())) == before:
                return {known: before}
            return draw_all(seen, name, chosen)

    def likeness(seen: "Look", name: str, chosen: Choice) -> Future[Likeness] | None:
        """None where cosines are shown instead, and while there is no teacher."""
        if seen.has_cosines or seen.teacher is None:
            return None
        return background.likeness(name, chosen.surveyed, seen.asked, seen.teacher)

    def says(what: str) -> dict:
        return {state_line: status(f"computing: {what} …")}

    def draw_picture(seen: "Look") -> dict:
        view, has = seen.view, seen.view.run.has("generator")
        choice = gr.Slider(interactive=False)
        if has:
            blocks = view.run.generator.config.blocks
            choice = gr.Slider(maximum=max(blocks, 2), value=seen.block, interactive=True)
        return {
            original: seen.framed(plots.enlarge(plots.to_rgb(view.image[0]), SIDE)),
            block: choice,
            stage: gr.Radio(interactive=has),
        }

    def draw_columns(seen: "Look", columns: range) -> dict:
        updates: dict = {}
        for column in columns:
            symbol, values = seen.symbol(column), seen.features(column)
            updates[titles[column]] = heading(symbol, "PCA as RGB" if values is not None else seen.lack)
            if values is not None:
                colors = (features.pca_rgb(values) * 255).round().byte().cpu().numpy()
                updates[maps[column]] = seen.framed(plots.grid_map(colors, SIDE))
        return updates

    def draw_all(seen: "Look", name: str, chosen: Choice) -> dict:
        """What waits for the teacher, as far as it is there."""
        updates = draw_columns(seen, range(1)) | draw_similarities(seen) | draw_cosines(seen)
        like = likeness(seen, name, chosen)
        there = seen.coming.done(), bool(like and like.done())
        ready = there[0] and (like is None or there[1])
        if not seen.has_cosines:
            updates[facts] = show_likeness(seen, like)
        what = "how alike the features are" if there[0] else f"teacher {seen.asked} is being read, which"
        line = "done" if ready else f"{what} is still being computed; it appears here by itself"
        if not there[0]:
            line = f"teacher {seen.asked} is still being read; it appears here by itself"
        protocol = seen.protocol
        if like and like.done() and not like.exception():
            protocol += f"<br><b>Likeness.</b> {html.escape(like.result().protocol)}"
        return updates | {
            state_line: status(line, done=ready),
            note: f'<div class="protocol">{protocol}</div>',
            waiting: gr.Timer(active=not ready),
            known: there,
        }

    def draw_similarities(seen: "Look") -> dict:
        shown = {column: seen.features(column) for column in range(3)}
        values = {
            column: features.similarity(each, seen.patch)
            for column, each in shown.items()
            if each is not None
        }
        # One outlier (often position 0) would leave the rest one colour.
        low = float(torch.cat(list(values.values())).quantile(0.05))
        scale = plots.legend(
            "cosine, the same scale for all three; darkest: their lowest 5 %", low, 1, digits=2
        )
        updates: dict = {}
        for column in range(3):
            word, symbol = seen.words(column)
            updates[similarity_titles[column]] = heading(
                f"{word}: similarity", f"of {symbol}, to patch {seen.patch}"
            )
            if column in values:
                drawn = plots.heat_map(values[column], low, 1, "viridis", SIDE)
                updates |= {similarities[column]: seen.framed(drawn), scales[column]: scale}
        return updates

    def draw_cosines(seen: "Look") -> dict:
        if not seen.has_cosines:
            why = "needs a projector and the run's own teacher; likeness over pictures is above"
            return {cosine_title: heading("cos(g(h), f(x))", why)}
        if seen.teacher is None:
            return {cosine_title: heading("cos(g(h), f(x))", seen.lack)}
        cosines, tap = seen.view.alignment(seen.teacher, seen.asked), seen.view.run.generator.config.tap
        worst = float(cosines.quantile(0.02))
        said = "cosine; 1 is perfect, darkest: the lowest 2 %"
        return {
            facts: f'<div class="big" data-cosine="{cosines.mean():.4f}">mean cos(g(h), f(x)) at the tap, '
            f"block {tap}: <b>{cosines.mean():.3f}</b>; at the framed patch {seen.patch}: "
            f"<b>{cosines[seen.patch]:.3f}</b></div>",
            cosine_title: heading("cos(g(h), f(x))", "alignment at the tap, patch by patch"),
            cosine: seen.framed(plots.heat_map(cosines, worst, 1, "cividis", SIDE)),
            cosine_scale: plots.legend(said, worst, 1, "cividis", digits=2),
        }

    others = [
        event(answer, inputs, outputs, **OVERTAKEN)
        for event in (released(block), stage.input, teacher.change)
    ]
    for map_ in (original, cosine, *maps, *similarities):
        others.append(map_.select(click, inputs, outputs, **OVERTAKEN))
    others.append(waiting.tick(poll, [*inputs, known], outputs, **LAST_COUNTS))
    page.add_looking(run, draw, inputs, outputs, cleared=cleared, others=others)


def teacher_for(run: Run, asked: str | None) -> str:
    """The name of the teacher that is meant: an imported Run has none of its own."""
    asked = (asked or OWN_TEACHER).strip()
    return STAND_IN if asked == OWN_TEACHER and run.config["stage"] == "imported" else asked


class Look:
    """One picture through a Run and a teacher. coming: the teacher, being read or there. place: of the patch
    that the others are compared with; another grid has another patch there."""

    def __init__(self, view: View, asked: str, coming: Future[Teacher], block: int, stage: str, place: Place):
        self.view, self.asked, self.coming = view, asked, coming
        self.stage, self.patch = stage, token_at(place, view.grid)
        self.has_generator = view.run.has("generator")
        self.block = min(block, view.run.generator.config.blocks) if self.has_generator else block
        self.has_cosines = view.run.has("projector") and self.has_generator and asked == OWN_TEACHER

    @property
    def teacher(self) -> Teacher | None:
        """None while it is being read, and where it cannot be had."""
        return self.coming.result() if self.coming.done() and not self.coming.exception() else None

    @property
    def lack(self) -> str:
        """Why there is no teacher."""
        if not self.coming.done():
            return f"teacher {self.asked} is being read"
        return f"teacher {self.asked} cannot be had: {self.coming.exception()}"

    def words(self, column: int) -> tuple[str, str]:
        """Which model a column shows, and the symbol of its features."""
        if column == 0:
            return "Teacher", "f(x)"
        if not self.has_generator:
            return "Tokenizer", (BEFORE, AFTER)[column - 1]
        return ("Tokenizer", self.stage) if column == 1 else ("Generator", f"h after block {self.block}")

    def symbol(self, column: int) -> str:
        return ": ".join(self.words(column))

    def features(self, column: int) -> Tensor | None:
        """What a column shows, (N, d); None where that is the teacher's and it is not there."""
        view, (word, symbol) = self.view, self.words(column)
        if word == "Teacher":
            return None if self.teacher is None else view.teacher_features(self.asked, self.teacher)
        if word == "Tokenizer":
            return view.z if symbol == BEFORE else view.c_q
        return view.hidden(self.block)

    def framed(self, picture: Image) -> Image:
        """The picture with the patch framed that others are compared with."""
        return plots.mark(picture, self.patch, self.view.grid)

    @property
    def protocol(self) -> str:
        """How features were taken, as HTML."""
        condition = self.view.condition()
        if condition is None:
            conditioned = "the null condition (the picture has no class of the run's)"
        else:
            name = self.view.run.config["classes"][int(condition[0])]
            conditioned = f"its own class as condition ({name})"
        generator = (
            "The generator is teacher-forced on the tokens of x, with "
            f"{html.escape(conditioned)}. Its features are the hidden states after block {self.block}, "
            "before the projector; position i, which has seen only the tokens before i, stands for patch i. "
        )
        teacher = self.teacher
        return (
            f"<b>Protocol.</b> {generator if self.has_generator else ''}PCA is fitted to this picture's "
            f"{self.view.grid**2} patches, each model for itself: compare outlines, not colours."
            f"<br><b>Teacher.</b> {html.escape(teacher.note if teacher else self.lack)}"
        )


def show_likeness(seen: Look, like: Future[Likeness] | None) -> str:
    """The likeness over pictures, as HTML."""
    if like is None:
        return div("note", seen.lack)
    if not like.done():
        return div("note", "How alike the features are over pictures is being computed.")
    if like.exception():
        return div("note", f"How alike the features are cannot be said: {like.exception()}")
    rows = "".join(
        f"<tr><td>{html.escape(place)} and f(x)</td>"
        + "".join(f"<td>{html.escape(str(estimate))}</td>" for estimate in measures.values())
        + "</tr>"
        for place, measures in like.result().values.items()
    )
    return (
        '<table class="codes likeness" data-likeness><tr><th>patch by patch</th><th>CKA [95 % interval]</th>'
        f"<th>CKNNA [95 % interval]</th></tr>{rows}</table>"
    )
