"""Alignment: the same picture as the teacher, the tokenizer and the generator see it, patch by patch."""

import gradio as gr
import picker
import torch
from studio import SIDE, Picture, Studio, clicked_token, heading, panel, polite, released, square

from gear_studio import plots
from gear_studio.analysis import features

BEFORE, AFTER = "z", "c_q"
MODELS = ("teacher", "tokenizer", "generator")


def build(studio: Studio, picture: gr.State):
    """Lay the tab out. Returns its picker and a function that renders the tab after an event."""
    default = studio.first(studio.generators, ("generator", "gear"))
    config = studio.generator(default).config
    patch = gr.State(27)  # near the middle: every visitor sees a heat map at once
    with gr.Row(equal_height=True):
        with gr.Column(scale=3, min_width=170):
            run = gr.Dropdown(studio.generators, value=default, label="Generator", elem_id="alignment-run")
        controls = picker.build(studio, "alignment")
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
    maps, heats, titles, scales = [], [], [], []
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
                heats.append(square(f"{model}-similarity", f"{model}, similarity to the framed patch"))
                scales.append(gr.HTML(elem_id=f"{model}-scale", padding=False))
    note = gr.HTML(elem_id="protocol", padding=False)

    def show(name: str, chosen: Picture, block: int, stage: str, patch: int) -> tuple:
        with polite():
            return _show(studio, name, chosen, int(block), stage, patch)

    def click(name: str, chosen: Picture, block: int, stage: str, patch: int, event: gr.SelectData) -> tuple:
        patch = clicked_token(event, studio.tokenizer(name).grid)
        return patch, *show(name, chosen, block, stage, patch)

    def blocks(name: str, block: int):
        config = studio.generator(name).config
        return gr.Slider(maximum=config.blocks, value=min(block, config.blocks))

    # While an answer is on its way, only the last of further clicks counts.
    hidden = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
    inputs = [run, picture, block, stage, patch]
    views = [facts, original, cosine, cosine_scale, *titles, *maps, *heats, *scales, note]

    def render(trigger) -> None:
        trigger(show, inputs, views, **hidden)

    run.change(blocks, [run, block], block, **hidden).then(show, inputs, views, **hidden)
    render(released(block))
    render(stage.change)
    for map_ in (original, cosine, *maps, *heats):
        map_.select(click, inputs, [patch, *views], **hidden)
    return controls, render


@torch.no_grad()
def _show(studio: Studio, name: str, chosen: Picture, block: int, stage: str, patch: int) -> tuple:
    """All pictures and captions, in the order of `views`."""
    generator, tokenizer, teacher = studio.generator(name), studio.tokenizer(name), studio.teacher(name)
    grid, tap = tokenizer.grid, generator.config.tap
    image = studio.image(chosen, tokenizer.config.image_size)
    number = studio.label(chosen, name)
    labels = None if number is None else torch.tensor([number], device=image.device)
    q = tokenizer.assign(image).indices
    target = teacher(image)
    found = {
        "teacher": target[0],
        "tokenizer": features.tokenizer_features(tokenizer, image, quantized=stage == AFTER)[0],
        "generator": features.generator_features(generator, q, [block], labels)[0][0],
    }
    aligned_with = studio.runs[name].alignment_target(target)
    cosines = features.alignment_map(generator, studio.projector(name), q, aligned_with, labels)[0]

    def framed(picture):
        return plots.mark(picture, patch, grid)

    shown = {"teacher": "f(x)", "tokenizer": stage, "generator": f"h after block {block}"}
    colors = [(features.pca_rgb(found[model]) * 255).round().byte().cpu().numpy() for model in MODELS]
    values = [features.similarity(found[model], patch) for model in MODELS]
    # One outlier (often position 0) would leave the rest one colour.
    worst, low = float(cosines.quantile(0.02)), float(torch.cat(values).quantile(0.05))
    alike = plots.legend("cosine, the same scale for all three; darkest: their lowest 5 %", low, 1, digits=2)
    condition = (
        "the null condition (a photo has no class)"
        if number is None
        else f"its own class as condition ({studio.runs[name].config['classes'][number]})"
    )
    return (
        f'<div class="big" data-cosine="{cosines.mean():.4f}">mean cos(g(h), f(x)) at the tap, block {tap}: '
        f"<b>{cosines.mean():.3f}</b>; at the framed patch {patch}: <b>{cosines[patch]:.3f}</b></div>",
        framed(plots.enlarge(plots.to_rgb(image[0]), SIDE)),
        framed(plots.heat_map(cosines, worst, 1, "cividis", SIDE)),
        plots.legend("cosine; 1 is perfect, darkest: the lowest 2 %", worst, 1, "cividis", digits=2),
        *(heading(f"{model.capitalize()}: {shown[model]}", "PCA as RGB") for model in MODELS),
        *(
            heading(f"{model.capitalize()}: similarity", f"of {shown[model]}, to patch {patch}")
            for model in MODELS
        ),
        *(framed(plots.grid_map(each, SIDE)) for each in colors),
        *(framed(plots.heat_map(each, low, 1, "viridis", SIDE)) for each in values),
        *[alike] * len(MODELS),
        '<div class="protocol"><b>Protocol.</b> The generator is teacher-forced on the tokens of x, '
        f"with {condition}. Its features are the hidden states after block {block}, before the projector; "
        "position i, which has seen only the tokens before i, stands for patch i. PCA is fitted to this "
        f"picture's {grid * grid} patches, each model for itself: compare outlines, not colours."
        f"<br><b>Teacher.</b> {teacher.note}</div>",
    )
