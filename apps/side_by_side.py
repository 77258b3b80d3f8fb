"""Sampling in the page: what the tabs Sample, Prompt and Edit share; runs side by side draw from the same
random numbers."""

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import gradio as gr
import torch
from components import QUIET, div
from page import Page
from runs_on_offer import RunsOnOffer
from torch import Tensor

from gear_studio import plots
from gear_studio.errors import InputError
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.sampling import Progress

Item = TypeVar("Item")
ANY = "no class (null condition)"


def run_choice(page: Page, names: list[str], name: str, elem_id: str) -> gr.Dropdown:
    """A list of generators' Runs, and under it a line about the one chosen."""

    def describe(name: str) -> str:
        return run_note(page.runs, name)

    choice = page.choose_run(names, name, "Run", elem_id)
    note = gr.HTML(describe(name), padding=False)
    choice.change(describe, choice, note, **QUIET)
    return choice


def run_note(runs: RunsOnOffer, name: str) -> str:
    """A line about a generator's Run, as HTML."""
    run, config = runs[name], runs.generator(name).config
    tokenizer = run.name if run.has("tokenizer") else run.config["parent"]
    if run.config["stage"] == "imported":
        return div("note", f"imported, on tokenizer {tokenizer}; {config.blocks} blocks x {config.dim}")
    return div(
        "note",
        f"arm {run.config['arm']}, on tokenizer {tokenizer}; {config.blocks} blocks x {config.dim}, "
        f"{run.config['recipe']['steps']:,} steps",
    )


def sampling_controls(codes: int, prefix: str = "") -> tuple[list[gr.Slider], gr.Number]:
    """How to sample: sliders of pictures, guidance, temperature, top-k and top-p, and the seed.

    prefix: of their ids."""
    sliders = [
        gr.Slider(1, 16, 4, step=1, precision=0, label="Pictures", elem_id=f"{prefix}count"),
        gr.Slider(
            1,
            5,
            1.5,
            step=0.1,
            label="Guidance s",
            info="u + s (c − u); 1 is none",
            elem_id=f"{prefix}guidance",
        ),
        gr.Slider(
            0,
            2,
            1,
            step=0.05,
            label="Temperature",
            info="0 takes the likeliest code",
            elem_id=f"{prefix}temperature",
        ),
        gr.Slider(
            0,
            codes,
            0,
            step=1,
            precision=0,
            label="Top-k",
            info="codes kept; 0 keeps all",
            elem_id=f"{prefix}top-k",
        ),
        gr.Slider(
            0.05, 1, 1, step=0.01, label="Top-p", info="probability mass kept", elem_id=f"{prefix}top-p"
        ),
    ]
    return sliders, gr.Number(0, label="Seed", precision=0, minimum=0, elem_id=f"{prefix}seed")


def sampling_settings(
    guidance: float, temperature: float, top_k: float, top_p: float, seed: int | None
) -> dict[str, Any]:
    """What these controls say, as `sampling.sample` takes it. Raises ValueError without a seed."""
    return {
        "cfg_scale": guidance,
        "temperature": temperature,
        "top_k": int(top_k),
        "top_p": top_p,
        "seed": seed_number(seed),
    }


def class_condition(runs: RunsOnOffer, name: str, label: str, count: int) -> Tensor:
    """The condition of `count` pictures of the class `label`, or of ANY. Raises ValueError for a class that
    the Run does not know."""
    classes = runs[name].config["classes"]
    if label == ANY:
        return runs.generator(name).condition.nulls(count)
    if label not in classes:
        known = ", ".join(classes[:24]) + (f" and {len(classes) - 24} more" if len(classes) > 24 else "")
        raise InputError(f"Run {name} does not know the class {label!r}; it knows {known}.")
    return torch.full((count,), runs[name].class_numbers([label])[0])


def seed_number(seed: int | None) -> int:
    """The seed typed in. Raises ValueError when the field is empty."""
    if seed is None:
        raise InputError("The seed is empty; give a whole number, 0 or above.")
    return int(seed)


def next_seed(seed: int | None) -> int:
    return (seed or 0) + 1


def advance_side_by_side(sides: Sequence[Iterator[Item]]) -> Iterator[list[Item]]:
    """Advance all iterators at once, each on a core of its own; yield their items until all have ended. One
    that ends before the others stays at its last item."""
    with ThreadPoolExecutor(len(sides)) as pool:
        items: list[Item | None] = [None] * len(sides)
        while True:
            new = list(pool.map(lambda side: next(side, None), sides))
            if all(item is None for item in new):
                return
            items = [old if item is None else item for item, old in zip(new, items, strict=True)]
            yield [item for item in items if item is not None]


@torch.no_grad()
def decode_by_row(tokenizer: Tokenizer, stream: Iterator[Progress]) -> Iterator[tuple[Tensor, Progress]]:
    """Yields (pictures so far, progress) after every row of tokens."""
    cost, ended = 0.0, 0.0
    for step in stream:
        begun, last = time.monotonic(), step.done == step.indices.shape[1]
        if last or begun - ended >= cost:  # a large decoder takes longer than a row: then not every row
            images = tokenizer.decode(step.indices)
            ended = time.monotonic()
            cost = ended - begun
        yield images, step


def progress(done: int, tokens: int) -> str:
    """How far a sampling is, as HTML."""
    state = "done" if done == tokens else "decoding"
    return div("note", f"{state}: token {done} of {tokens}", done=done)


def drawn_by(name: str, subject: str, guidance: float, seed: int) -> str:
    """What drew a sheet, as HTML: it stays true when other settings are chosen beside the sheet.

    subject: the class or prompt that was drawn."""
    return div("note", f"Drawn by {name}: {subject}, guidance {guidance:g}, seed {seed}")


def map_scales(codes: int) -> None:
    """The colour scales of the maps in `plots.sample_sheet`."""
    limit = math.log(codes)
    with gr.Row():
        left = plots.legend("left map: log p of the chosen code, nats", -limit, 0, "magma")
        gr.HTML(left, padding=False)
        gr.HTML(plots.legend("right map: entropy H of the next code, nats", 0, limit), padding=False)
