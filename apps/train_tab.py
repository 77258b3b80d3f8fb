"""Train: a recipe, an arm, pictures and a seed become a Run, in a process of its own, looked at as it learns.
Or a study makes many, and ends in a table.

The queue of trainings is on disk and the same for all visitors (`gear_studio.training.queue`): what this tab
shows is what lies there, looked at again every other second."""

from pathlib import Path
from typing import Any

import gradio as gr
from components import LAST_COUNTS, QUIET, div, heading, polite, sheet, status
from page import Page
from PIL import Image
from train_look import (
    ALL,
    ASKED_BY,
    BY_NAME,
    PICTURES,
    arms_of,
    describe_command,
    describe_effort,
    describe_standing,
    describe_study,
    draw_curves,
    in_order,
    list_parents,
    metrics_of,
    read_form,
    read_rows,
    read_study,
    read_summary,
    say_state,
    shown_pictures,
    shown_runs,
)

from gear_studio.data import SOURCES
from gear_studio.errors import UserError
from gear_studio.models.quantizers import QUANTIZERS
from gear_studio.studies import SEEDS, STUDIES
from gear_studio.training.queue import ENDED, Standing
from gear_studio.training.recipes import BUDGET_NOTES, NAMES, STAGES

TITLE = "Train"
GUIDE = (
    "Train a tokenizer or a generator of your own here, or all that a study compares: choose what, press "
    "Start, and watch it learn."
)
RUN, STUDY = "a run", "a study"
EVERY = 2.0  # seconds from one look at the trainings to the next
NOTHING = "None yet: press Start, and watch it learn here."
# The lists follow what lies on disk. The page may still send what it showed before, which Gradio would
# refuse; whoever takes it judges instead.
UNCHECKED: dict[str, Any] = {**LAST_COUNTS, "preprocess": False}
CAN = {  # in which states a training can be told what
    "Pause": ("running", "waiting"),
    "Resume": ("paused", "stopped", "failed"),
    "Stop": ("running", "pausing", "waiting"),
    "Remove": ENDED,
}


def build(page: Page) -> None:
    """Lay the tab out. It writes files of the machine that serves the page: hosts leave it out."""
    queue = page.background.trainings
    sources = [name for name, kind in SOURCES.items() if kind.trainable]
    budgets = "; ".join(f"{name}: {note}" for name, note in BUDGET_NOTES.items())
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            gr.HTML(
                heading(
                    "What to train", "each stage makes a run of its own, a study one for each arm and seed"
                ),
                padding=False,
            )
            what = gr.Radio(
                [RUN, STUDY], value=RUN, show_label=False, label="What to train", elem_id="train-what"
            )
            with gr.Column() as run_form:
                stage = gr.Radio([*STAGES, ALL], value="warmup", label="Stage", elem_id="train-stage")
                arm = gr.Dropdown(
                    arms_of("warmup"), value="warmup", label="Arm", interactive=False, elem_id="train-arm"
                )
                budget = gr.Radio(
                    list(BUDGET_NOTES), value="quick", label="Budget", elem_id="train-budget",
                    info=budgets,
                )  # fmt: skip
                with gr.Row():
                    source = gr.Dropdown(
                        sources, value="shapes", label="Pictures", elem_id="train-source", min_width=130
                    )
                    quantizer = gr.Dropdown(
                        list(QUANTIZERS),
                        value="vq",
                        label="Quantizer",
                        elem_id="train-quantizer",
                        min_width=130,
                    )
                condition = gr.Radio(
                    list(ASKED_BY), value="its class", label="A picture is asked for by",
                    elem_id="train-condition",
                    info="of the generator; captions, where the pictures have them",
                )  # fmt: skip
                folder = gr.Textbox(
                    value="", label="Where they lie", max_length=1000, visible=False, elem_id="train-folder",
                    placeholder="/home/me/pictures", info="on the machine that serves this page",
                )  # fmt: skip
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, elem_id="train-seed", min_width=100)
                    steps = gr.Textbox(
                        value="", label="Steps", max_length=12, elem_id="train-steps", min_width=100,
                        placeholder="the recipe's",
                    )  # fmt: skip
                name = gr.Textbox(
                    value="", label="Name", max_length=80, elem_id="train-name",
                    placeholder="from what is chosen above", info=f"of the run's folder in {queue.runs}/",
                )  # fmt: skip
                with gr.Accordion("More", open=False):
                    recipe = gr.Dropdown(
                        list(NAMES), value="small", label="Recipe", elem_id="train-recipe",
                        info="those of the paper need GPUs and published teachers, and have no budgets",
                    )  # fmt: skip
                    parent = gr.Dropdown(
                        list_parents(queue),
                        value=BY_NAME,
                        label="The run to build on",
                        elem_id="train-parent",
                    )
                    settings = gr.Textbox(
                        value="", label="Settings of the recipe", max_length=1000, elem_id="train-settings",
                        placeholder="gan_weight=0.1 tau=0.05",
                    )  # fmt: skip
                command = gr.Textbox(
                    label="The same on the command line", interactive=False, max_lines=12, buttons=["copy"],
                    elem_id="train-command",
                )  # fmt: skip
                effort = gr.HTML(elem_id="train-effort", padding=False)
                start = gr.Button("Start", variant="primary", elem_id="train-start")
            with gr.Column(visible=False) as study_form:
                study = gr.Dropdown(list(STUDIES), value="convergence", label="Study", elem_id="train-study")
                question = gr.HTML(padding=False)
                study_budget = gr.Radio(
                    list(BUDGET_NOTES), value="quick", label="Budget", elem_id="train-study-budget",
                    info=budgets,
                )  # fmt: skip
                seeds = gr.Textbox(
                    " ".join(map(str, SEEDS)), label="Seeds", max_length=200, elem_id="train-seeds",
                    info="every arm is trained with each",
                )  # fmt: skip
                study_command = gr.Textbox(
                    label="The same on the command line", interactive=False, max_lines=12, buttons=["copy"],
                    elem_id="train-study-command",
                )  # fmt: skip
                study_effort = gr.HTML(elem_id="train-study-effort", padding=False)
                start_study = gr.Button("Start", variant="primary", elem_id="train-study-start")
        with gr.Column(scale=3, min_width=320):
            at_once = f"at most {queue.at_once} at a time, as many by a study; the others wait"
            gr.HTML(heading("Trainings", at_once), padding=False)
            chosen = gr.Radio([], label="Trainings", show_label=False, visible=False, elem_id="train-list")
            state_line = gr.HTML(status(NOTHING, done=True), elem_id="train-status", padding=False)
            with gr.Row():
                buttons = [
                    gr.Button(
                        word, size="sm", interactive=False, min_width=60, elem_id=f"train-{word.lower()}"
                    )
                    for word in CAN
                ]
            metric = gr.Dropdown([], label="Metric", visible=False, elem_id="train-metric")
            chart = gr.Plot(show_label=False, visible=False, elem_id="train-chart")
            table = gr.Markdown(visible=False, elem_id="train-table", elem_classes="wide", padding=False)
            titles, pictures = [], []
            for kind, said in PICTURES.items():
                titles.append(gr.HTML(heading(kind.capitalize(), said), padding=False, visible=False))
                pictures.append(sheet(f"train-{kind}", f"{kind.capitalize()}: {said}", visible=False))
    # What the page was sent, and whether twice: Gradio may lose what reaches a view while it is put into the
    # page. So the page is sent what has changed alone.
    seen = gr.State([])
    form: list[Any] = [
        stage,
        arm,
        budget,
        quantizer,
        source,
        condition,
        folder,
        seed,
        steps,
        name,
        recipe,
        parent,
        settings,
    ]
    study_choices: list[Any] = [study, study_budget, seeds]
    views = [chosen, state_line, *buttons, metric, chart, table, *titles, *pictures]

    of_study: list[Any] = [question, study_command, study_effort]

    def preview(*values: Any) -> list[str]:
        """What the form stands for, or what is wrong with it."""
        try:
            asked = read_form(queue, *values)
            return [describe_command(asked), describe_effort(asked)]
        except UserError as error:
            return ["", div("problem", str(error))]

    def preview_study(*values: Any) -> list[str]:
        try:
            return describe_study(read_study(queue, *values), queue)
        except UserError as error:
            return ["", "", div("problem", str(error))]

    def choose_stage(stage: str, arm: str | None) -> dict:
        arms = arms_of(stage)
        value = arm if arm in arms else "gear" if "gear" in arms else arms[0]
        return gr.update(choices=arms, value=value, interactive=len(arms) > 1)

    def look(name: str | None, shown: str | None) -> list:
        """The views of a training, by default of the first in the list. shown: the metric that is drawn."""
        standings: list[Standing] = []
        try:
            standings, said = in_order(queue.standings()), status(NOTHING, done=True)
        except UserError as error:  # a damaged file: no message every other second
            said = div("problem", str(error))
        one = next((each for each in standings if each.name == name), next(iter(standings), None))
        rows = {folder.name: read_rows(folder) for folder in shown_runs(one, queue)} if one else {}
        metrics = metrics_of([row for of_run in rows.values() for row in of_run])
        drawn = shown if shown in metrics else next(iter(metrics), None)
        plot = draw_curves(rows, drawn) if drawn else None
        summary = read_summary(one, queue) if one else ""
        there = shown_pictures(one, queue) if one else {}
        files = [written_at(there[kind]) if kind in there else None for kind in PICTURES]
        labels = [(f"{each.name}: {say_state(each)}", each.name) for each in standings]
        # Another may have been chosen since this was asked for: the choice is set where there is none alone.
        choice = {} if one and one.name == name else {"value": one.name if one else None}
        return [
            gr.update(choices=labels, visible=bool(labels), **choice),
            describe_standing(one, queue) if one else said,
            *(gr.update(interactive=one is not None and one.state in states) for states in CAN.values()),
            gr.update(choices=metrics, value=drawn, visible=bool(metrics)),
            gr.update(value=plot, visible=plot is not None),
            gr.update(value=summary, visible=bool(summary)),
            *(gr.update(visible=file is not None) for file in files),
            *files,
        ]

    def follow(name: str | None, shown: str | None, before: list) -> list:
        """The views that differ from what the page shows."""
        now = look(name, shown)
        sent = before or [(None, False)] * len(now)
        known = [view == old for view, (old, _) in zip(now, sent, strict=True)]
        updates = [
            gr.skip() if same and twice else as_update(view)
            for view, same, (_, twice) in zip(now, known, sent, strict=True)
        ]
        return [*updates, list(zip(now, known, strict=True))]

    def show(name: str | None, shown: str | None) -> list:
        return follow(name, shown, [])

    def show_first(name: str) -> list:
        """The views of a training that has just been asked for."""
        labels, *others = show(name, None)
        return [labels | {"value": name}, *others]

    # The names of the parameters are the app's API.
    def train(
        stage: str,
        arm: str,
        budget: str,
        quantizer: str,
        source: str,
        condition: str,
        folder: str,
        seed: int,
        steps: str,
        name: str,
        recipe: str,
        parent: str,
        settings: str,
    ) -> list:
        """Ask for a training, or all three stages of one, in the queue."""
        with polite():
            asked = read_form(
                queue, stage, arm, budget, quantizer, source, condition, folder, seed, steps, name, recipe,
                parent, settings,
            )  # fmt: skip
            first, *_ = queue.add(asked)
        return [gr.update(choices=list_parents(queue)), *show_first(first)]

    def train_study(study: str, budget: str, seeds: str) -> list:
        """Ask for a study in the queue: all trainings that it compares, and its table in the end."""
        with polite():
            return show_first(read_study(queue, study, budget, seeds).ask(queue))

    # One event, so that an answer to older values never comes last.
    gr.on([each.change for each in form], preview, form, [command, effort], **LAST_COUNTS)
    gr.on([each.change for each in study_choices], preview_study, study_choices, of_study, **LAST_COUNTS)
    what.input(
        lambda what: [gr.update(visible=True if what == each else "hidden") for each in (RUN, STUDY)],
        what, [run_form, study_form], **QUIET,
    )  # fmt: skip
    stage.input(choose_stage, [stage, arm], arm, **QUIET)
    source.input(lambda name: gr.update(visible=SOURCES[name].on_disk), source, folder, **QUIET)
    command.value, effort.value = preview(*(each.value for each in form))
    for each, said in zip(of_study, preview_study(*(each.value for each in study_choices)), strict=True):
        each.value = said
    start.click(
        train, form, [parent, *views, seen], api_name="train", show_progress="minimal",
        show_progress_on=state_line,
    )  # fmt: skip
    start_study.click(
        train_study, study_choices, [*views, seen], api_name="train_study", show_progress="minimal",
        show_progress_on=state_line,
    )  # fmt: skip
    followed: dict[str, Any] = {"fn": follow, "inputs": [chosen, metric, seen], "outputs": [*views, seen]}
    for button, word in zip(buttons, CAN, strict=True):

        def tell(training: str, what: str = word.lower()) -> None:
            with polite():
                getattr(queue, what)(training)

        # An assistant knows it by these.
        tell.__name__, tell.__doc__ = (
            f"{word.lower()}_training",
            f"{word} a training or a study of the queue.",
        )
        asked: dict[str, Any] = {"api_name": f"{word.lower()}_training", "show_progress": "hidden"}
        button.click(tell, chosen, None, preprocess=False, **asked).then(**followed, **UNCHECKED)
    gr.on([chosen.input, metric.input, gr.Timer(EVERY).tick], **followed, **UNCHECKED)
    page.tab.select(show, [chosen, metric], [*views, seen], **UNCHECKED)
    page.tab.select(lambda: gr.update(choices=list_parents(queue)), None, parent, **QUIET)


def written_at(file: Path) -> tuple[Path, int] | None:
    """A picture and when it was written; None where there is none."""
    return (file, file.stat().st_mtime_ns) if file.is_file() else None


def as_update(view: Any) -> Any:
    """What the page is sent of a view: a picture's file is read only where it is new."""
    if isinstance(view, tuple):
        with Image.open(view[0]) as picture:
            return gr.update(value=picture.convert("RGB"), visible=True)
    return gr.update(value=None, visible=False) if view is None else view
