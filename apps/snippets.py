"""What a tab shows, in Python: a snippet that makes the same again, to be pasted into a notebook.

Every text of a visitor's or a file's stands in it as a literal of Python.
"""

from collections.abc import Callable, Mapping, Sequence

import gradio as gr
from codebook_look import Edits
from components import QUIET, polite
from pictures import OWN, YOURS, Choice
from runs_on_offer import RunsOnOffer

from gear_studio.looking.pictures import NAMES
from gear_studio.places import ZOO

LOOKING = """\
import torch

from gear_studio import Run
from gear_studio.data.picture_output import write_grid
from gear_studio.looking.pictures import {pictures}
from gear_studio.looking.view import Kept, View

run = Run.from_pretrained({run!r})
view = View(Kept(), run, {picture})
"""


def lay_out(snippet: Callable[..., str], inputs: Sequence, prefix: str) -> None:
    """A button, and under it the code that it shows. snippet: makes it of the values of `inputs`. prefix: of
    the ids in the page."""

    def show(*values: object) -> gr.Code:
        with polite():
            return gr.Code(snippet(*values), visible=True)

    ask = gr.Button("Show me the code", size="sm", elem_id=f"{prefix}-code-go")
    code = gr.Code(
        language="python", label="The same in a notebook, as it stood when the button was pressed",
        visible=False, interactive=False, elem_id=f"{prefix}-code", wrap_lines=True,
    )  # fmt: skip
    ask.click(show, list(inputs), code, **QUIET)


def name_of(runs: RunsOnOffer, name: str) -> str:
    """What `Run.from_pretrained` takes for the Run `name` of the page. Of a Run that did not ship: its folder
    and the one that holds it; visitors need not know where on this machine that is."""
    folder = runs[name].folder.resolve()
    return folder.relative_to(ZOO if folder.is_relative_to(ZOO) else folder.parents[1]).as_posix()


def of_samples(
    runs: RunsOnOffer, names: Sequence[str], asked: str | None, count: int, settings: Mapping[str, object]
) -> str:
    """Pictures of several Runs. asked: a class or a prompt; None for the null condition."""
    how = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    if asked is None:
        condition = f"run.generator.condition.nulls({count})"
        lines = [f"indices = sampling.sample(run.generator, {condition}, {how})"]
        lines += ["pictures = run.tokenizer.decode(indices)"]
    else:
        lines = [f"pictures = run.sample([{asked!r}] * {count}, {how})"]
    body = "\n".join(f"        {line}" for line in lines)
    return f"""\
import torch

from gear_studio import Run, sampling
from gear_studio.data.picture_output import write_grid

for name in {[name_of(runs, name) for name in names]!r}:
    run = Run.from_pretrained(name)
    with torch.no_grad():
{body}
    write_grid(pictures, f"{{run.name}}.png", columns=4)
"""


def of_codebook(runs: RunsOnOffer, name: str, chosen: Choice, token: int, edits: Edits, tau: float) -> str:
    """A picture through a tokenizer, with a token's likeliest codes and what others would change."""
    return f"""{_look(runs, name, chosen)}
print(f"PSNR {{view.psnr:.1f}} dB")
print(view.indices.view(view.grid, view.grid))
print("entropy of softmax(A / tau) in nats:", view.entropy({tau!r}).view(view.grid, view.grid))
weights = (view.assignment.scores[0, {token}] / {tau!r}).softmax(-1)  # of one token's codes
print(weights.topk(8))
edited = view.decode({dict(edits)!r})  # token -> its new code
write_grid(torch.stack([view.image[0], view.reconstruction, edited]), "codebook.png")
"""


def of_alignment(
    runs: RunsOnOffer, name: str, chosen: Choice, teacher: str | None, block: int, patch: int
) -> str:
    """Features of a picture, and their similarity to one patch's. teacher: as in `Teacher.from_pretrained`;
    None for the Run's own."""
    given = "run.teacher" if teacher is None else f"Teacher.from_pretrained({teacher!r}, view.grid)"
    last = (
        f'"h after block {block}": view.hidden({block})' if runs[name].has("generator") else '"c_q": view.c_q'
    )
    code = _look(runs, name, chosen).replace("import Run\n", "import Run, Teacher\n", 1)
    code = code.replace("from gear_studio.data.picture_output import write_grid\n", "")
    return f"""{code}
teacher = {given}
features = {{"f(x)": view.teacher_features("asked", teacher), "z": view.z, {last}}}
for what, values in features.items():  # (N, d), one row a patch
    similarity = torch.cosine_similarity(values, values[{patch} : {patch + 1}])
    print(what, tuple(values.shape), similarity.view(view.grid, view.grid))
"""


def of_edit(
    runs: RunsOnOffer,
    name: str,
    chosen: Choice,
    tokens: Sequence[int],
    region: Sequence[int],
    asked: str | None,
    count: int,
    settings: Mapping[str, object],
) -> str:
    """A region of a picture drawn anew. tokens: of the picture as it is. asked: a class; None for none."""
    how = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    label = f"run.class_numbers([{asked!r}] * {count})"
    condition = label if asked is not None else f"run.generator.condition.nulls({count})"
    look = _look(runs, name, chosen).replace("import Run\n", "import Run, sampling\n", 1)
    return f"""{look}
tokens = torch.tensor({list(tokens)!r})
mask = torch.zeros(len(tokens), dtype=torch.bool)
mask[{list(region)!r}] = True
with torch.no_grad():
    answers = sampling.resample(run.generator, {condition}, tokens, mask, {how})
    write_grid(run.tokenizer.decode(answers), "edited.png", columns=4)
"""


def _look(runs: RunsOnOffer, name: str, chosen: Choice) -> str:
    """A View of the picture chosen, through a Run."""
    number = f", {chosen.index}" if chosen.source != YOURS else ""
    if chosen.source == OWN:
        used, pictures = "Picture, pictures_of", "pictures_of(run)"
    elif chosen.source in NAMES:
        used, pictures = "Picture, pictures_of_source", f"pictures_of_source({chosen.source!r})"
    elif chosen.source == YOURS:
        file = chosen.uploads[chosen.index].name if chosen.index < len(chosen.uploads) else "yours.png"
        used, pictures = "Picture, Upload", f"Upload({file!r}, run.tokenizer.config.image_size)"
    else:
        folder = chosen.source.removeprefix("folder ")
        used, pictures = "Picture, pictures_of_folder", f"pictures_of_folder({folder!r})"
    run = name_of(runs, name)
    return LOOKING.format(pictures=used, run=run, picture=f"Picture({pictures}{number})")
