"""What a tab shows, in Python: a snippet that makes the same again, to be pasted into a notebook.

Every text of a visitor's or a file's stands in it as a literal of Python.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import gradio as gr
from codebook_look import Edits
from components import QUIET, polite
from pictures import OWN, YOURS, Choice
from runs_on_offer import RunsOnOffer

from gear_studio.looking.pictures import NAMES
from gear_studio.places import ZOO
from gear_studio.runs import Run

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


def name_of(run: Run) -> str:
    """What `Run.from_pretrained` takes for a Run of the page. Of one that did not ship: its folder and the
    one that holds it; visitors need not know where on this machine that is."""
    folder = run.folder.resolve()
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

for name in {[name_of(runs[name]) for name in names]!r}:
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


def of_features(
    runs: RunsOnOffer, names: Sequence[str], chosen: Choice, teacher: str | None, count: int
) -> str:
    """Every block's features of a picture as colours, and what is measured over `count` pictures. teacher: as
    in `of_alignment`."""
    given = "run.teacher" if teacher is None else f"Teacher.from_pretrained({teacher!r}, view.grid)"
    used, pictures = _pictures(replace(chosen, source=chosen.surveyed))
    used = ", ".join(dict.fromkeys(["Picture", _pictures(chosen)[0], used]))
    return f"""\
from gear_studio import Run, Teacher
from gear_studio.analysis.features import pca_rgb
from gear_studio.looking.by_block import grow_by_block
from gear_studio.looking.pictures import {used}
from gear_studio.looking.view import Kept, View

for name in {[name_of(runs[name]) for name in names]!r}:
    run = Run.from_pretrained(name)
    view = View(Kept(), run, {_picture(chosen)})
    generator, teacher = run.generator if run.has("generator") else None, {given}
    colors = {{"f(x)": pca_rgb(view.teacher_features("asked", teacher)), "z": pca_rgb(view.z)}}
    colors |= {{"c_q": pca_rgb(view.c_q)}}  # (N, 3) in [0, 1], one row a patch
    if generator:
        colors |= {{f"h{{block}}": each for block, each in enumerate(view.block_colors(), start=1)}}
    for _, found in grow_by_block(run.tokenizer, generator, teacher, {pictures}, {count}):
        pass  # the measures grow; the last are over all pictures
    print(name, found.protocol)
    for measure, values in found.values.items():
        for place, value in values.items():
            print(measure, place, value)
"""


def of_convergence(arms: Mapping[str, Sequence[Run]], metric: str, level: float, falls: bool) -> str:
    """A metric of some Runs as it was measured, and when each reaches a level. falls: whether lower is
    later."""
    named = {label: [name_of(run) for run in seeds] for label, seeds in arms.items()}
    sign = "" if falls else "-"
    return f"""\
from gear_studio import Run, plots
from gear_studio.analysis.convergence import steps_to

named = {{
{"".join(f"    {label!r}: {names!r},{chr(10)}" for label, names in named.items())}}}
arms = {{label: [Run.from_pretrained(name) for name in names] for label, names in named.items()}}
plots.convergence(arms, {metric!r}, {metric!r}).savefig("convergence.png")
for label, seeds in arms.items():
    for run in seeds:
        steps, values = run.series({metric!r})
        print(label, run.config["seed"], steps_to(steps, {sign}values, {sign}{level!r}))  # inf: never
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
    used = f"Picture, {_pictures(chosen)[0]}"
    return LOOKING.format(pictures=used, run=name_of(runs[name]), picture=_picture(chosen))


def _picture(chosen: Choice) -> str:
    """The picture chosen, of Run `run`."""
    number = f", {chosen.index}" if chosen.source != YOURS else ""
    return f"Picture({_pictures(chosen)[1]}{number})"


def _pictures(chosen: Choice) -> tuple[str, str]:
    """What makes the collection chosen, or one's own picture, and the expression that does."""
    if chosen.source == OWN:
        return "pictures_of", "pictures_of(run)"
    if chosen.source in NAMES:
        return "pictures_of_source", f"pictures_of_source({chosen.source!r})"
    if chosen.source == YOURS:
        file = chosen.uploads[chosen.index].name if chosen.index < len(chosen.uploads) else "yours.png"
        return "Upload", f"Upload({file!r}, run.tokenizer.config.image_size)"
    return "pictures_of_folder", f"pictures_of_folder({chosen.source.removeprefix('folder ')!r})"
