"""The style that all figures share: colours, typeface, settings, names of rows and the line below."""

import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import ImageFont

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS, DASHES = "osD^vPX*", ("-", (0, (6, 1.5)), (0, (2.5, 1)), (0, (6, 1, 1.5, 1)))  # of arms
GREYS = ("#1f1f1f", "#666666", "#9c9c9c")  # of seeds
INK, PALE, PENDING = "#1f2933", "#d5dae0", 128  # text; grid lines; grey of what is not decoded yet
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=OKABE_ITO),
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.dpi": 144,
    "figure.facecolor": "white",
}
_style = threading.Lock()  # matplotlib has one set of settings a process, not one a thread


@contextmanager
def in_style() -> Iterator[None]:
    """Around drawing: in the house style."""
    with _style, matplotlib.rc_context(STYLE):
        yield


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorate a function that draws a figure: it then draws in the house style."""

    @wraps(draw)
    def inside(*args, **settings) -> Figure:
        with in_style():
            return draw(*args, **settings)

    return inside


def name_row(axes: Axes, name: str) -> None:
    """Write the name of a row of pictures at the left of its first one, turned by 90 degrees."""
    axes.text(-0.06, 0.5, name, transform=axes.transAxes, rotation=90, va="center", ha="right")


def add_protocol(figure: Figure, protocol: str) -> Figure:
    """Write how the figure's values were taken below it, small; nothing for an empty protocol."""
    if protocol:
        width = int(figure.get_figwidth() * 17)
        figure.supxlabel(textwrap.fill(protocol, width), x=0.01, ha="left", fontsize=8, color=INK)
    return figure


def text_font(size: float) -> ImageFont.FreeTypeFont:
    """The charts' typeface, for text in pictures; size in pixels."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
