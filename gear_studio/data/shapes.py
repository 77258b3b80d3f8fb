"""Shapes: an endless labelled world that needs no download.

Notable:
- Picture i of a world is a pure function of (seed, i): its random numbers come from a Philox generator keyed
  by that pair. It has the same bytes drawn alone, in any batch and in any process.
- Arithmetic on pixels uses only + - * / sqrt abs round min max, which IEEE 754 rounds exactly. The result
  cannot depend on the size of the batch or on a vector library.
- Lengths are in world units, 64 to a side; at the default image_size of 64 a unit is a pixel.
- The truth of every picture is known: class, caption, mask, and labels for each cell of the 8x8 token grid.
- Captions (`captions`) vary in phrasing, in order and in what they leave out; this too follows from
  (seed, i), by random numbers of its own. 24 combinations of texture, shape and colour can be held out
  of training (`combinations`), to ask a generator for combinations it has not seen.
- The pixel noise is deliberate: reconstruction has to keep it, and no generator can predict it.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from gear_studio.data.source import Batch, ListedSource
from gear_studio.errors import InputError

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
TEXTURES = ("solid", "striped", "checkered", "dotted")
SIZES = ("small", "medium", "large")
POSITIONS = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
_COLOR_RGB = {
    "red": (214, 45, 48),
    "orange": (232, 120, 28),
    "yellow": (226, 184, 24),
    "green": (46, 150, 62),
    "cyan": (24, 166, 184),
    "blue": (44, 92, 214),
    "purple": (132, 62, 190),
    "pink": (230, 96, 168),
}
_BACKGROUND_RGB = {
    "dark blue": (20, 28, 70),
    "dark green": (16, 52, 36),
    "dark red": (66, 18, 26),
    "dark gray": (42, 42, 46),
    "light blue": (204, 224, 246),
    "light green": (210, 236, 206),
    "light yellow": (248, 240, 206),
    "light gray": (222, 222, 224),
}
COLORS = tuple(_COLOR_RGB)
BACKGROUNDS = tuple(_BACKGROUND_RGB)
CLASSES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)  # id = shape * 4 + texture
ATTRIBUTES = {
    "size": SIZES,
    "color": COLORS,
    "texture": TEXTURES,
    "shape": SHAPES,
    "position": POSITIONS,
    "background": BACKGROUNDS,
}
GRID = 8  # token cells a side
COMBINATIONS = ("all", "seen", "unseen")

# Splits are consecutive ranges of the one world: no picture is in two of them.
SPLITS = ("train", "val", "probe", "judge")
SPLIT_LENGTH = 2**40

_SIDE = 64.0
_RADIUS = (13.0, 24.0)
_TILT = 15 / 360  # at most, either way, in turns
_NOISE_SIGMA = 8.0  # of 255, per pixel and channel
_FACTORS = (
    "label",
    "color",
    "background",
    "radius",
    "x",
    "y",
    "angle",
    "period",
    "slope",
    "slope_angle",
    "r",
    "g",
    "b",
)
_STRIDE = 2**33 + 17  # odd: how far on the next candidate lies where a combination is not wanted
_CAPTION_DICE = 0x63617074  # keeps a caption's random numbers apart from every other use of (seed, picture)
_LEFT_OUT = 0.25  # of each attribute but the shape; the shape is left out less often
_CHUNK = 16  # pictures rendered together: temporaries stay in the cache

_MAIN = np.array(list(_COLOR_RGB.values()), np.float32)
_GROUND = np.array(list(_BACKGROUND_RGB.values()), np.float32)
# The texture's second tone lies on the far side of the main colour from the background: light on dark
# grounds, dark on light ones. Both tones then stand out from it: no texture eats its own silhouette.
_ON_DARK = _GROUND.mean(axis=1) < 128
_LIGHT_TONE = 0.22 * _MAIN + 0.78 * 255
_DARK_TONE = 0.36 * _MAIN
_MIN_CONTRAST = 100.0  # Euclidean RGB distance between an object's main colour and its background
_ALLOWED = [np.flatnonzero(np.linalg.norm(_GROUND - main, axis=1) >= _MIN_CONTRAST) for main in _MAIN]


def is_held_out(
    texture: int | np.ndarray, shape: int | np.ndarray, color: int | np.ndarray
) -> bool | np.ndarray:
    """Whether a combination of ids is never seen where `combinations` is "seen".

    Of each texture and shape one colour in eight is held out. Any two of the three are seen together."""
    return (shape + 2 * texture + color) % len(COLORS) == 0


HELD_OUT = tuple(
    (texture, shape, color)
    for s, shape in enumerate(SHAPES)
    for t, texture in enumerate(TEXTURES)
    for c, color in enumerate(COLORS)
    if is_held_out(t, s, c)
)


def describe(attributes: Mapping[str, str], rng: np.random.Generator | None = None) -> str:
    """Write a caption that names these attributes and no others, such as "on a dark blue background there is
    a striped small star in the top left".

    attributes: any of size, color, texture, shape, position and background, by name. rng: chooses phrasing
    and order; None gives the plainest."""

    def one_of(*choices: str) -> str:
        return choices[0 if rng is None else int(rng.integers(len(choices)))]

    adjectives = [attributes[key] for key in ("size", "color", "texture") if key in attributes]
    if rng is not None:
        rng.shuffle(adjectives)
    noun = " ".join([*adjectives, attributes.get("shape") or one_of("shape", "object", "thing")])
    thing = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    where = ground = ""
    if "position" in attributes:
        place = attributes["position"]
        middle = place == "center"
        side = {"top": "at the", "bottom": "at the", "left": "on the", "right": "on the"}.get(place, "in the")
        where = one_of(place, f"{side} {place}", "in the middle" if middle else f"{side} {place}")
    if "background" in attributes:
        tone = attributes["background"]
        ground = one_of(f"on a {tone} background", f"on {tone}", f"against a {tone} background")
    match one_of("plain", "plain", "picture", "ground first", "place first"):
        case "picture":
            return " ".join(filter(None, (f"a picture of {thing}", where, ground)))
        case "ground first" if ground:
            return " ".join(filter(None, (ground, f"there is {thing}", where)))
        case "place first" if where:
            return " ".join(filter(None, (where, thing, ground)))
    return ", ".join(filter(None, (thing, where, ground)))


class Shapes(ListedSource):
    """One object of 6 shapes x 4 textures on a plain ground; satisfies `Source`.

    split: train, val, probe or judge; they are disjoint, each of 2**40 pictures.
    image_size: pixels a side, a multiple of 8. seed: which world. captions: whether `read` returns captions.
    combinations: "all"; "seen", without the held-out combinations of texture, shape and colour (`HELD_OUT`);
    or "unseen", only those. For the last two, picture i is the first allowed one of the pictures i, i + k,
    i + 2k, ... of the world with all combinations.
    Raises ValueError for an unknown split or combinations, or a size that the 8x8 grid does not divide.
    """

    name = "shapes"
    has_captions = True
    has_seeds = True
    has_combinations = True
    balanced = True
    embedded = True

    def __init__(
        self,
        split: str = "train",
        image_size: int = 64,
        seed: int = 0,
        captions: bool = False,
        combinations: str = "all",
    ) -> None:
        if split not in SPLITS:
            raise InputError(f"shapes has no split {split!r}; choose one of {', '.join(SPLITS)}")
        if image_size < GRID or image_size % GRID:
            raise InputError(f"shapes needs an image_size that is a multiple of {GRID}, got {image_size}")
        if combinations not in COMBINATIONS:
            raise InputError(
                f"shapes has no combinations {combinations!r}; choose one of {', '.join(COMBINATIONS)}"
            )
        self.classes = list(CLASSES)
        self.with_captions = captions
        self.combinations = combinations
        self.split = split
        self.image_size = image_size
        self.seed = seed

    def __len__(self) -> int:
        return SPLIT_LENGTH

    def read(self, indices: Sequence[int], rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        """{"image": uint8 (B,3,H,W), "label": int64 (B,)}, with captions also {"caption": B strings}. rngs is
        ignored: the world is endless."""
        images, labels = [], []
        for chunk in _chunks(indices):
            generators, factors = self._draw(chunk)
            images.append(_render(factors, generators, self.image_size)[0])
            labels.append(factors["label"])
        batch: Batch = {
            "image": torch.from_numpy(_concatenate(images)),
            "label": torch.from_numpy(_concatenate(labels)),
        }
        return batch | ({"caption": self.captions(indices)} if self.with_captions else {})

    def truth(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Everything there is to know about the pictures, which are the same bytes as `read` gives.

        image: uint8 (B,3,H,W).
        label, shape, texture, color, size, position, background: int64 (B,), ids into CLASSES, SHAPES,
        TEXTURES, COLORS, SIZES, POSITIONS, BACKGROUNDS.
        color_rgb: float (B,3) in 0..255, the main colour: all of a solid object, half of a striped one.
        mask: bool (B,H,W), the object.
        patch_foreground: bool (B,8,8), at least half of the cell is object.
        patch_shape, patch_texture: int64 (B,8,8), the object's ids in those cells, -1 elsewhere.
        """
        pieces: dict[str, list[np.ndarray]] = {}
        for chunk in _chunks(indices):
            generators, factors = self._draw(chunk)
            image, mask = _render(factors, generators, self.image_size)
            cell = self.image_size // GRID
            foreground = mask.reshape(-1, GRID, cell, GRID, cell).mean(axis=(2, 4)) >= 0.5
            rows = {key: factors[key] for key in ("label", "shape", "texture", "color", "size", "position")}
            rows |= {"background": factors["background"], "color_rgb": factors["main"]}
            rows |= {"image": image, "mask": mask, "patch_foreground": foreground}
            for key in ("shape", "texture"):
                rows[f"patch_{key}"] = np.where(foreground, factors[key][:, None, None], -1)
            for key, value in rows.items():
                pieces.setdefault(key, []).append(value)
        return {key: torch.from_numpy(_concatenate(value)) for key, value in pieces.items()}

    def caption(self, index: int) -> str:
        """Such as "a small red striped star, top left, on a dark blue background"."""
        names = self._names([index])[0]
        return (
            f"a {names['size']} {names['color']} {names['texture']} {names['shape']}, {names['position']}, "
            f"on a {names['background']} background"
        )

    def captions(self, indices: Sequence[int], telling: int = 0) -> list[str]:
        """Describe each picture in one of many phrasings, its attributes in varying order and some left out.

        A pure function of (seed, index, telling); `read` gives telling 0."""
        captions = []
        for number, names in zip(self._numbers(indices), self._names(indices), strict=True):
            retelling = (telling,) if telling else ()
            rng = np.random.default_rng((_CAPTION_DICE, self.seed, self._key(number), *retelling))
            kept = rng.random(len(names)) >= [_LEFT_OUT * (0.3 if key == "shape" else 1) for key in names]
            captions.append(
                describe({key: names[key] for key, keep in zip(names, kept, strict=True) if keep}, rng)
            )
        return captions

    def _names(self, indices: Sequence[int]) -> list[dict[str, str]]:
        """The attributes of each picture by name."""
        _, factors = self._draw(indices)
        return [
            {key: names[factors[key][i]] for key, names in ATTRIBUTES.items()} for i in range(len(indices))
        ]

    def _key(self, number: int) -> int:
        return SPLITS.index(self.split) * SPLIT_LENGTH + int(number)

    def _numbers(self, indices: Sequence[int]) -> list[int]:
        """The numbers that these pictures have in the world with all combinations."""
        for index in indices:
            if not 0 <= index < SPLIT_LENGTH:
                raise IndexError(f"shapes has pictures 0 to {SPLIT_LENGTH - 1}, asked for {index}")
        if self.combinations == "all":
            return [int(i) for i in indices]
        return [self._first_that_fits(int(i)) for i in indices]

    def _first_that_fits(self, number: int) -> int:
        """The first of the pictures number, number + k, ... whose combination `combinations` allows."""
        wanted = self.combinations == "unseen"
        while True:
            # The first two factors, drawn as `_draw` does.
            draws = np.random.Generator(np.random.Philox(key=[self.seed, self._key(number)])).random(2)
            label, color = int(draws[0] * len(CLASSES)), int(draws[1] * len(COLORS))
            if is_held_out(label % len(TEXTURES), label // len(TEXTURES), color) == wanted:
                return number
            number = (number + _STRIDE) % SPLIT_LENGTH

    def _draw(self, indices: Sequence[int]) -> tuple[list[np.random.Generator], dict[str, np.ndarray]]:
        """Each picture's generator, left where the pixel noise starts, and the factors as arrays over B."""
        generators = [
            np.random.Generator(np.random.Philox(key=[self.seed, self._key(number)]))
            for number in self._numbers(indices)
        ]
        u = dict(zip(_FACTORS, np.array([g.random(len(_FACTORS)) for g in generators]).T, strict=True))

        label = (u["label"] * len(CLASSES)).astype(np.int64)
        color = (u["color"] * len(COLORS)).astype(np.int64)
        background = np.array(
            [_ALLOWED[c][int(v * len(_ALLOWED[c]))] for c, v in zip(color, u["background"], strict=True)]
        )
        radius = _RADIUS[0] + u["radius"] * (_RADIUS[1] - _RADIUS[0])
        size = np.minimum((u["radius"] * len(SIZES)).astype(np.int64), len(SIZES) - 1)
        margin = radius - 2  # tips and corners may leave the picture
        x, y = (margin + u[axis] * (_SIDE - 2 * margin) for axis in "xy")
        column, row = (np.where(at < _SIDE / 2 - 5, 0, np.where(at > _SIDE / 2 + 5, 2, 1)) for at in (x, y))

        jitter = 24 * (np.stack([u["r"], u["g"], u["b"]], axis=1) - 0.5)
        main = (_MAIN[color] + jitter).clip(0, 255)
        tone = np.where(_ON_DARK[background][:, None], _LIGHT_TONE[color], _DARK_TONE[color])
        numbers = (
            {
                "radius": radius,
                "x": x,
                "y": y,
                "period": 0.9 + 0.2 * u["period"],
                "main": main,
                "tone": tone,
                "ground": _GROUND[background],
                "slope": 6 + 14 * u["slope"],
            }
            | _direction("", _TILT * (2 * u["angle"] - 1))
            | _direction("slope_", u["slope_angle"])
        )
        ids = {
            "label": label,
            "shape": label // len(TEXTURES),
            "texture": label % len(TEXTURES),
            "color": color,
            "background": background,
            "size": size,
            "position": row * 3 + column,
        }
        return generators, ids | {key: value.astype(np.float32) for key, value in numbers.items()}


def _chunks(indices: Sequence[int]) -> list[Sequence[int]]:
    return [indices[i : i + _CHUNK] for i in range(0, len(indices), _CHUNK)]


def _concatenate(pieces: list[np.ndarray]) -> np.ndarray:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _direction(prefix: str, turns: np.ndarray) -> dict[str, np.ndarray]:
    """Cosine and sine of an angle in turns; by libm, as numpy's vectorised ones may depend on the batch."""
    angles = [2 * math.pi * t for t in turns]
    return {
        f"{prefix}cos": np.array([math.cos(a) for a in angles]),
        f"{prefix}sin": np.array([math.sin(a) for a in angles]),
    }


def _render(
    factors: dict[str, np.ndarray], generators: list[np.random.Generator], image_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 (B,3,H,W) and object mask bool (B,H,W)."""
    pixel = np.float32(_SIDE / image_size)
    at = (np.arange(image_size, dtype=np.float32) + np.float32(0.5)) * pixel
    dx, dy = at - factors["x"][:, None], at - factors["y"][:, None]
    cos, sin = factors["cos"][:, None], factors["sin"][:, None]
    u = (cos * dx)[:, None, :] + (sin * dy)[
        :, :, None
    ]  # the object's own frame: shape and texture turn together
    v = (cos * dy)[:, :, None] - (sin * dx)[:, None, :]

    distance, tone = np.empty_like(u), np.empty_like(u)
    for shape, outline in enumerate(_OUTLINES):
        if len(rows := np.flatnonzero(factors["shape"] == shape)):
            distance[rows] = outline(u[rows], v[rows], factors["radius"][rows, None, None])
    for texture, pattern in enumerate(_PATTERNS):
        if len(rows := np.flatnonzero(factors["texture"] == texture)):
            tone[rows] = pattern(u[rows], v[rows], factors["period"][rows, None, None], pixel)
    cover = _cover(-distance, pixel)

    middle = (at - np.float32(_SIDE / 2)) / np.float32(_SIDE / 2)
    strength = factors["slope"][:, None]
    ramp = (strength * factors["slope_cos"][:, None] * middle)[:, None, :]
    ramp = ramp + (strength * factors["slope_sin"][:, None] * middle)[:, :, None]

    image = np.empty((len(u), 3, image_size, image_size), np.float32)
    for row, generator in zip(image, generators, strict=True):
        generator.standard_normal(dtype=np.float32, out=row)
    image *= np.float32(_NOISE_SIGMA)
    for channel in range(3):
        main, second, ground = (factors[key][:, channel, None, None] for key in ("main", "tone", "ground"))
        below = ramp + ground
        above = tone * (second - main) + main
        image[:, channel] += below + cover * (above - below)
    image += np.float32(0.5)
    return image.clip(0, 255, out=image).astype(np.uint8), distance < 0


def _cover(distance: np.ndarray, pixel: np.float32) -> np.ndarray:
    """How much of a pixel is inside, in [0,1], from the depth of its centre inside the outline."""
    return (distance / pixel + np.float32(0.5)).clip(0, 1)


# Outlines: signed distance to the edge (negative inside) at (u, v) for an object of radius r. Exact near
# straight edges, a bound near corners. The proportions give the six about equal weight to the eye.


def _circle(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v) - r


def _square(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.88 * r


def _triangle(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.maximum(v, math.sqrt(0.75) * np.abs(u) - 0.5 * v) - 0.64 * r


def _star(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    # Fold the plane onto the wedge between a tip (straight up) and the notch beside it, 36 degrees away:
    # mirroring twice at the notch's direction brings in all five points. One straight edge is left.
    c, s = math.cos(math.pi / 5), math.sin(math.pi / 5)
    x, y = np.abs(u), -v
    for _ in range(2):
        past = np.maximum(c * x - s * y, 0)
        x, y = np.abs(x - 2 * c * past), y + 2 * s * past
    tip, notch = 1.26, 0.62
    across, along = tip - notch * c, notch * s  # normal of the edge from (0, tip) to notch * (s, c)
    norm = math.hypot(across, along)
    return (across / norm) * x + (along / norm) * y - (along / norm * tip) * r


def _cross(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 1.1 * r, np.minimum(u, v) - 0.4 * r)


def _ring(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(u * u + v * v) - 0.76 * r) - 0.28 * r


_OUTLINES = (_circle, _square, _triangle, _star, _cross, _ring)


# Patterns: share of the second tone in [0,1]. Periods are near 12 units, so that one cell of the token grid
# (8 units) shows a part of one and a texture is a thing of several cells; `scale` varies them by a tenth.


def _solid(u: np.ndarray, v: np.ndarray, scale: np.ndarray, pixel: np.float32) -> np.ndarray:
    return np.zeros_like(u)


def _striped(u: np.ndarray, v: np.ndarray, scale: np.ndarray, pixel: np.float32) -> np.ndarray:
    period = 10.6 * scale
    return _cover(0.25 * period - np.abs(_wrap(u, period)), pixel)


def _checkered(u: np.ndarray, v: np.ndarray, scale: np.ndarray, pixel: np.float32) -> np.ndarray:
    period = 13.4 * scale
    a = _cover(0.25 * period - np.abs(_wrap(u, period)), pixel)
    b = _cover(0.25 * period - np.abs(_wrap(v, period)), pixel)
    return a + b - 2 * a * b


def _dotted(u: np.ndarray, v: np.ndarray, scale: np.ndarray, pixel: np.float32) -> np.ndarray:
    period = 11.5 * scale
    a, b = _wrap(u, period), _wrap(v, period)
    return _cover(0.29 * period - np.sqrt(a * a + b * b), pixel)


def _wrap(x: np.ndarray, period: np.ndarray) -> np.ndarray:
    """x less its nearest multiple of the period."""
    return x - period * np.rint(x / period)


_PATTERNS = (_solid, _striped, _checkered, _dotted)
