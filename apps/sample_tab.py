"""Sample: two generators draw the same class from the same random numbers, row by row."""

from collections.abc import Iterator

import gradio as gr
import torch
from studio import Studio, dice, drawn_by, map_scales, polite, progress, sheet, together, whole

from gear_studio import plots, sampling

ANY = "no class (null condition)"


def build(demo: gr.Blocks, studio: Studio):
    """Lay the tab out. Returns the event of a visit, after which the page has its first samples."""
    names = studio.generators
    left = studio.first(names, ("generator", "baseline"))
    right = studio.first(names, ("generator", "gear"))
    classes = studio.runs[left].config["classes"]
    codes = studio.tokenizer(left).config.codes

    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            label = gr.Dropdown(
                [ANY, *classes], value=classes[min(13, len(classes) - 1)], label="Class", elem_id="class"
            )
            count, guidance, temperature, top_k, top_p, seed = dice(codes)
            go = gr.Button("Sample", variant="primary", elem_id="sample")
            again = gr.Button("Next seed", elem_id="next-seed")
        with gr.Column(scale=4):
            with gr.Row():
                sides = []
                for side, chosen in (("left", left), ("right", right)):
                    with gr.Column(min_width=320):
                        run = gr.Dropdown(names, value=chosen, label="Run", elem_id=f"{side}-run")
                        about = gr.HTML(studio.about(chosen), padding=False)
                        caption = gr.HTML(elem_id=f"{side}-caption", padding=False)
                        sides.append((run, sheet(f"{side}-sheet"), caption))
                        run.change(studio.about, run, about, show_progress="hidden", api_visibility="private")
            status = gr.HTML(elem_id="sample-status", padding=False)
            map_scales(codes)
            gr.Markdown(
                "Both runs use the same random number for the same token of the same picture, so what "
                "differs is what they learnt; each paints with the tokenizer it was trained on. The maps "
                "under a picture show, token by token, how likely the chosen code was and how undecided the "
                "generator was before it chose: of the guided distribution, before temperature, top-k and "
                "top-p. The numbers are means over the picture, in nats. Grey is not decoded yet."
            )

    def draw(left, right, label, count, guidance, temperature, top_k, top_p, seed) -> Iterator[tuple]:
        with polite():
            yield from _draw(studio, (left, right), label, count, guidance, temperature, top_k, top_p, seed)

    (left_run, right_run), sheets, captions = zip(*sides, strict=True)
    settings = [left_run, right_run, label, count, guidance, temperature, top_k, top_p, seed]
    results = {
        "inputs": settings,
        "outputs": [*sheets, *captions, status],
        "show_progress": "hidden",
        "concurrency_id": "sample",
    }
    hidden = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on([go.click, seed.submit], draw, **results, api_name="sample")
    visit = demo.load(draw, **results, api_visibility="private")
    again.click(lambda seed: (seed or 0) + 1, seed, seed, **hidden).then(
        draw, **results, api_visibility="private"
    )
    left_run.change(
        lambda name: gr.Dropdown(choices=[ANY, *studio.runs[name].config["classes"]]),
        left_run,
        label,
        **hidden,
    )
    return visit


def _draw(studio, names, label, count, guidance, temperature, top_k, top_p, seed) -> Iterator[tuple]:
    """Yields (left sheet, right sheet, their captions, status) after every row of tokens."""
    # Guidance compares with the null condition: without a class there is nothing to guide towards.
    scale = 1.0 if label == ANY else guidance
    seed, streams = whole(seed), []
    for name in names:
        classes, generator = studio.runs[name].config["classes"], studio.generator(name)
        if label != ANY and label not in classes:
            raise ValueError(f"Run {name} does not know the class {label!r}; it knows {', '.join(classes)}.")
        number = generator.condition.null if label == ANY else classes.index(label)
        condition = torch.full((count,), number)
        streams.append(
            sampling.sample_by_row(generator, condition, scale, temperature, int(top_k), top_p, seed)
        )
    captions = [drawn_by(name, label, scale, seed) for name in names]
    for rows in together([_sheets(studio, *side) for side in zip(names, streams, strict=True)]):
        (*_, (done, tokens)) = (place for _, place in rows)
        yield (*(sheet for sheet, _ in rows), *captions, progress(done, tokens))


@torch.no_grad()
def _sheets(studio: Studio, name: str, stream: Iterator[sampling.Progress]) -> Iterator[tuple]:
    """Yields (sheet, (tokens decoded, tokens in all)) of one side after every row of tokens."""
    tokenizer = studio.tokenizer(name)
    for step in stream:
        images = tokenizer.decode(step.indices)
        sheet = plots.sample_sheet(images, step.log_probs, step.entropy, step.done, tokenizer.config.codes)
        yield sheet, (step.done, step.indices.shape[1])
