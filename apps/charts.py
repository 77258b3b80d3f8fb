"""Charts in Vega-Lite, which Gradio's page draws: what all of them share."""

import json
from typing import Any

from gradio.components.plot import PlotData

from gear_studio.plots.style import INK, PALE


def frame(said: str, layers: list[dict[str, Any]], height: int) -> dict[str, Any]:
    """A chart of layers in Vega-Lite's grammar, as wide as its place. said: for who cannot see it."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "description": said,
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
        "layer": layers,
    }  # fmt: skip


def as_plot(chart: dict[str, Any]) -> PlotData:
    """A chart as gr.Plot takes it."""
    return PlotData(type="altair", plot=json.dumps(chart))
