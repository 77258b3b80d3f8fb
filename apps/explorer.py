"""The explorer: look into trained tokenizers and generators in the browser.

    python apps/explorer.py [--runs FOLDER] [--port N] [--host ADDRESS] [--share]

Thin on purpose: tabs lay out components and call gear_studio, which does the computing. Needs no network.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: nothing is sent anywhere

import alignment_tab
import codebook_tab
import gradio as gr
import picker
import prompt_tab
import sample_tab
import torch
import tyro
from studio import Picture, Studio

CONCURRENCY = 2  # requests of one kind answered at a time; more would only share the same cores
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
CSS = Path(__file__).with_name("explorer.css")


@dataclass
class Options:
    """Look into trained models in the browser."""

    runs: Path | None = None
    """Folder of more runs, shown beside the shipped ones."""
    port: int | None = None
    """Port to serve on; default: the first free one from 7860."""
    host: str = "127.0.0.1"
    """Address to serve on; 0.0.0.0 lets other machines in."""
    share: bool = False
    """Also open a public link through Gradio's servers."""


def build(studio: Studio) -> gr.Blocks:
    with gr.Blocks(title="GEAR Studio", analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        gr.HTML(
            "<header><h1>GEAR Studio</h1><p>An image generator guides the tokenizer that feeds it. "
            "Sample from the models, ask in words, take codebooks apart, see what is looked at.</p></header>"
        )
        picture = gr.State(Picture())
        with gr.Tabs():
            with gr.Tab("Sample", id="sample"):
                visit = sample_tab.build(demo, studio)
            with gr.Tab("Prompt", id="prompt") as prompt:
                prompt_tab.build(prompt, studio)
            with gr.Tab("Codebook", id="codebook"):
                codebook, show_codebook = codebook_tab.build(studio, picture)
            with gr.Tab("Alignment", id="alignment"):
                alignment, show_alignment = alignment_tab.build(studio, picture)
        # The hidden tabs fill after the visible one: at the same time, all three would be late.
        for show in (show_codebook, show_alignment):
            show(visit.then)
        picker.connect(studio, [codebook, alignment], picture, [show_codebook, show_alignment])
    return demo


def main(options: Options) -> None:
    try:
        studio = Studio(options.runs)
    except ValueError as error:
        sys.exit(f"explorer: {error}")
    # Each request gets its share of the cores: threads that wait for each other's core are slower than one.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // CONCURRENCY))
    demo = build(studio)
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO)
    try:
        demo.queue(default_concurrency_limit=CONCURRENCY).launch(
            server_name=options.host,
            server_port=options.port,
            share=options.share,
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
    studio.warm_up(studio.first(studio.tokenizers, ("joint", "gear")))  # once the page is up
    demo.block_thread()


if __name__ == "__main__":
    main(tyro.cli(Options))
