"""Many pictures on one sheet."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from gear_studio.plots.maps import colored, enlarge, mark, to_rgb
from gear_studio.plots.style import INK, PENDING, add_protocol, name_row, styled, text_font


@styled
def captioned_pictures(images: Tensor, captions: Sequence[Sequence[str]]) -> Figure:
    """A row for each picture: the picture and at its right its captions, a line each. images: (n, 3, H, W) in
    [-1, 1]. captions: those of each picture."""
    figure = Figure(figsize=(8.8, 1.45 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), 2, squeeze=False, width_ratios=[1, 5.4])
    for (left, right), picture, lines in zip(grid, to_rgb(images), captions, strict=True):
        left.imshow(picture)
        right.text(0, 0.5, "\n".join(lines), va="center", linespacing=1.6, fontsize=10)
        left.axis("off")
        right.axis("off")
    return figure


@styled
def sample_grid(
    images: Tensor,
    columns: int,
    titles: Sequence[str] | None = None,
    row_names: Sequence[str] = (),
    protocol: str = "",
) -> Figure:
    """Pictures in rows. images: (n, 3, H, W) in [-1, 1]. columns: pictures a row. titles: one above each
    picture, from the first on. row_names: one at the left of each row. protocol: how the pictures were made,
    below the figure."""
    count = len(images)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(1.4 * columns, (1.65 if titles else 1.4) * rows), layout="constrained")
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if i < count:
            axes.imshow(to_rgb(images[i]))
            if titles and i < len(titles):
                axes.set_title(titles[i], fontsize=9, fontweight="normal", loc="center")
        if i % columns == 0 and i // columns < len(row_names):
            name_row(axes, row_names[i // columns])
    return add_protocol(figure, protocol)


@styled
def picture_row(pictures: Sequence[np.ndarray | Image.Image], titles: Sequence[str]) -> Figure:
    """Square pictures side by side, each under its title; more than four are put in several rows."""
    rows = math.ceil(len(pictures) / 4)
    columns = math.ceil(len(pictures) / rows)
    figure = Figure(figsize=(3.1 * columns, 3.4 * rows), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in all_axes:
        axes.axis("off")
    for axes, picture, title in zip(all_axes[: len(pictures)], pictures, titles, strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title)
    return figure


def patch_gallery(crops: Tensor, columns: int = 6, side: int = 96, gap: int = 8) -> Image.Image:
    """Patches in their surroundings, `columns` a row. crops: uint8 (m, 3, s, s), as `codes.gallery` returns;
    the patch is the middle third, and is framed. side, gap: pixels of a crop, and between two."""
    rows = math.ceil(len(crops) / columns)
    sheet = Image.new("RGB", (columns * (side + gap) - gap, rows * (side + gap) - gap), "white")
    for i, crop in enumerate(crops):
        tile = mark(enlarge(crop.permute(1, 2, 0).numpy(), side), token=4, grid=3)
        sheet.paste(tile, (i % columns * (side + gap), i // columns * (side + gap)))
    return sheet


def sample_sheet(images: Tensor, log_probs: Tensor, entropy: Tensor, done: int, codes: int) -> Image.Image:
    """Pictures being sampled, each above its maps of log-probability and entropy. Rows of tokens that are
    still to come are grey.

    images: (B, 3, H, W) in [-1, 1]. log_probs, entropy: (B, N) in nats, of which [:, :done] is known.
    codes: K, which sets both colour scales: log-probability -ln K..0, entropy 0..ln K."""
    count, tokens = log_probs.shape
    grid, columns = math.isqrt(tokens), math.ceil(math.sqrt(count))
    # Many pictures are drawn small: a page is only so wide, and a large sheet takes longer to pack than to
    # sample.
    side, size = {1: (512, 22), 2: (384, 22), 3: (288, 17)}.get(columns, (168, 12))
    known, gap, caption = done // grid / grid, 12, 2 * size
    half = (side - gap) // 2
    height = side + 6 + half + caption
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * (side + gap) - gap, rows * (height + gap) - gap), "white")
    draw, font = ImageDraw.Draw(sheet), text_font(size)
    limit = math.log(codes)
    for i, pixels in enumerate(to_rgb(images)):
        maps = [pixels]
        for values, low, high, cmap in (
            (log_probs, -limit, 0, "magma"),
            (entropy, 0, limit, "viridis"),
        ):
            maps.append(colored(values[i], low, high, cmap).reshape(grid, grid, 3))
        left, top = i % columns * (side + gap), i // columns * (height + gap)
        places = [
            (left, top, side),
            (left, top + side + 6, half),
            (left + half + gap, top + side + 6, half),
        ]
        for part, (x, y, width) in zip(maps, places, strict=True):
            part[round(known * len(part)) :] = PENDING
            sheet.paste(enlarge(part, width), (x, y))
        means = [float(values[i, :done].mean()) for values in (log_probs, entropy)]
        for x, name, mean in zip((left, left + half + gap), ("log p", "H"), means, strict=True):
            draw.text(
                (x, top + height - caption + 5), f"{name} {mean:.2f}".replace("-", "−"), fill=INK, font=font
            )
    return sheet


def attention_sheet(images: Tensor, maps: Tensor, high: float) -> Image.Image:
    """Pictures, each with its map of attention at its right, in as many columns as `sample_sheet` has.

    images: (B, 3, H, W) in [-1, 1]. maps: (B, N), shares of attention. high: the upper end of the colour
    scale, which begins at 0."""
    count, tokens = maps.shape
    grid, columns, gap = math.isqrt(tokens), math.ceil(math.sqrt(count)), 12
    side = {1: 256, 2: 192, 3: 144}.get(columns, 120)
    width, rows = 2 * side + 4, math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (side + gap) - gap), "white")
    colors = colored(maps, 0, high, "cividis").reshape(count, grid, grid, 3)
    for i, (pixels, shares) in enumerate(zip(to_rgb(images), colors, strict=True)):
        left, top = i % columns * (width + gap), i // columns * (side + gap)
        sheet.paste(enlarge(pixels, side), (left, top))
        sheet.paste(enlarge(shares, side), (left + side + 4, top))
    return sheet
