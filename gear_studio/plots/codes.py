"""Charts of a codebook: how often its codes are used, where they lie, and one of them pointed out."""

from collections.abc import Callable
from typing import cast

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from gear_studio.plots.style import INK, OKABE_ITO, in_style, styled

Pointing = Callable[[int], list[Artist]]  # draws what points out a code, where that is in the chart


def _usage(counts: Tensor) -> tuple[Figure, Pointing]:
    counts = counts.cpu().double()
    share = (counts / counts.sum() * len(counts)).numpy()
    order = np.argsort(-share)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(np.arange(1, len(share) + 1), share[order], step="mid", color=OKABE_ITO[0], alpha=0.85)
    axes.axhline(1, color=INK, linewidth=1, linestyle="--")
    axes.annotate("all codes alike", (len(share), 1), (0, 3), textcoords="offset points", ha="right")
    axes.set(xlabel="codes, most used first", ylabel="use, times the average (1/K)")
    axes.set_xlim(0, len(share) + 1)
    axes.set_ylim(0)

    def point_out(code: int) -> list[Artist]:
        rank = int(np.flatnonzero(order == code)[0]) + 1
        side = "left" if rank < 0.7 * len(share) else "right"
        dots = axes.plot([rank], [share[code]], "o", color=OKABE_ITO[1], markersize=8, clip_on=False)
        said = axes.annotate(
            f"code {code}",
            (rank, share[code]),
            (8 if side == "left" else -8, 8),
            textcoords="offset points",
            ha=side,
            color=OKABE_ITO[1],
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1},
        )
        return [*dots, said]

    return figure, point_out


@styled
def usage_histogram(counts: Tensor) -> Figure:
    """How often each code is used, most used first. counts: (K,), tokens of each code."""
    return _usage(counts)[0]


def _map(layout: np.ndarray, counts: Tensor, colors: Tensor, method: str) -> tuple[Figure, Pointing]:
    figure = Figure(figsize=(9.2, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = np.isfinite(layout[:, 0])
    uses, total = counts.cpu().numpy(), len(layout)
    points = left.scatter(
        *layout[shown].T, c=uses[shown], s=14, cmap="viridis", norm=matplotlib.colors.LogNorm()
    )
    figure.colorbar(points, ax=left, label="tokens in the survey (log scale)")
    which = "all codes" if shown.all() else f"{shown.sum():,} used codes of {total:,}"
    left.set_title(f"{method} of {which}: usage")
    right.scatter(
        *layout[shown].T, c=colors.cpu().numpy()[shown], s=16, edgecolors="#7b8794", linewidths=0.25
    )
    right.set_title("mean colour of their patches")
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.set_aspect("equal", adjustable="datalim")

    def point_out(code: int) -> list[Artist]:
        drawn: list[Artist] = []
        for axes in (left, right) if shown[code] else ():
            limits = axes.get_xlim(), axes.get_ylim()  # a ring at the rim must not widen them
            ring = axes.scatter(
                *layout[code][:, None], s=130, facecolors="none", edgecolors=OKABE_ITO[1], linewidths=2.2
            )
            said = axes.annotate(
                f"code {code}",
                layout[code],
                (9, 7),
                textcoords="offset points",
                color=OKABE_ITO[1],
                fontweight="bold",
                bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
            )
            axes.set(xlim=limits[0], ylim=limits[1])
            drawn += [ring, said]
        return drawn

    return figure, point_out


@styled
def code_map(layout: np.ndarray, counts: Tensor, colors: Tensor, method: str) -> Figure:
    """The used codes laid out in two dimensions, once coloured by usage and once by mean colour.

    layout: (K, 2), NaN for codes that are not laid out. counts: (K,), tokens of each code. colors: (K, 3) in
    [0, 1]. method: what made the layout, for the title."""
    return _map(layout, counts, colors, method)[0]


class PointedOut:
    """A chart of codes that is drawn once, and a code that is pointed out in it as often as wanted, in a
    twentieth of the time."""

    def __init__(self, figure: Figure, point_out: Pointing):
        self._point_out, self._canvas = point_out, FigureCanvasAgg(figure)
        self._canvas.draw()
        figure.set_layout_engine("none")  # all stays where it is
        self._plain = self._canvas.copy_from_bbox(figure.bbox)

    @classmethod
    def usage(cls, counts: Tensor) -> "PointedOut":
        """As `usage_histogram`."""
        with in_style():
            return cls(*_usage(counts))

    @classmethod
    def map(cls, layout: np.ndarray, counts: Tensor, colors: Tensor, method: str) -> "PointedOut":
        """As `code_map`, in which a code that is not laid out is not pointed out."""
        with in_style():
            return cls(*_map(layout, counts, colors, method))

    def draw(self, code: int) -> Image.Image:
        """The chart with a code pointed out."""
        with in_style():
            self._canvas.restore_region(self._plain)
            for artist in self._point_out(code):
                cast(Axes, artist.axes).draw_artist(artist)
                artist.remove()
            return Image.fromarray(np.array(self._canvas.buffer_rgba())[..., :3])
