"""report.html: one file with everything in it, without scripts, for a screen, a phone and paper.

Every text that comes from outside passes `html.escape`.
"""

import base64
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from gear_studio import plots
from gear_studio.files import atomic
from gear_studio.inspection.measuring import Measured, Seen, class_name
from gear_studio.plots.style import INK, OKABE_ITO, PALE
from gear_studio.studies import paper

MINUS, ARROW, NONE = "\N{MINUS SIGN}", "\N{RIGHTWARDS ARROW}", "\N{EN DASH}"
TAU = "\N{GREEK SMALL LETTER TAU}"
LISTED = 256  # pictures in the page's table; pictures.csv has them all

# A measure of a picture -> what it is, its unit, decimals.
MEASURES = {
    "psnr": ("PSNR", "dB", 2),
    "ssim": ("SSIM", "", 3),
    "lpips": ("LPIPS (VGG-16)", "", 3),
    "class_kept": ("class kept by the reconstruction", "share of pictures", 2),
    "entropy": ("entropy of softmax(A)", "nats", 3),
    "entropy_tau": (f"entropy of softmax(A / {TAU})", "nats", 3),
    "effective_size": ("effective size of softmax(A)", "codes", 1),
    "effective_size_tau": (f"effective size of softmax(A / {TAU})", "codes", 1),
} | {
    f"mass_{k}{suffix}": (f"top-{k} mass of {of}", "share", 4)
    for suffix, of in (("", "softmax(A)"), ("_tau", f"softmax(A / {TAU})"))
    for k in (1, 10, 100)
}
NAMES = {"z": "z", "c_q": "c<sub>q</sub>"}

STYLE = f"""
:root {{ color: {INK}; background: white; font: 15px/1.5 "DejaVu Sans", Verdana, sans-serif; }}
body {{ max-width: 1180px; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: .4rem 0; }}
h2 {{ font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-bottom: 2px solid {OKABE_ITO[0]}; }}
h3 {{ font-size: 1rem; margin: 1.4rem 0 .3rem; }}
p, ul {{ max-width: 75ch; margin: .5rem 0; }}
a {{ color: {OKABE_ITO[0]}; }}
code {{ font: .85em "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }}
.small, figcaption {{ font-size: .78rem; line-height: 1.35; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .7rem .25rem 0; border-bottom: 1px solid {PALE}; }}
th, td {{ text-align: right; vertical-align: top; }}
th:first-child, td:first-child, .text {{ text-align: left; }}
td:first-child {{ min-width: 8em; }}
th {{ vertical-align: bottom; }}
td span {{ white-space: nowrap; }}
thead {{ border-bottom: 2px solid {INK}; }}
.paper {{ color: #7a3300; }}
.card {{ break-inside: avoid; border-bottom: 1px solid {PALE}; padding-bottom: .6rem; }}
.row {{ display: grid; grid-template-columns: repeat(7, 1fr); gap: .5rem; margin: .3rem 0; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 1rem; }}
figure {{ margin: 0; break-inside: avoid; }}
figure img {{ width: 100%; display: block; }}
.cells {{ image-rendering: pixelated; }}
.who {{ font-weight: bold; font-size: .85rem; margin-top: .5rem; }}
.scale {{ max-width: 22rem; font-size: .78rem; }}
.scale .bar {{ height: .8rem; print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
.scale .ticks {{ display: flex; justify-content: space-between; }}
@media (max-width: 700px) {{ .row {{ grid-template-columns: repeat(3, 1fr); }} body {{ padding: .6rem; }} }}
@media print {{ body {{ max-width: none; padding: 0; font-size: 10px; }} .wide {{ overflow: visible; }}
  table {{ font-size: 8px; }} tr {{ break-inside: avoid; }} }}
"""


def write_page(measured: Measured) -> Path:
    """Write report.html into `asked.out`. Returns its path."""
    names = list(measured.seen)
    title = f"Inspection of {_join(names)}"
    sections = [
        f"<h1>{escape(title)}</h1>",
        _introduction(measured),
        "<h2>Measures</h2>",
        _measures(measured),
        "<h2>Likeness with the teacher</h2>",
        _likeness(measured),
    ]
    if measured.differences:
        sections += ["<h2>Differences over the same pictures</h2>", _differences(measured)]
    sections += ["<h2>Pictures</h2>", _pictures(measured)]
    sections += ["<h2>Use of the codes</h2>", _usage(measured)]
    sections += ["<h2>Picture by picture</h2>", _by_picture(measured)]
    sections += ["<h2>How this was made</h2>", _origin(measured)]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )
    path = measured.asked.out / "report.html"
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


# Words, numbers, tables


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _number(value: float | None, digits: int, sign: bool = False) -> str:
    if value is None:
        return NONE
    text = f"{value:{'+z' if sign else 'z'},.{digits}f}"
    if sign and not float(text.replace(",", "")):
        text = text.removeprefix("+")
    return text.replace("-", MINUS)


def _with_interval(found: dict, digits: int, sign: bool = False) -> str:
    """A value and its interval in brackets, as HTML."""
    text = f"<span>{_number(found['value'], digits, sign)}</span>"
    if found.get("low") is not None:
        ends = ", ".join(_number(found[end], digits, sign) for end in ("low", "high"))
        text += f" <span>[{ends}]</span>"
    return text


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = ()) -> str:
    """HTML of cells that are HTML."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="text"' if i in text_columns else "" for i in range(len(cells))]
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    head = f"<thead><tr>{line('th', header)}</tr></thead>"
    body = "".join(f"<tr>{line('td', row)}</tr>\n" for row in rows)
    return f'<div class="wide"><table>{head}\n<tbody>{body}</tbody></table></div>'


def _paper(pairs: dict[str, tuple[float, float]], digits: int) -> str:
    return (
        '<span class="paper">'
        + "<br>".join(
            f"<span>{name} {before:.{digits}f} {ARROW} {after:.{digits}f}</span>"
            for name, (before, after) in pairs.items()
        )
        + "</span>"
    )


def _paper_of(measure: str, digits: int) -> str:
    return _paper({name: of[measure] for name, of in paper.TOKENIZERS.items()}, digits)


# Sections


def _introduction(measured: Measured) -> str:
    record, count = measured.record, len(measured.pictures)
    passed = record["pictures"]["passed_over"]
    what = f"{count} picture{'s' if count != 1 else ''} ({escape(record['pictures']['source'])})"
    teacher = f"{escape(record['teacher']['name'])} ({escape(record['teacher']['note'].rstrip('.'))})"
    lines = [f"{what}, the middle squares, at each tokenizer's own size. Teacher f(x): {teacher}."]
    if passed:
        lines.append(
            f"{len(passed)} damaged file{'s were' if len(passed) > 1 else ' was'} passed over: "
            f"{escape(', '.join(passed[:5]))}{', ...' if len(passed) > 5 else ''}."
        )
    rows = []
    for name, seen in measured.seen.items():
        grid, size = math.isqrt(seen.tokens), seen.subject.tokenizer.image_size
        kind = str(seen.subject.description["kind"])
        rows.append([escape(name), escape(kind), f"{size} px", f"{grid} x {grid}", f"{len(seen.counts):,}"])
    table = _table(["tokenizer", "kind", "pictures", "tokens", "codes"], rows, (1,))
    return "".join(f"<p>{line}</p>" for line in lines) + table


def _measures(measured: Measured) -> str:
    seen = measured.seen.values()
    columns = [escape(name) for name in measured.seen]
    shown = [name for name in MEASURES if any(name in each.numbers for each in seen)]
    of_paper = {"psnr": _paper_of("psnr", 2), "ssim": _paper_of("ssim", 2)}
    rows = []

    def add(label: str, unit: str, cell: Callable[[Seen], str], published: str = "") -> None:
        rows.append([label, unit, *map(cell, seen), published])

    def with_spread(name: str, digits: int) -> Callable[[Seen], str]:
        def cell(each: Seen) -> str:
            found = each.summary["measures"].get(name, {"mean": None, "std": None})
            text = _number(found["mean"], digits)
            if name == "class_kept" and name in each.numbers:
                return f"{text} <span>({int(each.numbers[name].sum())} of {len(each.numbers[name])})</span>"
            return text if found["std"] is None else f"<span>{text} ± {_number(found['std'], digits)}</span>"

        return cell

    def codebook(name: str, digits: int, scale: float = 1) -> Callable[[Seen], str]:
        return lambda each: _number(scale * each.summary["codebook"][name], digits)

    for name in (each for each in shown if each in ("psnr", "ssim", "lpips")):
        label, unit, digits = MEASURES[name]
        add(label, unit, with_spread(name, digits), of_paper.get(name, ""))
    if any("rfid" in each.summary for each in seen):
        label = f"rFID, {len(measured.pictures)} pictures"
        add(label, "", lambda each: _number(each.summary.get("rfid"), 3), _paper_of("rfid", 3))
    for name in (each for each in shown if each == "class_kept"):
        label, unit, digits = MEASURES[name]
        add(label, unit, with_spread(name, digits))
    add("codes used", "%", codebook("usage", 1, 100))
    add("&nbsp; at most possible with so many tokens", "%", codebook("usage_at_most", 1, 100))
    add("perplexity of the codes", "codes", codebook("perplexity", 1))
    for name in (each for each in shown if each.startswith(("entropy", "effective", "mass"))):
        label, unit, digits = MEASURES[name]
        add(label, unit, with_spread(name, digits))
    published = f'<span class="paper">paper (ImageNet 256 px, warm-up {ARROW} GEAR)</span>'
    note = (
        f"± is the standard deviation over pictures; {TAU} = {measured.asked.tau:g}. "
        "The paper's figures are of its own tokenizers on ImageNet at 256 px: other pictures, so nothing to "
        "be subtracted."
    )
    if any("rfid" in each.summary for each in seen):
        note += " A Frechet distance of few pictures is biased upwards: compare rFID only at the same count."
    if "class_kept" in shown:
        note += " Class kept: EfficientNet-Lite0 sees the same class of ImageNet as in the picture."
    return f'{_table(["measure", "unit", *columns, published], rows, (1,))}<p class="small">{note}</p>'


def _likeness(measured: Measured) -> str:
    rows, reasons = [], []
    for level in ("patch", "image"):
        for kind, symbol in NAMES.items():
            for name in ("cka", "cknna"):
                cells = []
                for label, seen in measured.seen.items():
                    found = seen.summary["likeness"][level][kind][name]
                    text = _with_interval(found, 3)
                    if found["chance"]:
                        text += f'<br><span class="small">chance {_number(found["chance"]["mean"], 3)}</span>'
                    cells.append(text)
                    if "why" in found:
                        why = re.split(r" \(ties|; ", found["why"])[0]
                        reasons.append(f"{name.upper()} of {kind}, {level} level, {label}: {why}")
                published = _paper({"VQ": paper.CKA[kind]}, 4) if (level, name) == ("patch", "cka") else ""
                rows.append([f"{name.upper()} of {symbol} with f(x), {level} level", *cells, published])
    published = f'<span class="paper">paper (with DINOv2-B, warm-up {ARROW} GEAR)</span>'
    table = _table(["measure", *map(escape, measured.seen), published], rows)
    notes = f'<p class="small">{escape(measured.record["protocol"])}.</p>'
    if reasons:
        listed = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
        notes += f'<p class="small">{NONE} or no interval, because:</p><ul class="small">{listed}</ul>'
    return table + notes


def _differences(measured: Measured) -> str:
    first = next(iter(measured.seen))
    others = list(measured.differences)
    rows = []
    for name, (label, unit, digits) in MEASURES.items():
        found = [measured.differences[other]["measures"].get(name) for other in others]
        if any(found):
            rows.append(
                [label, unit, *(_with_interval(each, digits, True) if each else NONE for each in found)]
            )
    for level in ("patch", "image"):
        for kind, symbol in NAMES.items():
            of_level = [measured.differences[other]["likeness"].get(level) for other in others]
            if any(of_level):
                cells = [_with_interval(each[kind]["cka"], 3, True) if each else NONE for each in of_level]
                rows.append([f"CKA of {symbol} with f(x), {level} level", "", *cells])
    header = ["measure", "unit", *(f"{escape(other)} {MINUS} {escape(first)}" for other in others)]
    note = (
        "Each picture's value of the one less its value of the other, averaged, with an interval of 95 % "
        "(bootstrap over pictures; of CKA from halves of the pictures). An interval that holds 0 shows no "
        "difference. Codes used, perplexity and rFID are figures of all pictures together: no such interval."
    )
    return f'{_table(header, rows, (1,))}<p class="small">{note}</p>'


def _inline(picture: Image.Image | np.ndarray, description: str, kind: str = "") -> str:
    """A picture as an <img> that holds it as PNG."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return _img(file.getvalue(), description, kind)


def _img(png: bytes, description: str, kind: str = "") -> str:
    encoded = base64.b64encode(png).decode()
    css = f' class="{kind}"' if kind else ""
    return f'<img{css} alt="{escape(description)}" src="data:image/png;base64,{encoded}">'


def _chart(figure: Figure, description: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return _img(file.getvalue(), description)


def _figure(img: str, caption: str) -> str:
    return f"<figure>{img}<figcaption>{caption}</figcaption></figure>"


def _pictures(measured: Measured) -> str:
    pictures, tau, shown = measured.pictures, measured.asked.tau, measured.shown
    text = (
        "<p>By tokenizer: the picture at its size; its reconstruction; its indices, each cell in the mean "
        "colour of its code over all pictures; the entropy of each token; and the first three principal "
        "components of f(x), z and c<sub>q</sub> as colours, which say what is alike "
        "within a map, not between maps.</p>"
    )
    if len(shown) < len(pictures):
        text += f'<p class="small">{len(shown)} of {len(pictures)} pictures, evenly spread.</p>'
    values = np.concatenate(
        [maps["entropy_map"] for seen in measured.seen.values() for maps in seen.shown.values()]
    )
    ends = float(values.min()), float(values.max())
    most = max(len(seen.counts) for seen in measured.seen.values())
    label = f"entropy of softmax(A / {TAU}) in nats, {TAU} = {tau:g}; at most ln K = {math.log(most):.1f}"
    text += plots.legend(label, *ends)
    return text + "".join(_card(measured, number, *ends) for number in shown)


def _card(measured: Measured, number: int, low: float, high: float) -> str:
    name = measured.pictures.names[number]
    rows = []
    for label, seen in measured.seen.items():
        maps, grid = seen.shown[number], math.isqrt(seen.tokens)
        size = seen.subject.tokenizer.image_size
        original = measured.pictures.read(number, size).permute(1, 2, 0).numpy()
        was = became = ""
        if seen.classes is not None and seen.sureness is not None:
            first, second = map(int, seen.classes[number])
            was = f"<br>seen: {escape(class_name(first))} ({100 * seen.sureness[number][0]:.0f} %)"
            became = f"<br>seen: {escape(class_name(second))}"
        quality = (
            f"{_number(_finite(seen.numbers['psnr'][number]), 1)} dB, SSIM {seen.numbers['ssim'][number]:.2f}"
        )
        indices = torch.from_numpy(maps["indices"])
        entropy = torch.from_numpy(maps["entropy_map"])
        figures = [
            _figure(_inline(original, name), f"picture{was}"),
            _figure(
                _inline(np.moveaxis(maps["reconstruction"], 0, -1), f"{name} by {label}"),
                f"reconstruction<br>{quality}{became}",
            ),
            _figure(
                _inline(
                    plots.index_map(indices, seen.colors, max(256, 36 * grid)).quantize(64),
                    f"indices of {label}",
                ),
                f"indices<br>{len(indices.unique())} codes",
            ),
            _figure(
                _inline(plots.heat_map(entropy, low, high, side=grid), f"entropy by {label}", "cells"),
                f"entropy<br>{_number(float(entropy.mean()), 2)} nats",
            ),
        ]
        for kind, symbol in {"f": "f(x)", **NAMES}.items():
            cells = (maps[f"{kind}_pca"] * 255).round().astype(np.uint8).reshape(grid, grid, 3)
            figures.append(_figure(_inline(cells, f"PCA of {kind} by {label}", "cells"), f"PCA of {symbol}"))
        rows.append(f'<div class="who">{escape(label)}</div><div class="row">{"".join(figures)}</div>')
    return f'<div class="card"><h3>{escape(name)}</h3>{"".join(rows)}</div>'


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _usage(measured: Measured) -> str:
    charts = []
    for name, seen in measured.seen.items():
        chart = _chart(plots.usage_histogram(seen.counts), f"use of the codes of {name}")
        used = int((seen.counts > 0).sum())
        total = int(seen.counts.sum())
        caption = f"<b>{escape(name)}</b>: {used:,} of {len(seen.counts):,} codes used by {total:,} tokens"
        charts.append(_figure(chart, caption))
    return f'<div class="charts">{"".join(charts)}</div>'


def _by_picture(measured: Measured) -> str:
    wanted = ("psnr", "ssim", "lpips", "entropy_tau")
    columns = [name for name in wanted if any(name in each.numbers for each in measured.seen.values())]
    several = len(measured.seen) > 1
    classes = next(iter(measured.seen.values())).classes is not None
    header = ["picture"]
    for name in columns:
        label, unit, _ = MEASURES[name]
        unit = f" ({unit})" if unit else ""
        header += [f"{label}{unit}" + (f"<br>{escape(each)}" if several else "") for each in measured.seen]
    if classes:
        header += [
            "seen in the picture",
            *(f"in the reconstruction<br>{escape(each)}" for each in measured.seen),
        ]
    rows = []
    for number, picture in enumerate(measured.pictures.names[:LISTED]):
        row = [escape(picture)]
        for name in columns:
            row += [
                _number(_finite(seen.numbers[name][number]), MEASURES[name][2])
                for seen in measured.seen.values()
            ]
        for i, seen in enumerate(measured.seen.values()):
            if seen.classes is not None and seen.sureness is not None:
                was, became = map(int, seen.classes[number])
                if i == 0:
                    row.append(f"{escape(class_name(was))} ({100 * seen.sureness[number][0]:.0f} %)")
                row.append("the same" if was == became else escape(class_name(became)))
        rows.append(row)
    text = tuple(range(1 + len(columns) * len(measured.seen), len(header)))
    more = len(measured.pictures) - LISTED
    rest = f" The other {more:,} are there." if more > 0 else ""
    note = f'<p class="small">All measures of every picture: pictures.csv, beside this page.{rest}</p>'
    return _table(header, rows, text) + note


def _origin(measured: Measured) -> str:
    record = measured.record
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    credits = f"Photographs: {measured.pictures.credits}. " if measured.pictures.credits else ""
    how = (
        f"{credits}{versions}; {record['device']}; {record['seconds']:.0f} s, without what was kept from "
        f"before; seed {measured.asked.seed}. The same numbers: report.json and pictures.csv, beside it."
    )
    return f'<p><code>{escape(record["command"])}</code></p><p class="small">{escape(how)}</p>'
