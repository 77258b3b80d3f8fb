"""Open: a released checkpoint, from the Hub or a file, or the folder of a Run becomes one of the lists."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread

import gradio as gr
from components import QUIET, div, heading, polite, status
from page import Page
from runs_on_offer import RunsOnOffer, check_name

from gear_studio import official
from gear_studio.errors import InputError
from gear_studio.models.quantizers import QUANTIZERS
from gear_studio.runs import Run

TITLE = "Open"
GUIDE = (
    "Read a tokenizer or a generator from the Hugging Face Hub or from this machine; then it is in the "
    "lists of all tabs."
)
BY_FILE = "as the file says"
ALONE = "none: the file holds a tokenizer"


def build(page: Page) -> None:
    """Lay the tab out. It reads files of the machine that serves the page: hosts leave it out."""
    runs = page.runs
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            source = gr.Textbox(
                label="What to open", placeholder="BinLin203/GEAR-VQ", elem_id="open-source", max_length=1000,
                info="owner/repository[/file] on the Hugging Face Hub, a file of weights (.pt, .ckpt, "
                ".safetensors), or the folder of a run; paths are of the machine that serves this page",
            )  # fmt: skip
            name = gr.Textbox(
                value="", label="Name in the lists", placeholder="from the file", elem_id="open-name",
                max_length=80, info=f"and of its folder in {runs.folder}/",
            )  # fmt: skip
            parent = gr.Dropdown(
                [ALONE, *runs.tokenizers], value=ALONE, label="Its tokenizer", elem_id="open-parent",
                info=f"of a generator alone: the run, shipped or in {runs.folder}/, whose tokens it predicts",
            )  # fmt: skip
            with gr.Accordion("Where a file does not say", open=False):
                size = gr.Number(
                    None, label="Pixels a side", precision=0, minimum=8, elem_id="open-size",
                    info="256, or for a generator alone those of its tokenizer",
                )  # fmt: skip
                quantizer = gr.Dropdown(
                    [BY_FILE, *QUANTIZERS], value=BY_FILE, label="Quantizer", elem_id="open-quantizer"
                )
                heads = gr.Number(None, label="Heads of a generator's attention", precision=0, minimum=1)
            go = gr.Button("Open", variant="primary", elem_id="open-go")
            state_line = gr.HTML(elem_id="open-status", padding=False)
        with gr.Column(scale=2, min_width=320):
            offered = gr.HTML(list_runs(runs), elem_id="open-runs", padding=False)
    page.lists.append((parent, runs.tokenizers, [ALONE]))

    # The names of the parameters are the app's API.
    def open_run(
        source: str, name: str, parent: str, size: int | None, quantizer: str, heads: int | None
    ) -> Iterator[dict]:
        """Read a run, a released file or a repository of the Hub, and offer it in the lists."""
        begun = time.monotonic()
        work: Future[str] = Future()
        with polite():
            source, folder = source.strip(), runs.folder / name_of(source.strip(), name.strip())
            beside = None if parent == ALONE else runs[parent].folder
            kind = None if quantizer == BY_FILE else quantizer

        def import_run() -> None:
            try:
                if is_run(source):
                    run = Run(Path(source))
                else:
                    run = official.import_run(source, folder, beside, size, kind, heads)
                work.set_result(runs.add(run))
            except Exception as error:  # it is raised below
                work.set_exception(error)

        Thread(target=import_run, daemon=True).start()
        while not wait([work], timeout=1).done:
            seconds = time.monotonic() - begun
            yield {state_line: status(f"fetching and reading {source} … {seconds:.0f} s")}
        try:
            with polite():
                opened = work.result()
        except gr.Error:
            yield {state_line: status("This cannot be opened; the message says why.", done=True)}
            raise
        said = f"{opened} is in the lists of {', '.join(places_of(runs, opened))}"
        yield {state_line: status(said, done=True), page.known: len(runs.names)}

    inputs = [source, name, parent, size, quantizer, heads]
    gr.on(
        [go.click, source.submit],
        open_run,
        inputs,
        [state_line, page.known],
        show_progress="hidden",
        api_name="open",
    )
    page.known.change(lambda: list_runs(runs), None, offered, **QUIET)


def is_run(source: str) -> bool:
    return (Path(source) / "config.json").is_file()


def name_of(source: str, name: str) -> str:
    """What is opened is called. Raises ValueError for a name that is none of a single folder."""
    if not source:
        raise InputError("Nothing is named to open; give owner/repository of the Hub, a file, or a folder.")
    path = Path(source)
    return check_name(name or (path.stem if path.suffix else path.name))


def places_of(runs: RunsOnOffer, name: str) -> list[str]:
    """The tabs whose lists hold a Run."""
    places = ["Sample"] if name in runs.generators else []
    places += ["Prompt"] if name in runs.captioned else []
    return places + (["Codebook"] if name in runs.tokenizers else []) + ["Alignment"]


def list_runs(runs: RunsOnOffer) -> str:
    """What is there, as HTML."""
    lines = [
        div("note", f"{name}: {', '.join(places_of(runs, name))}")
        for name in runs.names
        if not name.endswith("(studies)")
    ]
    studies = len(runs.names) - len(lines)
    lines += [div("note", f"and {studies} runs of the studies")] if studies else []
    lines += [div("note", f"Not offered: {name}: {why}.") for name, why in runs.lacking.items()]
    return heading("Runs", "and the tabs that list them") + "".join(lines)
