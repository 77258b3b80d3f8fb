"""Notebooks' widgets: a figure that follows its controls, and a study that trains while one watches.

Where no widgets run (GitHub, a printed page) an `Interactive` shows as the figure of its first values.
"""

import atexit
import base64
import html
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import ipywidgets
from matplotlib.figure import Figure

from gear_studio import plots, studies
from gear_studio.files import one_line
from gear_studio.runs import Run
from gear_studio.training.recipes import BUDGETS, STAGES
from gear_studio.training.request import options_of

WATCHED = {  # what a Retrain draws of a stage's runs
    "val_psnr": "validation PSNR (dB)",
    "perplexity": "perplexity (codes)",
    "val_ntp": "validation NTP (nats/token)",
    "val_alignment": "validation alignment (-cos)",
}


class Interactive(ipywidgets.VBox):
    """The figure draw(**values), above it the controls of the values, each by the name of its argument.

    controls: ipywidgets with a `value`. `picture.value` holds the figure as PNG; an error of `draw` reaches
    whoever sets a control from Python."""

    def __init__(self, draw: Callable[..., Figure], **controls: ipywidgets.ValueWidget):
        self.draw, self.controls = draw, controls
        self.picture = _image_widget()
        self.redraw()
        for control in controls.values():
            control.observe(self.redraw, "value")
        super().__init__([ipywidgets.HBox(list(controls.values())), self.picture])

    def redraw(self, _change: dict | None = None) -> None:
        figure = self.draw(**{name: control.value for name, control in self.controls.items()})
        self.picture.value = _to_png(figure)

    def _repr_mimebundle_(self, **settings) -> dict[str, str]:
        """The widget, and for those who cannot show it the picture."""
        picture = {"image/png": base64.b64encode(self.picture.value).decode()}
        return super()._repr_mimebundle_(**settings) | picture


class Retrain(ipywidgets.VBox):
    """Trains a study as `gear-studio study` does, in a process of its own, and draws its curves as they grow.

    Nothing runs before Start. Stop ends all that runs; Start goes on from there, as every training resumes.
    The curves are of the stage that was begun last; when all is done, the study's table and figure take
    their place. out: holds a folder a budget, laid out as in `studies`. every: seconds between two redraws.
    world: what is trained on, and by which recipe (its budget is chosen in the widget); None: the embedded
    one. Raises ValueError for a study that does not exist, for a world that cannot be, and for a study that
    the world cannot have."""

    def __init__(
        self,
        study: str,
        out: Path = Path("runs"),
        every: float = 2.0,
        world: studies.World | None = None,
    ):
        self._world = world = world or studies.World()
        self.study, self.out, self.every = studies.fit_to_world(studies.study_of(study), world), out, every
        budgets = list(BUDGETS) if world.recipe == "small" else [world.budget]
        self.budget = ipywidgets.Dropdown(options=budgets, description="budget")
        self.budget.value = "smoke" if "smoke" in budgets else world.budget
        seeds = [("0", (0,)), ("0, 1, 2", studies.SEEDS)]
        self.seeds = ipywidgets.Dropdown(options=seeds, description="seeds")
        self.start = ipywidgets.Button(description="Start", icon="play")
        self.stop = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.duration, self.table = ipywidgets.HTML(), ipywidgets.Output()
        self.status, self.picture = ipywidgets.HTML("Nothing runs."), _image_widget()
        self.picture.layout.display = "none"  # until there is something to see
        self.process: subprocess.Popen | None = None
        self.lines: list[str] = []
        self.start.on_click(lambda _: self.begin())
        self.stop.on_click(lambda _: self.end())
        self.budget.observe(self._show_duration, "value")
        self._show_duration()
        atexit.register(self.end)  # a kernel that ends takes its trainings along
        controls = ipywidgets.HBox([self.budget, self.duration, self.seeds, self.start, self.stop])
        super().__init__([controls, self.status, self.table, self.picture])

    @property
    def world(self) -> studies.World:
        """The world with the budget that is chosen."""
        return replace(self._world, budget=self.budget.value)

    @property
    def folder(self) -> Path:
        return studies.folder_of(self.world, self.out)

    def begin(self) -> None:
        """Start, or go on. Does nothing while it runs."""
        if self.process and self.process.poll() is None:
            return
        command = ["study", self.study.name, *options_of(self.world)]
        command += ["--out", str(self.folder), "--seeds", *map(str, self.seeds.value)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gear_studio", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that Stop reaches its trainings too
        )
        self._set_running(True)
        self.lines, self.table.outputs = [], ()
        self.reader = threading.Thread(target=self._read_output, args=(self.process,), daemon=True)
        self.watcher = threading.Thread(target=self._watch, args=(self.process,), daemon=True)
        self.reader.start()
        self.watcher.start()

    def end(self) -> None:
        """Stop all that runs, and wait until it has stopped."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()
            self.watcher.join()

    def _set_running(self, yes: bool) -> None:
        self.start.disabled = self.budget.disabled = self.seeds.disabled = yes
        self.stop.disabled = not yes

    def _read_output(self, process: subprocess.Popen) -> None:
        for line in process.stdout or ():
            self.lines.append(line.rstrip())

    def _watch(self, process: subprocess.Popen) -> None:
        code = None
        while code is None:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(self.every)
            try:
                self._show_curves()
                self._show_status("Training")
            except (ValueError, OSError) as error:  # of a folder that someone moves or deletes
                self._show_status(f"Training; its curves cannot be read ({one_line(error)})")
        self.reader.join(self.every)
        self._set_running(False)
        ended = {0: "Finished", -signal.SIGTERM: "Stopped; Start goes on from here"}
        state, lines = ended.get(code, f"Ended with an error ({code})"), 0 if code == 0 else 12
        if code == 0:
            try:
                self._show_results()
            except OSError as error:
                state = f"Finished, but its results are gone ({one_line(error)}); Start makes what is missing"
        self._show_status(state, lines)

    def _show_status(self, state: str, count: int = 1) -> None:
        """Show the state, and below it the last `count` lines of what the process printed."""
        lines = html.escape("\n".join(self.lines[-count:])) if count else ""
        self.status.value = f"{state}." + f"<pre>{lines}</pre>" * bool(lines)

    def _show_duration(self, _change: dict | None = None) -> None:
        """Show how long the chosen budget takes."""
        embedded = self._world.embedded  # the others have not been timed
        seconds = studies.core_seconds(self.study, self.budget.value) if embedded else None
        if seconds:
            minutes = max(10, 10 * round(seconds / 2 / 600))
            duration = f"{minutes} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"
            self.duration.value = f"about {duration} of training a seed, on two cores"
        else:
            self.duration.value = (
                "minutes" if self.budget.value == "smoke" else "longer than smoke; not measured"
            )

    def _show_results(self) -> None:
        """Show the finished study as it was written: its table, and its figure in the place of the curves."""
        written = self.folder / self.study.name
        text = {"text/markdown": (written / "summary.md").read_text()}
        self.table.outputs = ({"output_type": "display_data", "data": text, "metadata": {}},)
        self.picture.value = (written / "figure.png").read_bytes()
        self.picture.layout.display = None

    def _show_curves(self) -> None:
        """Show the curves of the last stage that has any, as they are on disk. Raises ValueError or OSError
        where a run cannot be read."""
        by_stage: dict[str, dict[str, list[Run]]] = {}
        for link in [link for arm in self.study.arms for link in studies.chain_of(arm)]:
            folders = [self.folder / "runs" / f"{link.name}-s{seed}" for seed in self.seeds.value]
            runs = [Run(folder) for folder in folders if (folder / "metrics.jsonl").is_file()]
            if runs:
                by_stage.setdefault(link.stage, {})[link.name] = runs
        for stage in reversed(STAGES):
            if stage in by_stage:
                self._draw(by_stage[stage])
                break

    def _draw(self, runs: dict[str, list[Run]]) -> None:
        rows = [row for of_name in runs.values() for run in of_name for row in run.metrics]
        logged = {key: label for key, label in WATCHED.items() if any(key in row for row in rows)}
        if logged:
            self.picture.value = _to_png(plots.curves(runs, logged))
            self.picture.layout.display = None


def _image_widget() -> ipywidgets.Image:
    # As large as it was drawn, or as wide as the page: a box would stretch it.
    size = ipywidgets.Layout(align_self="flex-start", max_width="100%")
    return ipywidgets.Image(format="png", layout=size)


def _to_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
