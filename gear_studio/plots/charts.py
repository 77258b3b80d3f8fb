"""Charts, as matplotlib Figures."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from gear_studio.analysis.codes import Candidate
from gear_studio.analysis.convergence import SpeedUp
from gear_studio.analysis.convergence import speed_ups_by_level as ratios_by_level
from gear_studio.analysis.similarity import Estimate
from gear_studio.plots.maps import enlarge, mark, to_rgb
from gear_studio.plots.style import DASHES, GREYS, INK, MARKERS, OKABE_ITO, PALE, add_protocol, styled
from gear_studio.runs import Run


@styled
def convergence(runs: Mapping[str, Sequence[Run]], key: str, ylabel: str) -> Figure:
    """A validation metric against training steps. runs: label of an arm -> its Runs, one a seed. key: the
    metric. ylabel: what it is, with its unit.

    Each seed is a thin line. The bold line is their median, over the steps that all seeds have measured.
    Raises KeyError when a Run has no metric `key`."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    _draw_against_steps(axes, runs, key, ylabel)
    axes.legend(title=_legend_title(runs), handlelength=2.6)
    return figure


@styled
def curves(runs: Mapping[str, Sequence[Run]], keys: Mapping[str, str]) -> Figure:
    """`convergence` of several metrics side by side, under one legend. keys: metric -> what it is, with its
    unit. Runs that have no such metric, or not yet, are left out of its panel."""
    figure = Figure(figsize=(4.2 * len(keys), 4.2), layout="constrained")
    for axes, (key, ylabel) in zip(
        figure.subplots(1, len(keys), squeeze=False).flat, keys.items(), strict=True
    ):
        having = {
            label: [run for run in seeds if any(key in row for row in run.metrics)]
            for label, seeds in runs.items()
        }
        _draw_against_steps(axes, having, key, ylabel)
    handles = _handles_of(*figure.axes)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=_legend_columns(handles, figure),
        title=_legend_title(runs),
        handlelength=2.6,
    )
    return figure


def _handles_of(*all_axes: Axes) -> dict[str, Artist]:
    """What is drawn in the axes and has a label, by label."""
    handles: dict[str, Artist] = {}
    for axes in all_axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    return handles


def _legend_columns(labels: Collection[str], figure: Figure) -> int:
    """How many columns make a legend no wider than the figure, with rows as even as can be."""
    widest = 0.75 + 0.09 * max(map(len, labels), default=0)  # inches, with its line
    rows = math.ceil(len(labels) * widest / figure.get_figwidth())
    return math.ceil(len(labels) / max(1, rows))


def _legend_title(runs: Mapping[str, Sequence[Run]]) -> str | None:
    """Says what bold and thin lines are; None where every arm has one Run."""
    most = max(map(len, runs.values()), default=0)
    return f"bold: median of {most} seeds; thin: each seed" if most > 1 else None


def _draw_against_steps(axes: Axes, runs: Mapping[str, Sequence[Run]], key: str, ylabel: str) -> None:
    for i, (color, (label, seeds)) in enumerate(zip(OKABE_ITO, runs.items(), strict=False)):
        if not seeds:  # the next arm keeps its colour
            continue
        curves = [dict(zip(*run.series(key), strict=True)) for run in seeds]
        for curve in curves if len(curves) > 1 else []:
            axes.plot(list(curve), list(curve.values()), color=color, linewidth=0.8, alpha=0.5)
        steps = sorted(set.intersection(*map(set, curves)))
        median = [np.median([curve[step] for curve in curves]) for step in steps]
        # Where arms coincide their markers alternate, so that all are seen.
        every = max(len(runs), len(steps) // 6)
        look: dict[str, Any] = {"linestyle": DASHES[i % 4], "linewidth": 2.4, "markeredgecolor": "white"}
        look |= {"marker": MARKERS[i % 8], "markevery": (i * every // len(runs), every), "markersize": 7}
        axes.plot(steps, median, color=color, **look, label=label)
    axes.set(xlabel="training step", ylabel=ylabel)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
    if key == "val_fd":  # falls by tens, and ends in single figures that must be distinguishable
        axes.set_yscale("log")
        for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            ticks(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))


@styled
def speed_ups_by_level(runs: Mapping[str, Sequence[Run]], control: str, keys: Mapping[str, str]) -> Figure:
    """How many times fewer steps than the control each other arm needs, against the level that is reached; a
    panel a metric, better to the right.

    runs: label of an arm -> its Runs, one a seed, in the same order. control: label of an arm. keys: metric
    -> what it is, with its unit. A thin line is a seed, the bold one their median over the levels that all
    seeds have."""
    figure = Figure(figsize=(4.2 * len(keys), 4.2), layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False).flat
    for axes, (key, xlabel) in zip(panels, keys.items(), strict=True):
        for i, (label, seeds) in enumerate(runs.items()):
            pairs = [
                (a.series(key), b.series(key))
                for a, b in zip(runs[control], seeds, strict=False)
                if all(any(key in row for row in run.metrics) for run in (a, b))
            ]
            if label == control or not pairs:
                continue
            curves = [ratios_by_level(*pair) for pair in pairs]
            color, known = OKABE_ITO[i % 8], [curve for curve in curves if len(curve[0]) > 1]
            for levels, ratios in known if len(pairs) > 1 else []:
                axes.plot(levels, ratios, color=color, linewidth=0.8, alpha=0.5)
            if len(known) < len(pairs):
                continue
            worst, best = (pick(c[0][at] for c in known) for pick, at in ((min, 0), (max, -1)))
            if worst > best:
                at = np.geomspace(best, worst, 60) if best > 0 else np.linspace(best, worst, 60)
                median = np.median([np.interp(at, c[0][::-1], c[1][::-1]) for c in known], axis=0)
                look: dict[str, Any] = {"marker": MARKERS[i % 8], "markevery": 12, "markeredgecolor": "white"}
                axes.plot(
                    at, median, color=color, linestyle=DASHES[i % 4], linewidth=2.4, **look, label=label
                )
        axes.axhline(1, color=INK, linewidth=1, linestyle="--")
        axes.set(xlabel=f"level reached: {xlabel}", ylabel=f"times fewer steps than {control}")
        if key == "val_fd":
            axes.set_xscale("log")
            for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
                ticks(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.invert_xaxis()
        axes.set_ylim(bottom=0)
    handles = _handles_of(*figure.axes)
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center",
        ncols=_legend_columns(handles, figure), title=_legend_title(runs), handlelength=2.6,
    )  # fmt: skip
    return figure


@styled
def by_seed(
    rows: Sequence[Mapping],
    measures: Mapping[str, str],
    varies: str,
    reference: float | None = None,
    protocol: str = "",
) -> Figure:
    """Arms side by side: a dot a seed and a line at the median, a panel a measure, up to three panels a row.

    rows: with `arm` (in the order they are drawn), `seed` and the measures, None where not measured.
    measures: column -> what it is, with its unit. varies: what the arms are values of. reference: where a
    dashed line is drawn, such as 0 for changes. protocol: how the measures were taken, below the figure. A
    seed has the same grey and marker everywhere."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    seeds = sorted({row["seed"] for row in rows})
    width = max(3.0, 0.7 * len(arms) + 1.5)
    lines = math.ceil(len(measures) / (3 if len(arms) <= 3 else 2 if len(arms) <= 8 else 1))
    columns = math.ceil(len(measures) / lines)
    turned = 0.09 * max(map(len, arms)) > (width - 0.9) / (len(arms) + 0.2)  # inches: wider than its place
    figure = Figure(figsize=(width * columns, (4.3 if turned else 3.4) * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for empty in panels[len(measures) :]:
        figure.delaxes(empty)
    for axes, (key, label) in zip(panels, measures.items(), strict=False):
        for place, arm in enumerate(arms):
            known = {row["seed"]: row[key] for row in rows if row["arm"] == arm and row.get(key) is not None}
            if known:
                axes.hlines(np.median(list(known.values())), place - 0.3, place + 0.3, color=INK, linewidth=2)
            for seed, value in known.items():
                n = seeds.index(seed)
                x = place + 0.12 * (n - (len(seeds) - 1) / 2)
                style = {"color": GREYS[n % len(GREYS)], "marker": "osD^v"[n % 5]}
                axes.plot(x, value, linestyle="", markersize=6, **style, label=f"seed {seed}")
        if reference is not None:
            axes.axhline(reference, color=INK, linewidth=1, linestyle="--")
        ticks: dict[str, Any] = {"rotation": 35, "ha": "right"} if turned else {}
        axes.set_xticks(range(len(arms)), arms, **ticks)
        ylabel = label.replace("c_q", "c$_q$")  # tables have the plain one
        axes.set(xlabel=varies, ylabel=ylabel, xlim=(-0.6, len(arms) - 0.4))
        axes.grid(axis="x", visible=False)
    handles = _handles_of(figure.axes[0])
    if handles:
        handles["median"] = Line2D([], [], color=INK, linewidth=2)
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles))
    return add_protocol(figure, protocol)


@styled
def speed_ups(arms: Mapping[str, Mapping[str, SpeedUp]], xlabel: str) -> Figure:
    """Speed-ups over seeds, a line a measure. arms: arm -> measure -> its SpeedUp. xlabel: what is divided by
    what.

    A large mark is the median, a line its interval, small marks are the seeds; a seed whose arm never reached
    the baseline's final value is at the left end. Right of the line at 1 the arm is the faster one."""
    measures = list(dict.fromkeys(measure for of_arm in arms.values() for measure in of_arm))
    figure = Figure(figsize=(7.6, 1.2 + 0.36 * len(measures) * len(arms)), layout="constrained")
    axes = figure.subplots()
    for i, (arm, of_arm) in enumerate(arms.items()):
        color, marker = OKABE_ITO[i % 8], MARKERS[i % 8]
        for measure, each in of_arm.items():
            at = measures.index(measure) + (i - (len(arms) - 1) / 2) * 0.6 / len(arms)
            axes.hlines(at, each.low, each.high, color=color, linewidth=2)
            axes.plot(each.pairs, [at] * len(each.pairs), "|", color=color, markersize=9)
            label = arm if measure == next(iter(of_arm)) else None
            axes.plot(each.value, at, marker, color=color, markersize=8, linestyle="", label=label)
    axes.axvline(1, color=INK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(measures)), measures)
    axes.set(xlabel=xlabel, ylim=(len(measures) - 0.5, -0.5))
    axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x" if value else "never")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=len(arms), fontsize=10)
    return figure


@styled
def prompt_scores(
    panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    control: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    chance: Mapping[str, float],
    ceiling: Mapping[str, Mapping[str, float]],
) -> Figure:
    """How many samples show what their captions ask for: a dot a seed and a line at the median, arms side by
    side.

    panels: title -> arm -> attribute -> the share of samples of each seed, in %. control: the same against
    other captions, drawn hollow. chance: attribute -> the share that guessing gives, in %.
    ceiling: title -> attribute -> the share of real pictures, in %."""
    figure = Figure(figsize=(4.9 * len(panels), 4.5), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, arms) in zip(all_axes, panels.items(), strict=True):
        names = list(chance)
        for i, arm in enumerate(arms):
            look: dict[str, Any] = {"color": OKABE_ITO[i], "marker": "osD^v"[i % 5], "linestyle": ""}
            for j, name in enumerate(names):
                at = j + 0.26 * (i - (len(arms) - 1) / 2)
                for scores, face in ((control[title][arm][name], "white"), (arms[arm][name], OKABE_ITO[i])):
                    x = at + 0.06 * (np.arange(len(scores)) - (len(scores) - 1) / 2)
                    size = 4 if face == "white" else 5.5
                    axes.plot(x, scores, **look, markerfacecolor=face, markersize=size, label=arm)
                axes.hlines(np.median(arms[arm][name]), at - 0.11, at + 0.11, color=INK, linewidth=2)
        for levels, style in ((chance, "--"), (ceiling[title], ":")):
            for j, name in enumerate(names):
                axes.hlines(levels[name], j - 0.44, j + 0.44, color=INK, linewidth=1.2, linestyle=style)
        axes.set_title(title)
        axes.set_xticks(range(len(names)), names)
        axes.grid(axis="x", visible=False)
        axes.set_ylim(-2, 103)
    all_axes[0].set_ylabel("samples that show it (%)")
    handles = _handles_of(all_axes[0])
    handles["median"] = Line2D([], [], color=INK, linewidth=2)
    handles["against other captions"] = Line2D(
        [], [], marker="o", markerfacecolor="white", color=INK, linestyle=""
    )
    handles["chance"] = Line2D([], [], color=INK, linewidth=1.2, linestyle="--")
    handles["real pictures"] = Line2D([], [], color=INK, linewidth=1.2, linestyle=":")
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, fontsize=10)
    return figure


@styled
def encoded_caption(features: Tensor, words: Sequence[str], parts: Mapping[str, int]) -> Figure:
    """An encoded caption: a row a position, a column a feature.

    features: (T, dim) in [-1, 1]. words: those of the first rows; the other rows are padding. parts: what the
    features are, in their order -> how many of them."""
    figure = Figure(figsize=(8.8, 0.6 + 0.18 * len(features)), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(features.numpy(), cmap="cividis", aspect="auto", vmin=-1, vmax=1)
    axes.set_yticks(range(len(features)), [*words, *["(padding)"] * (len(features) - len(words))])
    axes.tick_params(length=0, labelsize=9)
    axes.grid(False)
    edges = np.cumsum([0, *parts.values()])
    axes.set_xticks((edges[:-1] + edges[1:] - 1) / 2, list(parts))
    for edge in edges[1:-1]:
        axes.axvline(edge - 0.5, color="white", linewidth=3)
    figure.colorbar(shown, ax=axes, label="value", pad=0.01, ticks=[-1, 0, 1])
    return figure


@styled
def attention_mask(seen: Tensor, words: Sequence[str], positions: int) -> Figure:
    """Which positions of [caption, tokens] may look at which.

    seen: bool (L, L), row by row what a position sees. words: the caption's. positions: how many the caption
    has; those without a word are padding. The last of them predicts the first token, each token the next."""
    length, sees = len(seen), seen.numpy()
    names = [*words, *["padding"] * (positions - len(words))]
    tokens = [f"token {i}" for i in range(1, length - positions + 2)]
    row, column = np.ogrid[:length, :length]
    kinds = {
        "words at words": (row < len(words), OKABE_ITO[0]),
        "padding at words and itself": ((row >= len(words)) & (row < positions), "#9aa5b1"),
        "tokens at words": ((row >= positions) & (column < positions), OKABE_ITO[1]),
        "tokens at tokens": ((row >= positions) & (column >= positions), OKABE_ITO[2]),
    }
    pixels = np.ones((length, length, 3))
    for where, color in kinds.values():
        pixels[where & sees] = matplotlib.colors.to_rgb(color)
    figure = Figure(figsize=(5.6, 5.8), layout="constrained")
    axes = figure.subplots()
    axes.imshow(pixels)
    rows = [*names[:-1], *(f"{a} → {b}" for a, b in zip([names[-1], *tokens], tokens, strict=False))]
    axes.set_yticks(range(length), rows)
    axes.set_xticks(range(length), [*names, *tokens[:-1]], rotation=90)
    axes.tick_params(length=0, labelsize=9)
    axes.set(ylabel="position that looks → what it predicts", xlabel="position that is looked at")
    axes.grid(False)
    for line in np.arange(length + 1) - 0.5:
        axes.axhline(line, color=PALE, linewidth=0.6)
        axes.axvline(line, color=PALE, linewidth=0.6)
    handles = [Patch(color=color, label=name) for name, (_, color) in kinds.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=10)
    return figure


@styled
def estimate_panels(
    panels: Mapping[str, Mapping[str, Mapping[int, Estimate]]],
    protocol: str = "",
    tap: int | None = None,
    xlabel: str = "generator block",
    names: Mapping[int, str] | None = None,
    logarithmic: bool = False,
) -> Figure:
    """Measures against the generator's block, two panels a row. Panels with the same curves share a legend.

    panels: label of the vertical axis -> label of the curve -> block, or any whole number -> its Estimate.
    A band is the confidence interval; a dotted line of the same colour is the chance level, where the
    Estimates have it. Where values of both signs are shown, a line marks zero.

    protocol: how the features were taken, below the figure. tap: the block that was aligned. names: number ->
    what to write on the horizontal axis in its place. logarithmic: whether the horizontal axis is."""
    rows, columns = math.ceil(len(panels) / 2), min(2, len(panels))
    figure = Figure(figsize=(4.9 * columns, 3.3 * rows + 0.7), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in all_axes[len(panels) :]:
        axes.axis("off")
    for axes, (ylabel, curves) in zip(all_axes, panels.items(), strict=False):
        axes.set_xscale("log" if logarithmic else "linear")
        _draw_estimates(axes, curves, tap, names or {})
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if axes.get_ylim()[0] < 0 < axes.get_ylim()[1]:
            axes.axhline(0, color=INK, linewidth=1, zorder=1)
    drawn = all_axes[: len(panels)]
    if len({tuple(curves) for curves in panels.values()}) > 1:
        for axes in drawn:
            axes.legend(handles=_estimate_handles([axes]), fontsize=10)
    else:
        handles = _estimate_handles(list(drawn))
        figure.legend(handles=handles, loc="outside upper center", ncols=min(5, len(handles)), fontsize=10)
    return add_protocol(figure, protocol)


def _draw_estimates(
    axes: Axes,
    curves: Mapping[str, Mapping[int, Estimate]],
    tap: int | None = None,
    names: Mapping[int, str] | None = None,
) -> None:
    """Curves with their bands, and the chance levels dotted."""
    for (label, blocks), color, marker in zip(curves.items(), OKABE_ITO, MARKERS, strict=False):
        at = sorted(blocks)
        estimates = [blocks[block] for block in at]
        axes.fill_between(
            at, [e.low for e in estimates], [e.high for e in estimates], color=color, alpha=0.2, linewidth=0
        )
        axes.plot(at, [e.value for e in estimates], marker=marker, color=color, linewidth=2, label=label)
        chance = [e.null.mean for e in estimates if e.null]
        if len(chance) == len(at):
            axes.plot(at, chance, color=color, linewidth=1.2, linestyle=":")
    if tap is not None:
        axes.axvline(tap, color=INK, linewidth=1, linestyle="--", zorder=0)
        above: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axes.annotate("tap", (tap, 1), (0, 3), ha="center", **above)
    ticks = sorted({block for blocks in curves.values() for block in blocks})
    axes.set_xticks(ticks, [(names or {}).get(tick, str(tick)) for tick in ticks])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)


def _estimate_handles(all_axes: Sequence[Axes]) -> list[Artist]:
    """One entry of the legend for each label, and one for chance where it is shown."""
    handles = list(_handles_of(*all_axes).values())
    if any(line.get_linestyle() == ":" for axes in all_axes for line in axes.lines):
        handles.append(Line2D([], [], color=INK, linewidth=1.2, linestyle=":", label="chance"))
    return handles


@styled
def interval_bars(
    values: Mapping[str, Mapping[str, tuple[float, float, float]]],
    ylabel: str,
    chance: Mapping[str, float] | None = None,
    protocol: str = "",
) -> Figure:
    """Bars with their intervals, such as accuracies of probes. values: model -> task -> (value, low, high),
    with NaN for low and high where there is no interval.

    Tasks stand side by side, in the first model's order; a model without a task has no bar there. chance:
    task -> the value of guessing, drawn as a dashed line. protocol: how the values were taken, below the
    figure."""
    tasks = list(next(iter(values.values())))
    figure = Figure(figsize=(max(4.8, 1.3 + 0.5 * len(values) * len(tasks)), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(values)
    hatches = ("", "//", "..", "xx", "\\\\", "--", "oo", "++")  # bars differ in black and white too
    for i, (model, of_task) in enumerate(values.items()):
        at = [j + (i - (len(values) - 1) / 2) * width for j, task in enumerate(tasks) if task in of_task]
        value, low, high = np.array([of_task[task] for task in tasks if task in of_task]).T
        look: dict[str, Any] = {"color": OKABE_ITO[i % 8], "hatch": hatches[i % 8], "edgecolor": "white"}
        reach = np.clip([value - low, high - value], 0, None)
        axes.bar(at, value, width * 0.92, yerr=reach, ecolor=INK, capsize=3, label=model, **look)
    guesses = [(j, (chance or {})[task]) for j, task in enumerate(tasks) if task in (chance or {})]
    if guesses:
        middle, guess = np.array(guesses).T
        axes.hlines(
            guess, middle - 0.45, middle + 0.45, color=INK, linestyle="--", linewidth=1, label="chance"
        )
    axes.set_xticks(range(len(tasks)), tasks)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(ylabel)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return add_protocol(figure, protocol)


@styled
def layouts(
    layouts: Mapping[str, np.ndarray], groups: Sequence[int], names: Sequence[str], protocol: str = ""
) -> Figure:
    """Rows of features laid out in two dimensions, coloured by group, a panel a layout. Axes mean nothing.

    layouts: title -> (n, 2). groups: (n,), each row's group as its number in `names`. protocol: how the
    features were taken, below the figure."""
    figure = Figure(figsize=(3.4 * len(layouts), 3.9), layout="constrained")
    group = np.asarray(groups)
    for axes, (title, places) in zip(
        figure.subplots(1, len(layouts), squeeze=False)[0], layouts.items(), strict=True
    ):
        for i, (name, marker) in enumerate(zip(names, MARKERS, strict=False)):
            look: dict[str, Any] = {
                "s": 11,
                "marker": marker,
                "color": OKABE_ITO[i],
                "linewidths": 0,
                "alpha": 0.85,
            }
            axes.scatter(*places[group == i].T, **look, label=name)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set(visible=True, color=PALE)
        axes.set_title(title, fontsize=10)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(names), fontsize=10, markerscale=1.8)
    return add_protocol(figure, protocol)


@styled
def token_codes(
    image: Tensor,
    token: int,
    candidates: Sequence[Candidate],
    grid: int,
    formula: str,
    tau: float | None = None,
) -> Figure:
    """One token of a picture and its best codes: their scores and, with a tau, their weights in both
    read-outs.

    image: (3, H, W) in [-1, 1]. grid: its side in tokens. candidates: best first, as `top_codes` returns them
    for this tau. formula: of the scores, as the quantizer has it."""
    figure = Figure(figsize=(9.8 if tau else 6.8, 3.7), layout="constrained")
    axes = figure.subplots(1, 3 if tau else 2, width_ratios=[1.25, 1.3, 1.6][: 3 if tau else 2])
    axes[0].imshow(mark(enlarge(to_rgb(image)), token, grid))
    axes[0].axis("off")
    axes[0].set_anchor("N")
    axes[0].set_title(f"token {token}")
    places = np.arange(len(candidates))
    axes[1].barh(places, [each.score for each in candidates], color=OKABE_ITO[0])
    axes[1].set_title("its best codes")
    axes[1].set(xlabel=f"score A$_k$ = {formula}", ylabel="code k")
    if tau:
        axes[2].set_title(f"weights at τ = {tau:g}")
        for shift, kind, color in ((-0.21, "hard", OKABE_ITO[1]), (0.21, "soft", OKABE_ITO[0])):
            weights = [getattr(each, kind) for each in candidates]
            axes[2].barh(places + shift, weights, height=0.4, color=color, label=kind)
        rest = 1 - sum(each.soft for each in candidates)
        axes[2].set(xlabel=f"weight (soft on all others: {rest:.2f})", xlim=(0, 1))
        axes[2].legend(loc="lower right")
    for each in axes[1:]:
        each.set_yticks(places, [str(candidate.code) for candidate in candidates])
        each.invert_yaxis()
        each.grid(axis="y", visible=False)
    return figure


@styled
def against_tau(
    taus: Sequence[float],
    panels: Mapping[str, Mapping[str, Sequence[float] | float]],
    columns: int = 2,
    logarithmic: Sequence[str] = (),
    marked: float = 0.1,
    protocol: str = "",
) -> Figure:
    """Measures against the temperature. panels: label of the vertical axis -> name of the line -> its values,
    one a temperature, or a single value for a level that has no temperature.

    columns: panels a row. logarithmic: the panels with a logarithmic vertical axis. marked: the temperature
    to point out. protocol: how the measures were taken, below the figure."""
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.9 * columns if columns > 1 else 6.4, 3.5 * rows), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in all_axes[len(panels) :]:
        axes.axis("off")
    for axes, (ylabel, lines) in zip(all_axes, panels.items(), strict=False):
        for i, ((name, values), color) in enumerate(zip(lines.items(), OKABE_ITO, strict=False)):
            if isinstance(values, float | int):
                axes.axhline(values, color=color, linewidth=1.6, linestyle="--", label=name)
            else:
                # A later one lies on top, and is smaller, so that both are seen where they coincide.
                look: dict[str, Any] = {"linestyle": DASHES[i % 4], "marker": MARKERS[i % 8]}
                axes.plot(
                    taus, values, color=color, linewidth=2, markersize=max(4, 7 - 3 * i), label=name, **look
                )
        axes.axvline(marked, color=INK, linewidth=1, linestyle=":", label=f"τ = {marked:g} (paper)")
        axes.set_xscale("log")
        axes.set_yscale("log" if ylabel in logarithmic else "linear")
        axes.set(xlabel="temperature τ", ylabel=ylabel)
        axes.xaxis.set_major_formatter("{x:g}")
    handles: dict[str, Artist] = {}
    for axes in all_axes:
        for line in axes.get_lines():  # of lines with one label the first, in the order they were drawn
            handles.setdefault(str(line.get_label()), line)
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), fontsize=10
    )
    return add_protocol(figure, protocol)


@styled
def gradient_matrix(
    arms: Mapping[str, Mapping[tuple[str, str], Mapping[str, float]]], modules: Sequence[str]
) -> Figure:
    """How large a gradient each loss sends into each module: a panel an arm, a row a loss, a column a module.

    arms: arm -> (update, loss) -> module -> norm of the loss's gradient there; a module that is left out gets
    none. modules: the columns. Losses of one update follow each other; a line is drawn where the next update
    begins."""
    counts = [len(losses) for losses in arms.values()]
    size = (3.2 + 0.74 * len(modules), 1.5 + sum(0.3 * count + 0.4 for count in counts))
    figure = Figure(figsize=size, layout="constrained")
    all_axes = figure.subplots(len(arms), 1, squeeze=False, sharex=True, height_ratios=counts)[:, 0]
    norms = [norm for losses in arms.values() for row in losses.values() for norm in row.values()]
    scale = matplotlib.colors.LogNorm(min(norms), max(norms))
    for axes, (arm, losses) in zip(all_axes, arms.items(), strict=True):
        table = np.array([[row.get(module, np.nan) for module in modules] for row in losses.values()])
        image = axes.imshow(table, cmap="viridis", norm=scale, aspect="auto")
        for (row, column), norm in np.ndenumerate(table):
            if np.isfinite(norm):
                ink = INK if scale(norm) > 0.55 else "white"
                axes.text(column, row, f"{norm:.2g}", ha="center", va="center", color=ink, fontsize=9)
        keys = list(losses)
        axes.set_yticks(range(len(keys)), [loss for _, loss in keys])
        axes.set_xticks(range(len(modules)), modules)
        axes.tick_params(length=0)
        axes.tick_params(axis="x", labelsize=9)
        axes.set_title(arm)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        edges = [i for i in range(1, len(keys)) if keys[i][0] != keys[i - 1][0]]
        for edge in edges:
            axes.axhline(edge - 0.5, color=INK, linewidth=1)
        for start, end in zip([0, *edges], [*edges, len(keys)], strict=True):
            where = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 10}
            axes.text(1.01, (start + end - 1) / 2, keys[start][0], **where)
        for line in np.arange(len(modules) - 1) + 0.5:
            axes.axvline(line, color=PALE, linewidth=0.6)
    figure.colorbar(
        image,
        ax=all_axes,
        location="bottom",
        shrink=0.6,
        aspect=35,
        label="norm of the gradient (blank: none)",
    )
    return figure
