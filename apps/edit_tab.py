"""Edit: paint a region of a picture's tokens; a generator draws it anew after all tokens before it."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import gradio as gr
import snippets
import torch
from components import QUIET, SIDE, clicked_place, computing, div, heading, panel, polite, status, token_at
from page import Page
from pictures import FOREIGN, Choice, is_foreign
from PIL.Image import Image
from side_by_side import (
    ANY,
    class_condition,
    decode_by_row,
    drawn_by,
    next_seed,
    progress,
    run_choice,
    sampling_controls,
    sampling_settings,
    seed_number,
)
from views import OVERTAKEN, ending_quietly

from gear_studio import plots, sampling
from gear_studio.errors import InputError
from gear_studio.looking.view import View

TITLE = "Edit"
GUIDE = "Click tokens in the left picture to paint them, press Resample, and click the answer to go on with."
ANSWERS, STOPPED = "Edit: answers", "stopped"  # the place in `Newest` of a resampling; what ends it there
OWN_CLASS = "the picture's own"
ONE, RECTANGLE = "one token", "a rectangle: two corners"
UNDONE = 50  # steps back that are kept
WHAT_IT_CAN = (
    "The generator draws tokens in reading order, and each sees only those before it. So a painted token "
    "takes up what stands in the rows above and at its left. It cannot know what stands at its right or "
    "below: those tokens stay as they are, and whether an answer meets them is chance. *log p of what "
    "follows* is how likely the generator finds the kept tokens behind the first painted one, given the "
    "answer, in nats a token (of the guided distribution, before temperature, top-k and top-p): the highest "
    "fits best. *And all that follow* draws those tokens anew, too: then they take up the region, and are no "
    "longer those of the picture. The decoder looks at neighbouring tokens together, so pixels just outside "
    "the region may change although their tokens do not."
)
Tokens = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Version:
    """A picture's tokens, in raster order, and the numbers of those that are painted."""

    tokens: Tokens
    painted: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Canvas:
    """What one visitor has made of a picture. history: the last Version is the one in the page; none while
    the picture is being read. corner: the first of a rectangle whose second is still to be clicked."""

    history: tuple[Version, ...] = ()
    corner: int | None = None

    @property
    def now(self) -> Version:
        """Raises ValueError while there is none."""
        if not self.history:
            raise InputError("The picture is still being read; wait until it is shown.")
        return self.history[-1]

    @property
    def grid(self) -> int:
        return math.isqrt(len(self.now.tokens))

    def then(self, **changes: Any) -> "Canvas":
        """With a new Version, in which `changes` differ from the one before."""
        new = dataclasses.replace(self.now, **changes)
        return Canvas((*self.history, new)[-UNDONE:]) if new != self.now else Canvas(self.history)

    def undo(self) -> "Canvas":
        """Without the corner if one is waiting; else the Version before, if there is one."""
        return Canvas(self.history if self.corner is not None else self.history[:-1] or self.history)

    def click(self, token: int, brush: str) -> "Canvas":
        """Paint or clear one token, or paint a rectangle at its second corner."""
        if brush == ONE:
            return self.then(painted=self.now.painted ^ {token})
        if self.corner is None:
            return Canvas(self.history, token)
        return self.then(painted=self.now.painted | rectangle(self.corner, token, self.grid))

    def region(self, onward: bool) -> list[int]:
        """The tokens to resample. onward: with all that follow the first painted one."""
        painted = sorted(self.now.painted)
        return list(range(painted[0], len(self.now.tokens))) if onward and painted else painted


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a visitor asks to see, in the order of the views' inputs. label: the class asked for."""

    run: str
    chosen: Choice
    onward: bool
    label: str

    @property
    def looked_at(self) -> tuple:
        """What and where, however it is drawn."""
        return self.run, self.chosen


def rectangle(corner: int, opposite: int, grid: int) -> frozenset[int]:
    """The tokens of a rectangle by those in two opposite corners."""
    top, bottom = sorted((corner // grid, opposite // grid))
    left, right = sorted((corner % grid, opposite % grid))
    rows, columns = range(top, bottom + 1), range(left, right + 1)
    return frozenset(row * grid + column for row in rows for column in columns)


def build(page: Page) -> None:
    """Lay the tab out. It follows the picture that is chosen."""
    runs = page.runs
    default = runs.default(runs.generators, "generator", "gear")
    canvas, answers = gr.State(Canvas()), gr.State(())
    with gr.Row(equal_height=True):
        with gr.Column(scale=3, min_width=200):
            run = run_choice(page, runs.generators, default, "edit-run")
        controls = page.add_picker("edit", run)
    controls.caption.render()
    controls.strip.render()
    state_line = gr.HTML(elem_id="edit-status", padding=False)
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            picture = panel("Dec(q′)", "the picture, decoded from its tokens; click to paint", "edit-picture")
            region_text = gr.HTML(elem_id="edit-region", padding=False)
            brush = gr.Radio([ONE, RECTANGLE], value=ONE, label="A click paints", elem_id="edit-brush")
            onward = gr.Checkbox(
                label="And all that follow",
                info="resample the rest of the picture, too",
                elem_id="edit-onward",
            )
            with gr.Row():
                undo = gr.Button("Undo", elem_id="edit-undo", min_width=100)
                clear = gr.Button("Clear the paint", elem_id="edit-clear", min_width=100)
            go = gr.Button("Resample", variant="primary", elem_id="edit-go")
            with gr.Row():
                again = gr.Button("Next seed", elem_id="edit-next-seed", elem_classes="again", min_width=100)
                stop = gr.Button("Stop", elem_id="edit-stop", min_width=100)
        with gr.Column(scale=4, min_width=300):
            gr.HTML(heading("Answers", "click the one to go on with"), padding=False)
            gallery = gr.Gallery(
                columns=2, object_fit="contain", allow_preview=False, show_label=False, buttons=[],
                interactive=False, format="png", elem_id="edit-answers", elem_classes="answers",
            )  # fmt: skip
            answers_text = gr.HTML(elem_id="edit-answers-text", padding=False)
        with gr.Column(scale=2, min_width=240):
            label = gr.Dropdown(
                [OWN_CLASS, ANY], value=OWN_CLASS, label="Class", elem_id="edit-class",
                info="that the region is drawn for; type to search", allow_custom_value=True,
            )  # fmt: skip
            sliders, seed = sampling_controls(runs.tokenizer(default).config.codes, "edit-")
    gr.Markdown(WHAT_IT_CAN)

    cleared: list[Any] = [picture, gallery, state_line, region_text, answers_text, controls.caption]
    canvas_inputs = [run, page.choice, canvas, onward]
    canvas_outputs = [canvas, picture, region_text]

    def look(name: str, chosen: Choice) -> View:
        """The picture through the Run's tokenizer, once its generator is read. Raises what may be said to the
        visitor."""
        runs.generator(name)
        return runs.view(name, page.pictures.picture(chosen, runs[name]))

    def first(asked: Asked) -> dict:
        """What was painted and drawn on the last picture goes."""
        classes = [OWN_CLASS, ANY, *runs[asked.run].config["classes"]]
        kept = asked.label if asked.label in classes else OWN_CLASS
        return {canvas: Canvas(), answers: (), label: gr.Dropdown(choices=classes, value=kept)}

    def steps(asked: Asked) -> Iterator[dict]:
        """The picture from its own tokens."""
        view = look(asked.run, asked.chosen)
        yield controls.show(view.picture, asked.chosen)
        yield controls.show_strip(page.pictures, asked.chosen, runs[asked.run])
        yield {state_line: computing("encoding", 1, 2, view.seconds("z"))}
        whole = Canvas((Version(tuple(view.indices.tolist())),))
        yield {state_line: computing("decoding", 2, 2, view.seconds("decoded"))}
        said = FOREIGN if is_foreign(view.picture, view.run) else "done"
        yield show(view, whole, asked.onward) | {state_line: status(said, done=True)}

    def show(view: View, now: Canvas, onward: bool) -> dict:
        return {
            canvas: now,
            picture: draw_painted(view, now, onward),
            region_text: describe_region(now, onward),
        }

    def click(
        event: gr.SelectData, brush: str, name: str, chosen: Choice, before: Canvas, onward: bool
    ) -> dict:
        place = clicked_place(event)
        with polite():
            now = before.click(token_at(place, before.grid), brush)
            return show(look(name, chosen), now, onward) | {page.place: place}

    def step_back(name: str, chosen: Choice, before: Canvas, onward: bool) -> dict:
        with polite():
            return show(look(name, chosen), before.undo(), onward)

    def wipe(name: str, chosen: Choice, before: Canvas, onward: bool) -> dict:
        with polite():
            return show(look(name, chosen), before.then(painted=frozenset()), onward)

    def reach(name: str, chosen: Choice, before: Canvas, onward: bool) -> dict:
        """More or fewer tokens will be drawn."""
        return show(look(name, chosen), before, onward) if before.history else {canvas: before}

    def choose(
        event: gr.SelectData,
        drawn: tuple[Tokens, ...],
        name: str,
        chosen: Choice,
        before: Canvas,
        onward: bool,
    ) -> dict:
        """Go on with an answer. What is painted stays, for further answers."""
        with polite():
            if event.index >= len(drawn):
                raise InputError("This answer is not there any more; press Resample.")
            return show(look(name, chosen), before.then(tokens=drawn[event.index]), onward)

    def resample(
        request: gr.Request,
        name: str,
        chosen: Choice,
        now: Canvas,
        onward: bool,
        wanted: str,
        count: float,
        guidance: float,
        temperature: float,
        top_k: float,
        top_p: float,
        seed: int | None,
    ) -> Iterator[dict]:
        """The answers, after every row of tokens."""
        ticket = page.newest.take(ANSWERS, request, (name, chosen))
        with polite():
            how = seed_number(seed), temperature, int(top_k), top_p
            view, region = look(name, chosen), now.region(onward)
            for items in _draw(page, view, name, now.now.tokens, region, wanted, int(count), guidance, *how):
                # Those to the last picture are not wanted any more.
                if not (ticket.valid and page.newest.is_looking_at((name, chosen), TITLE, request)):
                    if page.newest.is_looking_at(STOPPED, ANSWERS, request):
                        said = "stopped: the tokens still to come are as they were"
                        yield {state_line: status(said, done=True)}
                    return
                yield dict(zip((gallery, answers, answers_text, state_line), items, strict=True))

    draw_answers = ending_quietly(resample, state_line)

    def snippet(
        name: str, chosen: Choice, now: Canvas, onward: bool, wanted: str, count: float, *how: Any
    ) -> str:
        view = look(name, chosen)
        own = view.condition() if wanted == OWN_CLASS else None
        asked = None if wanted in (OWN_CLASS, ANY) else wanted
        if own is not None:
            asked = runs[name].config["classes"][int(own)]
        settings = sampling_settings(*how) if asked is not None else sampling_settings(1.0, *how[1:])
        region, tokens = now.region(onward), now.now.tokens
        return snippets.of_edit(runs, name, chosen, tokens, region, asked, int(count), settings)

    snippets.lay_out(snippet, [*canvas_inputs, label, *sliders, seed], "edit")

    def halt(request: gr.Request) -> None:
        page.newest.take(ANSWERS, request, STOPPED)

    # One after the other: each goes on from what the one before has made.
    changing: dict[str, Any] = dict(
        outputs=canvas_outputs, concurrency_id="edit-canvas", concurrency_limit=1, **OVERTAKEN
    )
    clicked = picture.select(
        click, [brush, *canvas_inputs], **changing | {"outputs": [*canvas_outputs, page.place]}
    )
    others = [
        clicked,
        gallery.select(choose, [answers, *canvas_inputs], **changing),
        undo.click(step_back, canvas_inputs, **changing),
        clear.click(wipe, canvas_inputs, **changing),
        onward.input(reach, canvas_inputs, **changing),
    ]
    drawing: dict[str, Any] = dict(
        inputs=[*canvas_inputs, label, *sliders, seed],
        outputs=[gallery, answers, answers_text, state_line],
        concurrency_id="sample",
        **OVERTAKEN,
    )
    resampling = [
        gr.on([go.click, seed.submit], draw_answers, **drawing),
        again.click(next_seed, seed, seed, **QUIET).then(draw_answers, **drawing),
    ]
    stop.click(halt, None, None, **QUIET)
    views = page.add_views(
        [run],
        Asked,
        inputs=[run, page.choice, onward, label],
        outputs=[*cleared, canvas, answers, label, controls.index, controls.strip],
        cleared=cleared,
        of_run=[controls.strip],
        state_line=state_line,
        first=first,
        steps=steps,
    )
    views.cancelled += [*others, *resampling]


def draw_painted(view: View, canvas: Canvas, onward: bool) -> Image:
    """The picture as it is now, with what will be drawn anew painted over."""
    pixels = plots.to_rgb(view.decode(dict(enumerate(canvas.now.tokens))))
    painted = plots.paint(plots.enlarge(pixels, SIDE), canvas.region(onward), canvas.grid)
    return plots.mark(painted, canvas.corner, canvas.grid)


def describe_region(canvas: Canvas, onward: bool) -> str:
    """How much is painted, as HTML."""
    count, drawn, tokens = len(canvas.now.painted), len(canvas.region(onward)), len(canvas.now.tokens)
    said = f"{count} of {tokens} tokens painted"
    if drawn > count:
        said += f", and {drawn - count} that follow"
    if canvas.corner is not None:
        said += "; now click the opposite corner"
    return div("note", said, painted=count)


def _draw(
    page: Page,
    view: View,
    run: str,
    tokens: Tokens,
    region: list[int],
    wanted: str,
    count: int,
    guidance: float,
    seed: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Iterator[tuple]:
    """Yields (pictures with captions, their tokens, text, status) after every row of tokens."""
    if not region:
        raise InputError("No token is painted; click some in the left picture first.")
    runs, generator = page.runs, page.runs.generator(run)
    own = view.condition() if wanted == OWN_CLASS else None
    rows = count + 1  # the last is the picture as it is, to compare with
    if own is not None:
        condition, wanted = own.expand(rows), view.run.config["classes"][int(own)]
    else:
        wanted = ANY if wanted == OWN_CLASS else wanted
        condition = class_condition(runs, run, wanted, rows)
    scale = 1.0 if wanted == ANY else guidance
    now = torch.tensor(tokens, device=generator.token_table.device)
    place = torch.arange(len(now), device=now.device)
    mask = torch.isin(place, torch.tensor(region, device=now.device))
    behind = ~mask & (place > region[0])
    masks = torch.cat([mask.expand(count, -1), torch.zeros_like(mask)[None]])
    stream = sampling.resample_by_row(
        generator, condition, now, masks,
        cfg_scale=scale, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
    )  # fmt: skip
    answers = (
        dataclasses.replace(step, indices=torch.where(place < step.done, step.indices, now)[:count])
        for step in stream
    )
    by = drawn_by(run, wanted, scale, seed)
    for images, step in decode_by_row(view.tokenizer, answers):
        names, text = [str(number + 1) for number in range(count)], by
        if step.done == len(now) and behind.any():
            *fits, as_it_is = (
                f"{fit:.2f}".replace("-", "−") for fit in step.log_probs[:, behind].mean(1).tolist()
            )
            names = [f"{name}: log p {fit}" for name, fit in zip(names, fits, strict=True)]
            text += div("note", f"log p of what follows; of the picture as it is: {as_it_is} nats a token")
        pictures = [plots.enlarge(plots.to_rgb(image), SIDE) for image in images]
        yield (
            gr.Gallery(list(zip(pictures, names, strict=True)), selected_index=None),
            tuple(map(tuple, step.indices.tolist())),
            text,
            progress(step.done, len(now)),
        )
