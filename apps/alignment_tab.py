"""Alignment: the same picture as the teacher, the tokenizer and the generator see it, patch by patch."""

import html

import gradio as gr
import torch
from components import LAST_COUNTS, SIDE, clicked_token, heading, panel, polite, released, square
from page import Page, Trigger
from pictures import Picture
from PIL.Image import Image
from runs_on_offer import RunsOnOffer

from gear_studio import plots
from gear_studio.analysis import features

TITLE = "Alignment"
BEFORE, AFTER = "z", "c_q"
MODELS = ("teacher", "tokenizer", "generator")


def build(page: Page) -> None:
    """Lay the tab out. It follows the picture that is chosen."""
    runs = page.runs
    default = runs.default(runs.generators, "generator", "gear")
    config = runs.generator(default).config
    patch = gr.State(27)  # near the middle: every visitor sees a heat map at once
    with gr.Row(equal_height=True):
        with gr.Column(scale=3, min_width=170):
            run = gr.Dropdown(runs.generators, value=default, label="Generator", elem_id="alignment-run")
        controls = page.add_picker("alignment")
        with gr.Column(scale=3, min_width=180):
            block = gr.Slider(
                1, config.blocks, config.tap, step=1, label="Generator block b", elem_id="block",
                info="whose output is looked at",
            )  # fmt: skip
        with gr.Column(scale=3, min_width=180):
            stage = gr.Radio(
                [BEFORE, AFTER], value=BEFORE, label="Tokenizer features", info="before or after quantization"
            )
    controls.caption.render()
    facts = gr.HTML(elem_id="alignment-facts", padding=False)
    maps, similarities, titles, scales = [], [], [], []
    with gr.Row(elem_classes="maps"):
        with gr.Column():
            original = panel("x", "the picture; click a patch", "alignment-picture")
        for model in MODELS:
            with gr.Column():
                titles.append(gr.HTML(elem_id=f"{model}-title", padding=False))
                maps.append(square(f"{model}-pca", f"{model}, PCA as RGB"))
    with gr.Row(elem_classes="maps"):
        with gr.Column():
            cosine = panel("cos(g(h), f(x))", "alignment at the tap, patch by patch", "cosine")
            cosine_scale = gr.HTML(elem_id="cosine-scale", padding=False)
        for model in MODELS:
            with gr.Column():
                titles.append(gr.HTML(padding=False))
                similarities.append(square(f"{model}-similarity", f"{model}, similarity to the framed patch"))
                scales.append(gr.HTML(elem_id=f"{model}-scale", padding=False))
    note = gr.HTML(elem_id="protocol", padding=False)

    def show(name: str, picture: Picture, block: float, stage: str, patch: int) -> tuple:
        with polite():
            return _show(runs, name, picture, int(block), stage, patch)

    def click(
        name: str, picture: Picture, block: float, stage: str, patch: int, event: gr.SelectData
    ) -> tuple:
        patch = clicked_token(event, runs.tokenizer(name).grid)
        return patch, *show(name, picture, block, stage, patch)

    def offer_blocks(name: str, block: float) -> gr.Slider:
        blocks = runs.generator(name).config.blocks
        return gr.Slider(maximum=blocks, value=min(block, blocks))

    inputs = [run, page.picture, block, stage, patch]
    views = [facts, original, cosine, cosine_scale, *titles, *maps, *similarities, *scales, note]

    def render(trigger: Trigger) -> None:
        trigger(show, inputs, views, **LAST_COUNTS)

    render(run.change(offer_blocks, [run, block], block, **LAST_COUNTS).then)
    render(released(block))
    render(stage.change)
    for map_ in (original, cosine, *maps, *similarities):
        map_.select(click, inputs, [patch, *views], **LAST_COUNTS)
    page.on_picture(render)


@torch.no_grad()
def _show(runs: RunsOnOffer, name: str, picture: Picture, block: int, stage: str, patch: int) -> tuple:
    """All pictures and captions, in the order of `views`."""
    generator, tokenizer, teacher = runs.generator(name), runs.tokenizer(name), runs.teacher(name)
    grid, tap = tokenizer.grid, generator.config.tap
    image = picture.to_tensor(tokenizer.config.image_size).to(runs.device)
    number = picture.class_number(runs[name].config["classes"])
    condition = None if number is None else torch.tensor([number], device=image.device)
    indices = tokenizer.assign(image).indices
    target = teacher(image)
    patches = {
        "teacher": target[0],
        "tokenizer": features.tokenizer_features(tokenizer, image, quantized=stage == AFTER)[0],
        "generator": features.generator_features(generator, indices, [block], condition)[0][0],
    }
    aligned_with = runs[name].alignment_target(target)
    cosines = features.alignment_map(generator, runs.projector(name), indices, aligned_with, condition)[0]

    def framed(picture: Image) -> Image:
        return plots.mark(picture, patch, grid)

    symbols = {"teacher": "f(x)", "tokenizer": stage, "generator": f"h after block {block}"}
    colors = [(features.pca_rgb(patches[model]) * 255).round().byte().cpu().numpy() for model in MODELS]
    values = [features.similarity(patches[model], patch) for model in MODELS]
    # One outlier (often position 0) would leave the rest one colour.
    worst, low = float(cosines.quantile(0.02)), float(torch.cat(values).quantile(0.05))
    scale = plots.legend("cosine, the same scale for all three; darkest: their lowest 5 %", low, 1, digits=2)
    if number is None:
        condition_note = "the null condition (a photo has no class)"
    else:
        condition_note = f"its own class as condition ({runs[name].config['classes'][number]})"
    return (
        f'<div class="big" data-cosine="{cosines.mean():.4f}">mean cos(g(h), f(x)) at the tap, block {tap}: '
        f"<b>{cosines.mean():.3f}</b>; at the framed patch {patch}: <b>{cosines[patch]:.3f}</b></div>",
        framed(plots.enlarge(plots.to_rgb(image[0]), SIDE)),
        framed(plots.heat_map(cosines, worst, 1, "cividis", SIDE)),
        plots.legend("cosine; 1 is perfect, darkest: the lowest 2 %", worst, 1, "cividis", digits=2),
        *(heading(f"{model.capitalize()}: {symbols[model]}", "PCA as RGB") for model in MODELS),
        *(
            heading(f"{model.capitalize()}: similarity", f"of {symbols[model]}, to patch {patch}")
            for model in MODELS
        ),
        *(framed(plots.grid_map(each, SIDE)) for each in colors),
        *(framed(plots.heat_map(each, low, 1, "viridis", SIDE)) for each in values),
        *[scale] * len(MODELS),
        '<div class="protocol"><b>Protocol.</b> The generator is teacher-forced on the tokens of x, '
        f"with {html.escape(condition_note)}. Its features are the hidden states after block {block}, before "
        "the projector; position i, which has seen only the tokens before i, stands for patch i. PCA is "
        f"fitted to this picture's {grid * grid} patches, each model for itself: compare outlines, not "
        "colours."
        f"<br><b>Teacher.</b> {html.escape(teacher.note)}</div>",
    )
