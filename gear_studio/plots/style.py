"""The house style of every figure."""

import textwrap
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import ImageFont

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS, DASHES = "osD^vPX*", ("-", (0, (6, 1.5)), (0, (2.5, 1)), (0, (6, 1, 1.5, 1)))  # of arms
GREYS = ("#1f1f1f", "#666666", "#9c9c9c")  # of seeds
INK, PALE, PENDING = "#1f2933", "#d5dae0", 128  # text; grid lines; grey of what is not decoded yet
STYLE = {
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
    "axes.prop_cycle": matplotlib.cycler(color=OKABE_ITO),
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.dpi": 144,
    "figure.facecolor": "white",
}
_style = threading.Lock()  # matplotlib's settings are the process's, not the thread's


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run a figure's function in the house style."""

    @wraps(draw)
    def inside(*args, **settings) -> Figure:
        with _style, matplotlib.rc_context(STYLE):
            return draw(*args, **settings)

    return inside


def name_row(axes: Axes, name: str) -> None:
    where = {"transform": axes.transAxes, "rotation": 90, "va": "center", "ha": "right"}
    axes.text(-0.06, 0.5, name, **where)


def with_protocol(figure: Figure, protocol: str) -> Figure:
    """How the features were taken, small, under the figure."""
    if protocol:
        width = int(figure.get_figwidth() * 17)
        figure.supxlabel(textwrap.fill(protocol, width), x=0.01, ha="left", fontsize=8, color=INK)
    return figure


def text_font(size: float) -> ImageFont.FreeTypeFont:
    """The charts' typeface, for text in pictures; size in pixels."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
