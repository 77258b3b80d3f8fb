"""Token and patch maps: a picture of one cell a token, and the picture's pixels beside it."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw
from torch import Tensor

from gear_studio.data.images import to_uint8
from gear_studio.plots.style import INK, add_protocol, name_row, styled, text_font


@styled
def map_grid(
    images: Tensor,
    maps: Mapping[str, Tensor],
    quantity: str = "",
    limits: tuple[float, float] | None = None,
    cmap: str = "viridis",
    protocol: str = "",
    patch: int | None = None,
    row_names: Sequence[str] = (),
) -> Figure:
    """A row for each picture: the picture, then its token map by each model.

    images: (B, 3, H, W) in [-1, 1]. maps: model -> colours (B, N, 3) in [0, 1], such as `features.pca_rgb` of
    each picture, or numbers (B, N), such as `features.similarity`. All numbers share one colour scale:
    quantity is its label, with its unit, limits its ends (by default those of the numbers). protocol: how the
    features were taken, below the figure. patch: one to frame in every map. row_names: one at the left of
    each row."""
    numbers = [values for values in maps.values() if values.ndim == 2]
    low, high = limits or (0.0, 1.0)
    if limits is None and numbers:
        low, high = min(v.min().item() for v in numbers), max(v.max().item() for v in numbers)
    figure = Figure(
        figsize=(1.5 * (1 + len(maps)) + bool(numbers), 1.55 * len(images) + 0.5), layout="constrained"
    )
    grid = figure.subplots(len(images), 1 + len(maps), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for row, picture in enumerate(to_rgb(images)):
        shown = {"picture": picture}
        for model, values in maps.items():
            cells = values[row].detach().float().cpu()
            colors = (
                colored(cells, low, high, cmap) if cells.ndim == 1 else (cells * 255).round().byte().numpy()
            )
            shown[model] = np.asarray(grid_map(colors, picture.shape[0]))
        for axes, (title, pixels) in zip(grid[row], shown.items(), strict=True):
            axes.imshow(pixels, interpolation="nearest")
            if patch is not None:
                side = math.isqrt(values.shape[1])
                cell = len(pixels) / side
                corner = patch % side * cell - 0.5, patch // side * cell - 0.5
                for color, width in (("black", 3), ("#ffd400", 1.5)):
                    axes.add_patch(
                        Rectangle(corner, cell, cell, fill=False, edgecolor=color, linewidth=width)
                    )
            if row == 0:
                axes.set_title(title, fontsize=9, fontweight="normal", loc="center")
        if row < len(row_names):
            name_row(grid[row, 0], row_names[row])
    if numbers:
        scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(low, high), cmap)
        figure.colorbar(scale, ax=grid[:, -1].tolist(), label=quantity, fraction=0.1)
    return add_protocol(figure, protocol)


@styled
def token_maps(
    values: Tensor,
    titles: Sequence[str],
    label: str,
    low: float,
    high: float,
    image: Tensor | None = None,
    cmap: str = "viridis",
    protocol: str = "",
) -> Figure:
    """Maps of one number a token, side by side on one colour scale, and before them the picture, if given.

    values: (m, N) in raster order. titles: of the maps. label: the quantity and its unit. low, high: the ends
    of the scale. image: (3, H, W) in [-1, 1]. protocol: how the values were taken, below the figure."""
    count, grid = len(values) + (image is not None), math.isqrt(values.shape[1])
    figure = Figure(figsize=(1.9 * count + 0.9, 2.2), layout="compressed")
    axes = figure.subplots(1, count, squeeze=False)[0]
    if image is not None:
        axes[0].imshow(to_rgb(image))
        titles = ["picture", *titles]
    for each, row in zip(axes[count - len(values) :], values.cpu().numpy(), strict=True):
        shown = each.imshow(row.reshape(grid, grid), cmap=cmap, vmin=low, vmax=high)
    for each, title in zip(axes, titles, strict=True):
        each.axis("off")
        each.set_title(title)
    figure.colorbar(shown, ax=axes, label=label, pad=0.015)
    return add_protocol(figure, protocol)


def to_rgb(images: Tensor) -> np.ndarray:
    """(..., 3, H, W) in [-1, 1] -> uint8 (..., H, W, 3) on the CPU."""
    return to_uint8(images.float()).movedim(-3, -1).cpu().numpy()


def colored(values: Tensor, low: float, high: float, cmap: str) -> np.ndarray:
    """Values of any shape -> uint8 colours (..., 3). What lies outside low..high gets the end colours."""
    scaled = ((values.float().cpu() - low) / max(high - low, 1e-12)).clamp(0, 1).numpy()
    return (matplotlib.colormaps[cmap](scaled)[..., :3] * 255).round().astype(np.uint8)


def enlarge(pixels: np.ndarray, side: int = 512) -> Image.Image:
    """uint8 (H, W, 3) -> an image `side` high, with every pixel enlarged to a crisp block."""
    height, width = pixels.shape[:2]
    return Image.fromarray(pixels).resize((side * width // height, side), Image.Resampling.NEAREST)


def grid_map(colors: np.ndarray, side: int = 512) -> Image.Image:
    """Colours of the tokens, uint8 (N, 3) in raster order, as a square picture."""
    grid = math.isqrt(len(colors))
    return enlarge(colors.reshape(grid, grid, 3), side)


def heat_map(values: Tensor, low: float, high: float, cmap: str = "viridis", side: int = 512) -> Image.Image:
    """A number for each token, (N,), as a square picture on a colour scale from low to high."""
    return grid_map(colored(values, low, high, cmap), side)


def index_map(indices: Tensor, colors: Tensor, side: int = 512) -> Image.Image:
    """A square picture of indices (N,): each is written into its cell, which has the mean colour of its code.
    colors: (K, 3) in [0, 1]."""
    cells = (colors[indices.cpu()] * 255).round().byte().numpy()
    picture = grid_map(cells, side)
    grid = math.isqrt(len(indices))
    cell, draw = side / grid, ImageDraw.Draw(picture)
    font = text_font(cell * 0.3)
    for token, (index, color) in enumerate(zip(indices.tolist(), cells.tolist(), strict=True)):
        bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
        middle = (token % grid + 0.5) * cell, (token // grid + 0.5) * cell
        draw.text(middle, str(index), fill=INK if bright else "white", font=font, anchor="mm")
    return picture


def mark(picture: Image.Image, token: int | None, grid: int) -> Image.Image:
    """A copy of the picture with one cell of the token grid framed; with token None a plain copy."""
    picture = picture.copy()
    if token is not None:
        cell = picture.height / grid
        left, top = token % grid * cell, token // grid * cell
        box = (left, top, left + cell, top + cell)
        draw = ImageDraw.Draw(picture)
        draw.rectangle(box, outline="black", width=6)
        draw.rectangle(tuple(np.add(box, (1, 1, -1, -1))), outline="#ffd400", width=3)
    return picture


def paint(picture: Image.Image, tokens: Iterable[int], grid: int) -> Image.Image:
    """A copy of the picture with some cells of the token grid painted over; it shines through."""
    picture = picture.copy()
    cell, draw = picture.height / grid, ImageDraw.Draw(picture)
    for token in tokens:
        left, top = token % grid * cell, token // grid * cell
        box = round(left), round(top), round(left + cell), round(top + cell)
        part = picture.crop(box)
        picture.paste(Image.blend(part, Image.new("RGB", part.size, "#ffd400"), 0.55), box)
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline="black")
    return picture


def legend(text: str, low: float, high: float, cmap: str = "viridis", digits: int = 1) -> str:
    """A colour scale as HTML, with its ends and middle labelled. text: the quantity and its unit. digits:
    decimals of the labels."""
    stops = map(matplotlib.colors.to_hex, matplotlib.colormaps[cmap](np.linspace(0, 1, 9)))
    ticks = "".join(f"<span>{value:.{digits}f}</span>" for value in (low, (low + high) / 2, high))
    bar = f"background:linear-gradient(90deg,{','.join(stops)})"
    return (
        f'<div class="scale"><div class="bar" style="{bar}"></div>'
        f'<div class="ticks">{ticks}</div><div class="unit">{html.escape(text)}</div></div>'
    )
