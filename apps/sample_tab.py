"""Sample: two generators draw the same class from the same random numbers, row by row."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import torch
from studio import Studio, polite

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
            count = gr.Slider(1, 16, 4, step=1, label="Pictures", elem_id="count")
            guidance = gr.Slider(1, 5, 1.5, step=0.1, label="Guidance s", info="u + s (c − u); 1 is none")
            temperature = gr.Slider(
                0, 2, 1, step=0.05, label="Temperature", info="0 takes the likeliest code"
            )
            top_k = gr.Slider(0, codes, 0, step=1, label="Top-k", info="codes kept; 0 keeps all")
            top_p = gr.Slider(0.05, 1, 1, step=0.01, label="Top-p", info="probability mass kept")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
            go = gr.Button("Sample", variant="primary", elem_id="sample")
            again = gr.Button("Next seed", elem_id="next-seed")
        with gr.Column(scale=4):
            with gr.Row():
                sides = []
                for side, chosen in (("left", left), ("right", right)):
                    with gr.Column(min_width=320):
                        run = gr.Dropdown(names, value=chosen, label="Run", elem_id=f"{side}-run")
                        about = gr.HTML(_about(studio, chosen), padding=False)
                        sheet = gr.Image(
                            show_label=False,
                            interactive=False,
                            format="png",
                            buttons=["download", "fullscreen"],
                            elem_id=f"{side}-sheet",
                            elem_classes="sheet",
                            alt_text="Sampled pictures with their maps",
                        )
                        run.change(
                            lambda name: _about(studio, name), run, about,
                            show_progress="hidden", api_visibility="private",
                        )  # fmt: skip
                        sides.append((run, sheet))
            status = gr.HTML(elem_id="sample-status", padding=False)
            with gr.Row():
                limit = torch.tensor(float(codes)).log().item()
                gr.HTML(
                    plots.legend("left map: log p of the chosen code, nats", -limit, 0, "magma"),
                    padding=False,
                )
                gr.HTML(plots.legend("right map: entropy H of the next code, nats", 0, limit), padding=False)
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

    (left_run, left_sheet), (right_run, right_sheet) = sides
    settings = [left_run, right_run, label, count, guidance, temperature, top_k, top_p, seed]
    results = {
        "inputs": settings,
        "outputs": [left_sheet, right_sheet, status],
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


def _about(studio: Studio, name: str) -> str:
    run = studio.runs[name]
    config = studio.generator(name).config
    tokenizer = run.config["parent"] if not run.has("tokenizer") else run.name
    return (
        f'<div class="note">arm {run.config["arm"]}, on tokenizer {tokenizer}; {config.blocks} blocks x '
        f"{config.dim}, {run.config['recipe']['steps']:,} steps</div>"
    )


def _draw(studio, names, label, count, guidance, temperature, top_k, top_p, seed) -> Iterator[tuple]:
    """Yields (left sheet, right sheet, status) after every row of tokens."""
    if seed is None:
        raise ValueError("The seed is empty; give a whole number, 0 or above.")
    streams = []
    for name in names:
        classes, generator = studio.runs[name].config["classes"], studio.generator(name)
        if label != ANY and label not in classes:
            raise ValueError(f"Run {name} does not know the class {label!r}; it knows {', '.join(classes)}.")
        number = generator.condition.null if label == ANY else classes.index(label)
        condition = torch.full((count,), number)
        # Guidance compares with the null condition: without a class there is nothing to guide towards.
        scale = 1.0 if label == ANY else guidance
        streams.append(
            sampling.stream(generator, condition, scale, temperature, int(top_k), top_p, int(seed))
        )
    with ThreadPoolExecutor(len(names)) as pool:  # each side on a core of its own
        sides = [_sheets(studio, name, stream) for name, stream in zip(names, streams, strict=True)]
        while None not in (rows := list(pool.map(next, sides, [None] * len(sides)))):
            (*_, (done, tokens)) = (place for _, place in rows)
            state = "done" if done == tokens else "decoding"
            status = f'<div class="note" data-done="{done}">{state}: token {done} of {tokens}</div>'
            yield (*(sheet for sheet, _ in rows), status)


@torch.no_grad()
def _sheets(studio: Studio, name: str, stream: Iterator[sampling.Progress]) -> Iterator[tuple]:
    """Yields (sheet, (tokens decoded, tokens in all)) of one side after every row of tokens."""
    tokenizer = studio.tokenizer(name)
    for step in stream:
        images = tokenizer.decode(step.indices)
        sheet = plots.sample_sheet(images, step.log_probs, step.entropy, step.done, tokenizer.config.codes)
        yield sheet, (step.done, step.indices.shape[1])
