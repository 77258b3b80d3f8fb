"""Convergence: metrics of any Runs against steps, pictures or time, and who reaches a level first."""

from typing import Any

import gradio as gr
import numbers_file
import snippets
from charts import ARMS
from components import LAST_COUNTS, QUIET, heading, polite, released
from convergence_arms import Measured
from convergence_chart import draw_chart
from convergence_look import MOST_RUNS, Asked, Look
from page import Page

from gear_studio.errors import InputError

TITLE = "Convergence"
GUIDE = (
    "What the runs measured while they trained. Move the dashed level: the table says when each arm "
    "reaches it, and how many times sooner."
)
# Lists and the level's range follow the runs. The page may still send what it showed before, which Gradio
# would refuse; `Asked` and `Look` judge instead.
UNCHECKED: dict[str, Any] = {**LAST_COUNTS, "preprocess": False}


def build(page: Page) -> None:
    """Lay the tab out. It opens with the shipped generators' next-token loss."""
    runs = page.runs
    chosen = list(dict.fromkeys(runs.default(runs.generators, "generator", arm) for arm in ARMS))
    measured = Measured(runs)
    first = Look(measured, Asked(runs=chosen))
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            names = gr.Dropdown(
                list(measured), value=chosen, multiselect=True, max_choices=MOST_RUNS, label="Runs",
                elem_id="convergence-runs", info="type to search; those of the studies are smaller",
            )  # fmt: skip
            all_seeds = gr.Checkbox(
                True, label="with all their seeds", elem_id="convergence-seeds",
                info="runs that differ in their seed alone are one line with a band",
            )  # fmt: skip
            metric = gr.Dropdown(
                first.metrics, value=first.metric, label="Metric", elem_id="convergence-metric"
            )
            against = gr.Radio(
                ["steps", "pictures", "time"], value="steps", label="Against", elem_id="convergence-against"
            )
            logarithmic = gr.CheckboxGroup(
                ["horizontal", "vertical"], label="Logarithmic axes", elem_id="convergence-log"
            )
            smoothing = gr.Radio(
                ["none", "exponential", "rolling"], value="none", label="Smoothing",
                elem_id="convergence-smoothing",
            )  # fmt: skip
            over = gr.Slider(2, 50, 5, step=1, label="over how many measurements", elem_id="convergence-over")
        with gr.Column(scale=5, min_width=320):
            gr.HTML(
                heading("Who gets there first?", "point at a line: its run, seed, step and value"),
                padding=False,
            )
            read = gr.HTML(first.answer, elem_id="convergence-read", padding=False)
            chart = gr.Plot(draw_chart(first), show_label=False, elem_id="convergence-chart")
            with gr.Row():
                level = gr.Slider(
                    first.low, first.high, first.mark, step=first.step, label="Level",
                    info="the dashed line: when does each arm reach it?", elem_id="convergence-level",
                    scale=3, min_width=260,
                )  # fmt: skip
                arm = gr.Dropdown(
                    first.labels, value=first.pair[0], label="Speed-up of",
                    elem_id="convergence-arm", min_width=200,
                )  # fmt: skip
                control = gr.Dropdown(
                    first.labels, value=first.pair[1], label="over the control",
                    elem_id="convergence-control", min_width=200,
                )  # fmt: skip
                reset = gr.Button(
                    "Level: the control's last value", size="sm", elem_id="convergence-reset", min_width=200
                )
            table = gr.HTML(first.table, elem_id="convergence-table", padding=False)
            notes = gr.HTML(first.notes, elem_id="convergence-notes", padding=False)

    choices = [names, all_seeds, metric, against, smoothing, over, logarithmic, arm, control]
    page.remember(*choices)
    views = [read, chart, level, table, notes, metric, arm, control]

    # The names of the parameters are the app's API.
    def convergence(
        runs_shown: list[str],
        all_seeds: bool,
        metric: str | None,
        against: str,
        smoothing: str,
        over: int,
        logarithmic: list[str],
        arm: str | None,
        control: str | None,
        level: float | None = None,
    ) -> list:
        """When the arms of runs reach a level of a metric, and the speed-up of one over another."""
        with polite():
            asked = Asked.of(
                runs=runs_shown, all_seeds=all_seeds, metric=metric, against=against, smoothing=smoothing,
                over=over, logarithmic=logarithmic, arm=arm, control=control, level=level,
            )  # fmt: skip
            look = Look(Measured(runs), asked)
        return [
            look.answer,
            draw_chart(look),
            gr.Slider(minimum=look.low, maximum=look.high, step=look.step, value=look.mark),
            look.table,
            look.notes,
            gr.Dropdown(look.metrics, value=look.metric),
            gr.Dropdown(look.labels, value=look.pair[0]),
            gr.Dropdown(look.labels, value=look.pair[1]),
        ]

    def numbers(names: list[str], all_seeds: bool, metric: str | None, level: float) -> list[dict[str, Any]]:
        look = Look(Measured(runs), Asked.of(runs=names, all_seeds=all_seeds, metric=metric, level=level))
        return [
            {
                "arm": arm.label,
                "run": line.name,
                "seed": line.seed,
                "step": int(step),
                str(look.metric): value,
            }
            for arm in look.arms
            for line in arm.lines
            for step, value in zip(line.steps, line.raw, strict=True)
        ]

    def snippet(names: list[str], all_seeds: bool, metric: str | None, level: float) -> str:
        measured = Measured(runs)
        look = Look(measured, Asked.of(runs=names, all_seeds=all_seeds, metric=metric, level=level))
        if look.metric is None:
            raise InputError("Nothing is drawn that could be drawn again: choose runs that hold metrics.")
        return snippets.of_convergence(look.runs_by_arm(measured), look.metric, look.level, look.sign > 0)

    shown = [names, all_seeds, metric, level]
    snippets.lay_out(snippet, shown, "convergence")
    numbers_file.lay_out(numbers, shown, "convergence")

    def draw_others(*values: Any) -> list:
        """What the page's address asks for, where it asks for others than are drawn already."""
        there: tuple = (chosen, True, first.metric, "steps", "none", 5, [], *first.pair)
        return [gr.skip()] * len(views) if values == there else convergence(*values)

    # The first event of a name has it in the API as it stands.
    asked: dict[str, Any] = {**UNCHECKED, "api_visibility": "public", "api_name": "convergence"}
    released(level)(convergence, [*choices, level], views, **asked)
    page.draw_first(draw_others, inputs=choices, outputs=views, **UNCHECKED)
    # A level has a meaning for one metric and one control; with another the visitor starts at its last value.
    for event in (names.input, all_seeds.input, metric.input, control.input, reset.click):
        event(convergence, choices, views, **UNCHECKED)
    for event in (against.input, logarithmic.input, smoothing.input, released(over), arm.input):
        event(convergence, [*choices, level], views, **UNCHECKED)
    # Runs were opened, or have begun, since the page was made.
    page.tab.select(lambda: gr.Dropdown(list(Measured(runs))), None, names, **QUIET)
