"""The app as a whole: its tabs in their order, its look, and how it is served.

Here and not in `explorer.py`, which the process of the layouts imports too: it needs no page."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

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
from background import Background
from gradio_faults import (
    cancel_what_has_no_number,
    keep_streams_open,
    pass_over_what_is_not_named,
    say_what_is_refused,
    send_values_whole,
    work_out_schemas_once,
    write_pictures_once,
)
from page import Page, Tab
from runs_on_offer import RunsOnOffer

if TYPE_CHECKING:
    from explorer import Options

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
CSS, SCRIPT = (Path(__file__).with_name(f"explorer.{kind}") for kind in ("css", "js"))


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


def serve(background: Background, options: "Options", visitors: list[tuple[str, str]] | None = None) -> None:
    """Serve until the process ends. visitors: names and passwords of those who may enter; None: all may."""
    runs = background.runs
    # Each request gets its share of the cores: threads that wait for each other's core are slower than one.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // CONCURRENCY))
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
    work_out_schemas_once()
    send_values_whole()
    keep_streams_open(demo)
    pass_over_what_is_not_named(demo)
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
