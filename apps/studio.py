"""What the explorer's tabs share: the Runs on offer, their models on one device, surveys, pictures.

Models are read on first use and kept. Layouts of codebooks take many seconds: one process of low priority
makes them, and the tabs show what they have until it is done.
"""

import html
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Lock, RLock, Thread

import gradio as gr
import torch
from torch import Tensor, nn

from gear_studio import data, plots, runs
from gear_studio.analysis import codes
from gear_studio.data.upload import read_upload
from gear_studio.models.generator import Generator
from gear_studio.models.teachers import Teacher, to_size
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.studies import CAPTIONS, SHIPPED

SIDE = 512  # of every picture and map in the page, in pixels
WORLD_PICTURES = 1000  # how many pictures of the world the slider offers


@dataclass(frozen=True)
class Picture:
    """The picture looked at: number `index` of the world, or the user's own `photo`, uint8 (3, H, W)."""

    index: int = 0
    photo: Tensor | None = None
    name: str = ""


class Studio:
    def __init__(self, folder: Path | None):
        """folder: where more Runs lie, beside the shipped ones. Raises ValueError when there are none."""
        self.runs = dict(runs.listed())
        self.runs |= {_of_study(name): run for name, run in runs.listed(SHIPPED / "runs").items()}
        if folder is not None:
            more = runs.listed(folder)
            if not more:
                raise ValueError(
                    f"{folder} holds no finished run; expected sub-folders such as gear-studio train writes "
                    "(config.json, tokenizer/ or generator/), a generator's beside its tokenizer's"
                )
            self.runs |= {name if name not in self.runs else f"{folder}/{name}": more[name] for name in more}
        self.tokenizers = [name for name, run in self.runs.items() if run.has("tokenizer")]
        # Asked by class, which most tabs do, or in words.
        self.generators, self.captioned = [], []
        for name, run in self.runs.items():
            if run.has("projector"):
                words = run.config["recipe"].get("text_encoder")
                (self.captioned if words else self.generators).append(name)
        if not self.tokenizers or not self.generators:
            raise ValueError(
                "there are no trained runs to explore: train some (gear-studio reproduce) "
                "and name their folder with --runs FOLDER"
            )
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._loading = RLock()
        self._surveying = Lock()
        self._background = ProcessPoolExecutor(1, get_context("spawn"), _step_back)
        self._surveys: dict[str, codes.Survey] = {}
        self._layouts: dict[str, Future] = {}

    def first(self, names: list[str], *wishes: tuple[str, str]) -> str:
        """The first of `names` whose Run has one of the wished (stage, arm), else the last of them."""
        for wish in wishes:
            for name in names:
                if (self.runs[name].config["stage"], self.runs[name].config["arm"]) == wish:
                    return name
        return names[-1]

    def _part(self, name: str, part: str) -> nn.Module:
        with self._loading:  # two users who come at once load a model once
            return getattr(self.runs[name], part).to(self.device)

    def tokenizer(self, name: str) -> Tokenizer:
        return self._part(name, "tokenizer")

    def generator(self, name: str) -> Generator:
        return self._part(name, "generator")

    def projector(self, name: str) -> nn.Module:
        return self._part(name, "projector")

    def teacher(self, name: str) -> Teacher:
        return self._part(name, "teacher")

    def about(self, name: str) -> str:
        """A line about a generator's Run, as HTML."""
        run, config = self.runs[name], self.generator(name).config
        tokenizer = run.config["parent"] if not run.has("tokenizer") else run.name
        return (
            f'<div class="note">arm {run.config["arm"]}, on tokenizer {tokenizer}; {config.blocks} blocks x '
            f"{config.dim}, {run.config['recipe']['steps']:,} steps</div>"
        )

    def survey(self, name: str) -> codes.Survey:
        """What the tokenizer of Run `name` does with 512 held-out pictures of the world; computed once."""
        with self._surveying:
            if name not in self._surveys:
                tokenizer = self.tokenizer(name)
                world = data.load("shapes", "val", tokenizer.config.image_size)
                self._surveys[name] = codes.survey(tokenizer, world)
            return self._surveys[name]

    def layout(self, name: str) -> Future:
        """UMAP of a codebook, (K, 2), under way or done."""
        codebook = self.tokenizer(name).quantizer.codebook.detach().float().cpu().numpy()
        with self._loading:
            if name not in self._layouts:
                self._layouts[name] = self._background.submit(codes.code_layout, codebook)
            return self._layouts[name]

    def warm_up(self, name: str) -> None:
        """Compute, beside the running app, what the first visitor will ask for."""
        Thread(target=lambda: (self.survey(name), self.layout(name)), daemon=True).start()

    def image(self, picture: Picture, size: int) -> Tensor:
        """The picture for a model: float (1, 3, size, size) in [-1, 1] on the device."""
        if picture.photo is None:
            pixels = data.load("shapes", "val", size).read([picture.index])["image"]
            return data.to_float(pixels).to(self.device)
        return to_size(data.to_float(picture.photo[None]), size).clamp(-1, 1).to(self.device)

    def label(self, picture: Picture, name: str) -> int | None:
        """The picture's class, or None (null condition) for a photo or a generator of other classes."""
        world = data.load("shapes", "val")
        if picture.photo is not None or self.runs[name].config["classes"] != world.classes:
            return None
        return int(world.read([picture.index])["label"][0])

    def photo(self, path: str) -> Picture:
        """The user's own picture; raises UploadError, whose message may be shown."""
        size = max(self.runs[name].tokenizer.config.image_size for name in self.tokenizers)
        return Picture(photo=read_upload(path, size), name=Path(path).name)

    def foreign(self, picture: Picture, name: str) -> bool:
        """Whether the picture is of another kind than all that Run `name` has seen."""
        return picture.photo is not None and data.find_source(self.runs[name].config["source"]).embedded

    def caption(self, picture: Picture) -> str:
        if picture.photo is not None:
            return f"Your picture **{picture.name}**, its middle square."
        caption = data.load("shapes", "val").caption(picture.index)
        return f"Picture {picture.index} of the held-out world: {caption}."


def _of_study(name: str) -> str:
    """What the lists call a study's Run; a long name would not fit them."""
    return name.replace("+" + "-".join(CAPTIONS), "+captions") + " (studies)"


def _step_back() -> None:
    """How the process of the layouts begins: it makes way for the app, and ends when the app does."""
    if hasattr(os, "nice"):  # not on Windows
        os.nice(10)
    Thread(target=lambda: (parent_process().join(), os._exit(0)), daemon=True).start()


@contextmanager
def polite() -> Iterator[None]:
    """Turn an error that the user can act on into a message in the page, without a traceback in the log."""
    try:
        yield
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise gr.Error(str(error), duration=12, print_exception=False) from error


def together(sides: list[Iterator]) -> Iterator[list]:
    """What the iterators yield, side by side, each on a core of its own, until one ends."""
    with ThreadPoolExecutor(len(sides)) as pool:
        while None not in (rows := list(pool.map(next, sides, [None] * len(sides)))):
            yield rows


def dice(codes: int, tab: str = "") -> list:
    """How to sample: pictures, guidance, temperature, top-k, top-p and seed. tab: prefix of their ids."""
    return [
        gr.Slider(1, 16, 4, step=1, label="Pictures", elem_id=f"{tab}count"),
        gr.Slider(1, 5, 1.5, step=0.1, label="Guidance s", info="u + s (c − u); 1 is none"),
        gr.Slider(0, 2, 1, step=0.05, label="Temperature", info="0 takes the likeliest code"),
        gr.Slider(0, codes, 0, step=1, label="Top-k", info="codes kept; 0 keeps all"),
        gr.Slider(0.05, 1, 1, step=0.01, label="Top-p", info="probability mass kept"),
        gr.Number(0, label="Seed", precision=0, minimum=0, elem_id=f"{tab}seed"),
    ]


def released(slider: gr.Slider) -> Callable:
    """The event of a slider let go or typed in: a step after it, when the page has clamped the number."""
    return slider.release(None, js="() => {}", show_progress="hidden", api_visibility="private").then


def whole(seed: int | None) -> int:
    if seed is None:
        raise ValueError("The seed is empty; give a whole number, 0 or above.")
    return int(seed)


def progress(done: int, tokens: int) -> str:
    state = "done" if done == tokens else "decoding"
    return f'<div class="note" data-done="{done}">{state}: token {done} of {tokens}</div>'


def drawn_by(name: str, asked: str, guidance: float, seed: int) -> str:
    """What a sheet shows, as HTML: it stays true when other settings are chosen beside it."""
    told = f"{name}: {asked}, guidance {guidance:g}, seed {seed}"
    return f'<div class="note">Drawn by {html.escape(told)}</div>'


def map_scales(codes: int) -> None:
    """The colour scales of the maps in `plots.sample_sheet`."""
    limit = math.log(codes)
    with gr.Row():
        left = plots.legend("left map: log p of the chosen code, nats", -limit, 0, "magma")
        gr.HTML(left, padding=False)
        gr.HTML(plots.legend("right map: entropy H of the next code, nats", 0, limit), padding=False)


def sheet(name: str, alt: str = "Sampled pictures with their maps", **settings) -> gr.Image:
    """A picture of many, of any size. name: its id in the page."""
    return gr.Image(
        show_label=False,
        interactive=False,
        format="png",
        buttons=["download", "fullscreen"],
        elem_id=name,
        elem_classes="sheet",
        alt_text=alt,
        **settings,
    )


def clicked_token(event: gr.SelectData, grid: int) -> int:
    """The token under a click on a picture SIDE pixels wide and high, in raster order."""
    column, row = (min(grid - 1, max(0, int(at * grid // SIDE))) for at in event.index)
    return row * grid + column


def heading(title: str, note: str) -> str:
    return f'<div class="title">{title}</div><div class="note">{note}</div>'


def text(title: str, note: str) -> gr.HTML:
    return gr.HTML(heading(title, note), padding=False)


def panel(title: str, note: str, name: str) -> gr.Image:
    """A titled square picture with a line of explanation, to click tokens in. name: its id in the page."""
    text(title, note)
    return square(name, title)


def square(name: str, alt: str) -> gr.Image:
    """The picture of a panel whose heading changes. name: its id in the page."""
    return gr.Image(
        show_label=False,
        interactive=False,
        format="png",
        buttons=[],
        elem_id=name,
        elem_classes="panel",
        alt_text=alt,
    )
