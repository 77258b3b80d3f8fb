"""An evaluation as a text to read: what stands behind its figures, and a table of them."""

from numbers import Real
from typing import Any

_ABOUT = ("samples", "samples_asked", "generated", "cfg_scale", "size")


def describe_evaluation(name: str, result: dict[str, Any]) -> str:
    """What `fidelity.evaluate` returned of a run: how many pictures it is of, a warning where these are
    fewer than were asked for, and a line for every figure, with the spread over sampling seeds."""
    lines = [_describe_pictures(name, result)]
    if asked := result.get("samples_asked"):
        lines.append(
            f"warning: {asked:,} pictures were asked for, and there are {result['samples']:,}; distances of "
            "few pictures are too large and compare with those of as many only"
        )
    figures = list(_figures(result))
    width = max((len(label) for label, _ in figures), default=0)
    return "\n".join([*lines, *(f"  {label:{width}}  {figure}" for label, figure in figures)])


def _describe_pictures(name: str, result: dict[str, Any]) -> str:
    said = f"{name}: {result['samples']:,} held-out pictures"
    if "generated" in result:
        seeds = next((len(v["values"]) for v in result.values() if isinstance(v, dict) and "values" in v), 1)
        said += f"; {result['generated']:,} samples a seed, {seeds} seed{'s' if seeds > 1 else ''}, against "
        said += result["reference"]
        said += f", *_guided at guidance {result['cfg_scale']:g}" if result["cfg_scale"] != 1 else ""
    return said


def _figures(result: dict[str, Any], within: str = "") -> Any:
    """(label, figure) of every number and spread, those of groups under the group's name."""
    for name, value in result.items():
        label = f"{within}{name}"
        if name in _ABOUT and not within:
            continue
        if isinstance(value, dict) and "mean" in value:
            spread = f" ± {value['std']:.3g}" if value.get("std") is not None else ""
            yield label, f"{value['mean']:.4g}{spread}"
        elif isinstance(value, dict) and name != "likeness":
            yield from _figures(value, f"{label} ")
        elif isinstance(value, Real) and not isinstance(value, bool):
            yield label, f"{value:.4g}"
