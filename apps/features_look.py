"""What the tab Features says of a Run's features, from the tokenizer to the last block: of one picture, and
measured over many."""

import base64
import html
import io
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch.nn.functional as F
from background import Background, Grown, PatchMap
from charts import as_plot, choose_looks, frame
from components import Place, div, heading, token_at
from gradio.components.plot import PlotData
from PIL import Image
from teacher_look import TeacherLook
from torch import Tensor

from gear_studio import plots
from gear_studio.analysis.codes import crop_patches
from gear_studio.analysis.features import pca_rgb
from gear_studio.analysis.similarity import Estimate
from gear_studio.looking.by_block import HIGH, MORAN, SIMILARITIES, ByBlock
from gear_studio.looking.pictures import SourcePictures
from gear_studio.looking.view import View
from gear_studio.plots.style import INK

TOLD = {  # measure -> what it asks
    "CKNNA": "with the teacher: are the same patches near?",
    "CKA": "with the teacher: are pairs of patches as alike?",
    MORAN: "are neighbouring patches alike?",
    HIGH: "does the map change from patch to patch?",
}
PROBED = "can it be read off a patch, or a picture, linearly?"
THUMB = 128  # pixels a side of the picture in the strip
AT_TAP = "h at the tap"
LAYERS = {"f(x)": "teacher", "z": "tokenizer.z", "c_q": "tokenizer.c_q"}  # and AT_TAP, of a Run's own block
MAP, DOT = 600, 5  # side of the map of patches and radius of its points, in its own units
SPRITE, COLUMNS = 32, 46  # pixels of a thumbnail, and how many are in a row
SHOWN = 12  # pictures with chosen patches


def symbol(place: str) -> str:
    """The symbol of the features at a place that is named as in `features.extract`."""
    part, _, detail = place.partition(".")
    return {"teacher": "f(x)", "tokenizer": detail, "generator": f"h{detail}"}[part]


class Look(TeacherLook):
    """One picture through a Run and a teacher, and what the background has measured over others.

    asked: the teacher. pictures: over which is measured. layer: whose patches are laid out, of LAYERS, or
    AT_TAP. place: in the picture, of the framed patch."""

    def __init__(
        self,
        view: View,
        name: str,
        asked: str,
        pictures: SourcePictures,
        layer: str,
        place: Place,
        background: Background,
    ):
        super().__init__(view, name, asked, background)
        self.patch = token_at(place, view.grid)
        self.pictures = pictures
        self.measuring: Future[ByBlock] | None = None  # begun when the teacher is there, or cannot be had
        self.grown: Grown[ByBlock] | None = None
        if self.coming.done():
            what = name, pictures, self.asked, self.teacher
            self.measuring, self.grown = background.by_block(*what), background.by_block_so_far(*what)
        self.layer = LAYERS.get(layer, "tokenizer.z")
        if layer == AT_TAP and self.has_generator:
            self.layer = f"generator.{view.run.generator.config.tap}"
        self.mapping: Future[PatchMap] | None = None  # begun when the measures are there
        if self.found and self.found.patches and self.layer in self.found.patches.features:
            self.mapping = background.patch_map(name, pictures, self.asked, self.teacher, self.layer)

    @property
    def measured(self) -> bool:
        """Whether measuring has ended, well or not."""
        return self.measuring is not None and self.measuring.done()

    @property
    def found(self) -> ByBlock | None:
        """The measures, as far as they are."""
        if self.measuring is not None and self.measured:
            return None if self.measuring.exception() else self.measuring.result()
        return self.grown.found if self.grown else None

    @property
    def news(self) -> tuple:
        """What changes when there is more to see of the measures."""
        return self.coming.done(), self.measured, self.found.count if self.found else 0

    @property
    def progress(self) -> str:
        """How far the measures are."""
        if self.measuring is None:
            return f"{self.lack}; then it is measured"
        if self.measured and self.measuring.exception():
            return f"cannot be measured: {self.measuring.exception()}"
        if self.found is None or self.grown is None and not self.measured:
            return f"pictures of {self.pictures.name} are being read"
        said = f"measured over {self.found.count:,} pictures of {self.pictures.name}"
        if self.measured or self.grown is None:
            return said
        read = f"{self.grown.count} of {self.grown.total} pictures of {self.pictures.name} have been read"
        if self.found.count:
            return f"{said} so far; {read}"
        return f"{read}, about {self.grown.seconds_left:.0f} s left; then they are measured"

    @property
    def is_mapped(self) -> bool:
        """Whether the map of patches has ended, well or not."""
        return self.measured if self.mapping is None else self.mapping.done()

    @property
    def map_news(self) -> tuple:
        """What changes when there is more to see of the map."""
        return self.layer, self.mapping is None, self.is_mapped

    @property
    def patch_map(self) -> PatchMap | None:
        """None while it is being made, and where it cannot be."""
        if self.mapping is None or not self.mapping.done() or self.mapping.exception():
            return None
        return self.mapping.result()

    @property
    def map_said(self) -> str:
        """What is laid out, or what is missing."""
        shown, found = symbol(self.layer), self.found
        if not self.measured or found is None or found.patches is None:
            return "there is no map" if self.measured else "the map of patches comes after the measures"
        if self.mapping is None:
            return self.lack
        if not self.mapping.done():
            return f"{len(found.patches):,} patches are being laid out by their {shown}, for some seconds"
        if self.mapping.exception():
            return f"the map cannot be made: {self.mapping.exception()}"
        return (
            f"{len(found.patches):,} patches of {len(found.patches.images)} pictures of {self.pictures.name} "
            f"by their {shown} in {self.name} (cosine), each in its mean colour"
        )

    # One picture

    def strip(self, tokenizer: bool = True, generator: bool = True) -> str:
        """The picture and the PCA of its features at every place, as HTML. tokenizer, generator: whether
        theirs are drawn already, else their cells are empty."""
        view = self.view
        cells = [self._cell("x", "the picture", plots.to_rgb(view.image[0]))]
        teacher = None
        if self.teacher is not None:
            teacher = pca_rgb(view.teacher_features(self.asked, self.teacher))
        cells.append(self._map("f(x)", "the teacher", teacher, self.lack))
        cells.append(self._map("z", "encoder", pca_rgb(view.z) if tokenizer else None))
        cells.append(self._map("c_q", "code vector", pca_rgb(view.c_q) if tokenizer else None))
        if self.has_generator:
            config = view.run.generator.config
            colors = view.block_colors() if generator else itertools.repeat(None)
            for block, color in zip(range(1, config.blocks + 1), colors, strict=False):
                note = f"block {block}, the tap" if block == config.tap else f"block {block}"
                cells.append(self._map(f"h{block}", note, color))
        return f'<div class="cells">{"".join(cells)}</div>'

    def _map(self, title: str, note: str, colors: Tensor | None, lack: str = "computing …") -> str:
        if colors is None:
            return self._cell(title, note, None, lack)
        pixels = (colors * 255).round().byte().cpu().numpy()
        return self._cell(title, note, pixels.reshape(self.view.grid, self.view.grid, 3))

    def _cell(self, title: str, note: str, pixels: np.ndarray | None, lack: str = "") -> str:
        return draw_cell(title, note, pixels, self.view.grid, [self.patch], lack)


def draw_cell(
    title: str, note: str, pixels: np.ndarray | None, grid: int, framed: Sequence[int], lack: str = ""
) -> str:
    """A square with patches framed and two lines above it, as HTML. pixels: uint8 (H, W, 3); None where there
    are none, then `lack` says why."""
    shown, side = div("lack", lack), 100 / grid
    if pixels is not None:
        shown = f'<img src="{data_url(pixels)}" alt="{html.escape(f"{title}, {note}")}" draggable="false">'
        for row, column in (divmod(token, grid) for token in framed):
            shown += (
                f'<i style="left:{column * side:.3f}%;top:{row * side:.3f}%;width:{side:.3f}%;'
                f'height:{side:.3f}%"></i>'
            )
    return (
        f'<figure><figcaption><b>{html.escape(title)}</b> <span class="note">{html.escape(note)}</span>'
        f'</figcaption><div class="patches">{shown}</div></figure>'
    )


def data_url(pixels: np.ndarray) -> str:
    """A picture, uint8 (H, W, 3), inside a page; at most THUMB pixels a side."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMB, THUMB))
    return _to_url(picture, "PNG")


def _to_url(picture: Image.Image, kind: str, **settings: Any) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


# Patches of many pictures


@lru_cache(16)  # it is the same for all visitors, and takes some tenths of a second
def draw_map(laid: PatchMap) -> str:
    """The layout as HTML: a point for each patch in its mean colour, and the thumbnails to show at it."""
    patches = laid.patches
    crops = crop_patches(patches.images, patches.picture, patches.token, patches.grid)
    size = crops.shape[-1] // 3
    middle = crops[:, :, size : 2 * size, size : 2 * size].float().mean((2, 3)).round().int().tolist()
    low, high = laid.layout.min(0), laid.layout.max(0)
    places = (laid.layout - low) / np.maximum(high - low, 1e-9) * (MAP - 4 * DOT) + 2 * DOT
    points = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{DOT}" fill="rgb({red},{green},{blue})"/>'
        for (x, y), (red, green, blue) in zip(places, middle, strict=True)
    )
    said = f"UMAP of {len(patches)} patches; each point is a patch in its mean colour"
    return (
        f'<div class="patch-map" data-columns="{COLUMNS}"><svg viewBox="0 0 {MAP} {MAP}" role="img" '
        f'aria-label="{said}">{points}<path class="lasso"/></svg>'
        f'<div class="tip" style="background-image:url({_thumbnails(crops)});'
        f'background-size:{COLUMNS * 100}% auto"></div></div>'
    )


def _thumbnails(crops: Tensor) -> str:
    """All patches, uint8 (m, 3, s, s), as one picture inside a page, COLUMNS in a row."""
    small = F.interpolate(crops.float(), (SPRITE, SPRITE), mode="area").round().byte()
    rows = -(-len(small) // COLUMNS)
    filled = F.pad(small, (0, 0, 0, 0, 0, 0, 0, rows * COLUMNS - len(small)))
    sheet = filled.unflatten(0, (rows, COLUMNS)).permute(0, 3, 1, 4, 2).reshape(rows * SPRITE, -1, 3)
    return _to_url(Image.fromarray(sheet.numpy()), "JPEG", quality=85)


def draw_chosen(laid: PatchMap, chosen: Iterable[int]) -> str:
    """Patches of a map framed in their pictures, those with most first, as HTML. chosen: numbers of patches;
    others than there are count as none."""
    patches = laid.patches
    kept = sorted({number for number in chosen if 0 <= number < len(patches)})
    of_picture: dict[int, list[int]] = defaultdict(list)
    for number in kept:
        of_picture[int(patches.picture[number])].append(int(patches.token[number]))
    said = "1 patch" if len(kept) == 1 else f"{len(kept):,} patches of {len(of_picture)} pictures"
    if len(of_picture) > SHOWN:
        said += f"; the {SHOWN} with most of them are shown"
    cells = ""
    for picture, tokens in sorted(of_picture.items(), key=lambda item: -len(item[1]))[:SHOWN]:
        pixels = patches.images[picture].movedim(0, -1).numpy()
        many = "1 patch" if len(tokens) == 1 else f"{len(tokens)} patches"
        cells += draw_cell(f"picture {patches.numbers[picture]}", many, pixels, patches.grid, tokens)
    return heading("Chosen", said) + f'<div class="cells">{cells}</div>'


# Measures


@dataclass(frozen=True)
class Line:
    """What was measured of one Run. tap: None without a generator."""

    name: str
    color: str
    tap: int | None
    found: ByBlock

    def rows(self, measure: str) -> list[dict[str, Any]]:
        """A row for each place that has a value, the teacher's included."""
        places = self.found.values.get(measure, {})
        return [
            {
                "run": self.name, "at": symbol(place), "value": each.value, "low": each.low,
                "high": each.high, "chance": each.null.mean if each.null else None,
                "pictures": self.found.count,
            }
            for place, each in places.items()
            if isinstance(each, Estimate)
        ]  # fmt: skip


class Measures:
    """The measures of the Runs looked at, side by side."""

    def __init__(self, looks: Sequence[Look]):
        self.looks = looks
        colors = choose_looks([look.view.run.config["arm"] for look in looks])
        self.lines = [
            Line(
                look.name,
                color,
                look.view.run.generator.config.tap if look.has_generator else None,
                look.found,
            )
            for look, (color, _) in zip(looks, colors, strict=True)
            if look.found and look.found.count
        ]
        self.colors = [color for color, _ in colors]

    @property
    def names(self) -> list[str]:
        """Of all measures, in the order in which they are shown."""
        names = dict.fromkeys(name for line in self.lines for name in line.found.values)
        order = [*SIMILARITIES, MORAN, HIGH]
        return sorted(names, key=lambda name: order.index(name) if name in order else len(order))

    @property
    def said(self) -> str:
        """Which colour is which Run, and how far its measures are, as HTML."""
        return "".join(
            f'<div class="note key"><i class="swatch" style="background:{color}"></i>'
            f"{html.escape(f'{look.name}: {look.progress}')}</div>"
            for look, color in zip(self.looks, self.colors, strict=True)
        )

    @property
    def protocol(self) -> str:
        """How it was measured, and what could not be, as HTML."""
        said = [
            "Bars are 95 % intervals over pictures, of probes from one half to the other. Dotted: chance, "
            "as of shuffled patches or of guessing. Dashed: the teacher's own features. Moran's I and the "
            "high-frequency ratio are our definitions of what the paper names."
        ]
        for line in self.lines:
            said.append(f"{line.name}: {line.found.protocol}.")
            reasons: dict[str, list[str]] = {}
            for measure, places in line.found.values.items():
                for place, value in places.items():
                    if isinstance(value, str):
                        reasons.setdefault(value, []).append(f"{measure} of {symbol(place)}")
            said += [f"{line.name}, no {', '.join(where)}: {why}" for why, where in reasons.items()]
        said += [
            f"{look.name}, no likeness: {look.lack}"
            for look in self.looks
            if look.coming.done() and look.teacher is None
        ]
        return "".join(div("note", each) for each in said) if self.lines else ""

    def chart(self, measure: str) -> PlotData:
        return as_plot(self.drawing(measure))

    def drawing(self, measure: str) -> dict[str, Any]:
        """A measure at every place in Vega-Lite's grammar."""
        asks = TOLD.get(measure, PROBED)
        known = {line.name: line.rows(measure) for line in self.lines}
        rows = [row for of_run in known.values() for row in of_run]
        blocks = {row["at"] for row in rows if row["at"].startswith("h")}
        order = ["z", "c_q", *sorted(blocks, key=lambda at: int(at[1:]))]
        scale = {"domain": list(known), "range": [line.color for line in self.lines]}
        color = {"field": "run", "type": "nominal", "scale": scale, "legend": None}
        labels = {"labelAngle": 0, "labelOverlap": True, "title": None, "grid": False}
        x = {"field": "at", "type": "nominal", "sort": order, "scale": {"domain": order}, "axis": labels}
        y = {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False},
             "axis": {"tickCount": 4}}  # fmt: skip
        shared = {"x": x, "y": y, "color": color}
        chance = {**shared, "y": {**y, "field": "chance"}}
        interval = {**shared, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
        told = [
            {"field": "run", "type": "nominal"},
            {"field": "at", "type": "nominal", "title": "features"},
            *({"field": name, "type": "quantitative", "format": ".3f"}
              for name in ("value", "low", "high", "chance")),
            {"field": "pictures", "type": "quantitative"},
        ]  # fmt: skip
        ink, layers = {"type": "text", "color": INK}, []
        for number, line in enumerate(self.lines):
            beside = {"xOffset": 8 * number - 4 * (len(self.lines) - 1)}  # two runs do not hide each other
            teacher = [row for row in known[line.name] if row["at"] == "f(x)"]
            places = sorted(
                (row for row in known[line.name] if row["at"] != "f(x)"),
                key=lambda row: order.index(row["at"]),
            )
            tap = [{"run": line.name, "at": f"h{line.tap}"}] if line.tap else []
            last = places[-1:] if number == 0 else []
            layers += [
                (tap, {"type": "rule", "opacity": 0.45, "strokeDash": [2, 2]}, {"x": x, "color": color}),
                (tap, {**ink, "dy": 6, "dx": 3, "align": "left"},
                 {"x": x, "y": {"value": 0}, "text": {"value": "tap"}}),
                (places, {"type": "line", "strokeWidth": 1.3, "strokeDash": [1, 3]}, chance),
                (last, {**ink, "dy": -6, "dx": 14, "align": "right"},
                 {"x": x, "y": chance["y"], "text": {"value": "chance"}}),
                (teacher, {"type": "rule", "strokeWidth": 1.5, "strokeDash": [7, 4]},
                 {"y": y, "color": color}),
                ([row for row in places if row["at"] in blocks],
                 {"type": "line", "strokeWidth": 2.2, **beside}, shared),
                (places, {"type": "rule", "strokeWidth": 1.6, **beside}, interval),
                (places, {"type": "point", "filled": True, "size": 60, "opacity": 1, **beside},
                 {**shared, "tooltip": told}),
            ]  # fmt: skip
        values = "; ".join(f"{row['run']}, {row['at']} {row['value']:.3f}" for row in rows)
        drawn = [
            {"data": {"values": shown}, "mark": mark, "encoding": encoding}
            for shown, mark, encoding in layers
            if shown
        ]
        return frame(f"{measure}: {asks} {values}", drawn, 220) | {
            "title": {"text": measure[0].upper() + measure[1:], "subtitle": asks, "anchor": "start",
                      "color": INK, "fontSize": 13, "subtitleColor": INK, "subtitleFontSize": 12},
        }  # fmt: skip
