"""The explorer: look into trained tokenizers and generators in the browser.

    python apps/explorer.py [--runs FOLDER] [--pictures FOLDER] [--port N] [--host ADDRESS] [--read-only]

Thin on purpose: tabs lay out components and call gear_studio, which does the computing. Needs no network.

    *_tab.py          one tab each; `page.py` says what a tab is and what tabs share
    *_look.py         what a tab says of what it shows, without the page
    runs_on_offer.py  which Runs there are, their models
    pictures.py       the pictures to look at; `picker.py` chooses one
    views.py          what a tab shows of a Run and a picture, and when it draws
    newest.py         which of a visitor's requests counts
    background.py     what takes long, made beside the app
    side_by_side.py   what the tabs that sample share
    endpoints.py      what tabs say, in numbers, for the app's API
    address.py        what is looked at, in the page's address; `snippets.py` the same in Python, and
                      `numbers_file.py` in numbers
    components.py     small pieces of the page; `charts.py` what charts share
    gradio_faults.py  what Gradio itself gets wrong
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: nothing is sent anywhere

import alignment_tab
import codebook_tab
import convergence_tab
import edit_tab
import endpoints
import features_tab
import gradio as gr
import open_tab
import prompt_tab
import sample_tab
import torch
import train_tab
import tyro
from background import Background
from gradio_faults import (
    cancel_what_has_no_number,
    draw_charts_once,
    keep_streams_open,
    say_what_is_refused,
    work_out_schemas_once,
    write_pictures_once,
)
from page import Page, Tab
from pictures import PicturesOnOffer
from runs_on_offer import RunsOnOffer

from gear_studio.devices import Device
from gear_studio.errors import InputError
from gear_studio.ranges import Port, check

TABS: tuple[Tab, ...] = (
    sample_tab,
    prompt_tab,
    codebook_tab,
    alignment_tab,
    features_tab,
    edit_tab,
    convergence_tab,
    train_tab,
    open_tab,
)
NOT_HOSTED = (train_tab, open_tab)
CONCURRENCY = 2  # requests of one kind answered at a time; more would only share the same cores
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
QUESTIONS = {  # -> the address of the view that answers it
    "Which codes does a picture use, and how sure was the choice?": "?tab=codebook",
    "Where do generator and teacher agree?": "?tab=alignment",
    "Does GEAR learn sooner, and by how much?": "?tab=convergence",
    "What happens when I change some tokens?": "?tab=edit",
}
CSS, SCRIPT = (Path(__file__).with_suffix(kind) for kind in (".css", ".js"))


@dataclass
class Options:
    """Look into trained models in the browser."""

    runs: Path | None = None
    """Folder of more runs, shown beside the shipped ones."""
    pictures: Path | None = None
    """Folder of picture files to look at, with or without sub-folders."""
    teacher_weights: tuple[str, ...] = ()
    """Files of published teachers' weights, instead of downloads, as NAME=FILE: dinov2-b=dinov2.pth."""
    port: Port | None = None
    """Port to serve on; default: the first free one from 7860."""
    host: str = "127.0.0.1"
    """Address to serve on; 0.0.0.0 lets other machines in."""
    share: bool = False
    """Also open a public link through Gradio's servers."""
    auth: Path | None = None
    """File of those who may enter, a line NAME:PASSWORD each."""
    mcp: bool = False
    """Also offer the actions of the API as tools of the Model Context Protocol, at gradio_api/mcp/."""
    read_only: bool = False
    """For hosting: leave out what reads and writes files of this machine, or downloads: the tabs Train and
    Open, and teachers beside those in the list."""
    device: Device = None


def build(runs: RunsOnOffer, background: Background, read_only: bool = False) -> gr.Blocks:
    write_pictures_once()
    with gr.Blocks(title="GEAR Studio", analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        asked = " ".join(f'<a href="{address}">{question}</a>' for question, address in QUESTIONS.items())
        gr.HTML(
            "<header><h1>GEAR Studio</h1><p>An image generator guides the tokenizer that feeds it. "
            "Sample from the models, ask in words, take codebooks apart, see what is looked at.</p>"
            f"<nav>Start with a question: {asked}</nav></header>"
        )
        page = Page(runs, background, demo, background.pictures, read_only)
        with gr.Tabs() as tabs:
            for tab in TABS:
                if not (read_only and tab in NOT_HOSTED):
                    page.add(tab)
        page.connect(tabs)
        endpoints.offer(page)
        demo.load(None, None, None, js=SCRIPT.read_text())
    return demo


def read_weights(given: Sequence[str]) -> dict[str, Path]:
    """The files of NAME=FILE by name. Raises ValueError for other text, and a file that is missing."""
    weights = {}
    for each in given:
        name, _, file = each.partition("=")
        if not file or not Path(file).is_file():
            raise InputError(
                f"--teacher-weights {each!r}: give NAME=FILE, such as dinov2-b=weights.pth, of a file"
            )
        weights[name] = Path(file)
    return weights


def read_visitors(file: Path) -> list[tuple[str, str]]:
    """Names and passwords of a file of lines NAME:PASSWORD. Raises ValueError for another line, and where
    there is none; no password is in the message."""
    try:
        lines = [line for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--auth {file} cannot be read: {error}") from error
    visitors = []
    for number, line in enumerate(lines, start=1):
        name, _, password = line.partition(":")
        if not (name.strip() and password):
            raise InputError(f"--auth {file}: line {number} is not NAME:PASSWORD")
        visitors.append((name.strip(), password))
    if not visitors:
        raise InputError(f"--auth {file}: the file is empty; give a line NAME:PASSWORD for each visitor")
    return visitors


def check_mcp(options: Options) -> None:
    """Raise ValueError where --mcp cannot be had."""
    if find_spec("mcp") is None:
        raise InputError("--mcp needs the package mcp; install it with uv pip install 'mcp<2'")
    if options.auth:
        raise InputError("--mcp asks for no password, which --auth wants of everybody; leave one out")


def main(options: Options) -> None:
    try:
        check(options)
        if options.mcp:
            check_mcp(options)
        runs, pictures = RunsOnOffer(options.runs, options.device), PicturesOnOffer(options.pictures)
        weights = read_weights(options.teacher_weights)
        visitors = read_visitors(options.auth) if options.auth else None
    except ValueError as error:
        sys.exit(f"explorer: {error}")
    # Each request gets its share of the cores: threads that wait for each other's core are slower than one.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // CONCURRENCY))
    background = Background(runs, pictures, weights)
    demo = build(runs, background, options.read_only)
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO)
    # Gradio's own greys and blues are paler than WCAG's level AA asks for.
    theme.set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300")
    theme.set(
        button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700"
    )
    theme.set(input_placeholder_color="*neutral_500", input_placeholder_color_dark="*neutral_400")
    demo.queue(default_concurrency_limit=CONCURRENCY)
    cancel_what_has_no_number()
    draw_charts_once()
    work_out_schemas_once()
    keep_streams_open(demo)
    say_what_is_refused(demo)
    try:
        demo.launch(
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            auth=visitors,
            mcp_server=options.mcp,
            theme=theme,
            css_paths=CSS,
            max_file_size="64mb",  # the reader's limit is lower and says so; this one stops a flood
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            prevent_thread_lock=True,
            _frontend=False,  # no look at the page before it is served: a busy machine fails its 3 s limit
        )
    except OSError as error:
        if options.port is None:
            raise
        sys.exit(f"explorer: cannot serve on {options.host}, port {options.port}: {error}")
    background.warm_up(runs.default(runs.tokenizers, "joint", "gear"))  # once the page is up
    if not options.read_only:
        background.keep_training()
    demo.block_thread()


if __name__ == "__main__":
    main(tyro.cli(Options))
