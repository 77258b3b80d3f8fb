"""Charts that Gradio's page draws (Vega-Lite): what those of several tabs have in common."""

import itertools
import json
from typing import Any

from gradio.components.plot import PlotData

from gear_studio.plots.style import DASHES, INK, OKABE_ITO, PALE

ARMS = ("baseline", "continued", "gear")  # their colours are those of every chart


def frame(description: str, height: int) -> dict[str, Any]:
    """A chart in Vega-Lite's grammar without its layers. description: what it shows, for those who cannot
    see it. height: in pixels; it is as wide as its place in the page."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "description": description,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        "background": "white",
        "padding": 10,
        "usermeta": {"embedOptions": {"actions": {"export": True, "source": False, "compiled": False,
                                                  "editor": False}}},
        "config": {
            "font": "system-ui, sans-serif",
            "view": {"stroke": None},
            "axis": {"labelColor": INK, "titleColor": INK, "gridColor": PALE, "domainColor": INK,
                     "tickColor": INK, "tickCount": 7,
                     "labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": 500},
            "legend": {"labelColor": INK, "labelFontSize": 12, "symbolStrokeWidth": 3,
                       "symbolType": "stroke", "symbolOpacity": 1},
        },
    }  # fmt: skip


def to_plot(drawing: dict[str, Any]) -> PlotData:
    """A chart in Vega-Lite's grammar, for gr.Plot."""
    return PlotData(type="altair", plot=json.dumps(drawing))


def choose_looks(arms: list[str]) -> list[tuple[str, tuple[float, ...]]]:
    """A colour and a dash for each of what is drawn. arms: the arms of their Runs; those of ARMS look alike
    in every chart, whatever stands beside them."""
    numbers: list[int | None] = []
    for arm in arms:
        number = ARMS.index(arm) if arm in ARMS else None
        numbers.append(None if number in numbers else number)
    free = itertools.count(len(ARMS))
    chosen = [next(free) if number is None else number for number in numbers]
    looks = []
    for number in chosen:
        dash: Any = DASHES[(number + number // len(OKABE_ITO)) % len(DASHES)]
        pixels = (1.0, 0.0) if dash == "-" else tuple(2.6 * part for part in dash[1])
        looks.append((OKABE_ITO[number % len(OKABE_ITO)], pixels))
    return looks
