"""What each command of `gear-studio` does: a function a command, whose arguments are the options.

What is asked for is judged before anything is loaded (`ranges.checked`). What a command makes goes to stdout,
what can be done with it next to stderr.
"""

import ast
import importlib
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from inspect import unwrap
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from gear_studio.analysis.metrics import EvaluationOptions
from gear_studio.devices import Device
from gear_studio.errors import InputError
from gear_studio.inspection.request import Inspection
from gear_studio.ranges import Count, Extent, Pixels, Seed, checked
from gear_studio.sampling import SamplingSettings
from gear_studio.studies import STUDIES, World
from gear_studio.training.recipes import BUDGET_NOTES, BUDGETS, recipe_lines, recipe_of, with_image_size
from gear_studio.training.request import BudgetName, RecipeName, StageName, Training
from gear_studio.training.slurm import Cluster


def say_next(*words: object) -> None:
    """Name the command that follows."""
    print(f"next: {shlex.join(map(str, words))}", file=sys.stderr)


@checked
def train(training: OmitArgPrefixes[Training]) -> None:
    """Train one stage, or continue it where it was killed; on several GPUs with `accelerate launch -m
    gear_studio train ...`, which may be other GPUs than before.

    Args:
        training: What is trained, and how.
    """
    from accelerate import PartialState

    from gear_studio.training import loop

    folder = loop.train(training).folder
    if PartialState().is_main_process:
        print(f"finished: {folder}")
        say_next("gear-studio", *training.next_command())


@checked
def import_released(
    file: Positional[str],
    name: Positional[Path],
    parent: Path | None = None,
    image_size: Pixels | None = None,
    quantizer: str | None = None,
    heads: Extent | None = None,
) -> None:
    """Turn a released checkpoint (GEAR, LlamaGen, Open-MAGVIT2, IBQ, taming-transformers, latent-diffusion)
    into a run.

    Args:
        file: A .pt, .ckpt or .safetensors file, or owner/repository[/file] on the Hugging Face Hub.
        name: The run's folder; a bare name is put into runs/.
        parent: For a generator alone: the run of its tokenizer, a folder beside it or the name of a shipped
            one.
        image_size: Pixels along a side of the pictures it is for. Default: 256, or for a generator alone
            those of its parent.
        quantizer: Of the tokenizer (vq, euclidean, lfq, ibq), where neither the file nor a config beside it
            says which.
        heads: Of the generator's attention, for a size that is not known.
    """
    from gear_studio import official

    out = Path("runs") / name if len(name.parts) == 1 and name.name not in ("", "..") else name
    run = official.import_run(file, out, parent, image_size, quantizer, heads)
    print(f"imported: {run.folder}{', with its discriminator' if run.has('discriminator') else ''}")
    for left_out in run.record["left_out"]:
        print(f"left out: {left_out}")
    if run.has("generator"):
        say_next("gear-studio", "sample", run.folder, "--out", "samples.png")
    else:
        say_next("gear-studio", "inspect", run.folder, "--out", f"{run.folder}-report")


@checked
def recipe(
    name: Positional[RecipeName],
    stage: StageName = "joint",
    budget: BudgetName = "shipped",
    start: str | None = None,
    image_size: Pixels | None = None,
) -> None:
    """Print a recipe: every setting, what follows from them, and what no recipe changes.

    Args:
        name: small, or the paper's: imagenet, a generator's size, a quantizer.
        stage: warmup, joint or generator.
        budget: Of the small recipe.
        start: Of the generator stage: fresh or joint.
        image_size: Pixels along a side of the pictures, instead of the recipe's.
    """
    if start not in (None, "fresh", "joint") or (start == "joint" and stage != "generator"):
        raise InputError(f"start is {start!r} of stage {stage}; the generator stage has fresh and joint")
    asked = recipe_of(str(name), stage, budget, start)
    asked = with_image_size(asked, image_size) if image_size else asked
    print("\n".join(recipe_lines(str(name), stage, asked)))
    words = ["--recipe", name] if name != "small" else []
    words += ["--budget", budget] if budget != "shipped" else []
    words += ["--start", start] if start else []
    words += ["--image-size", str(image_size)] if image_size else []
    source = ["shapes"] if name == "small" else ["folder", "--folder", "PICTURES"]
    say_next("gear-studio", "train", *source, "--stage", stage, *words)


@checked
def supervise(
    model: Positional[Literal["teacher", "judge", "attribute-judge"]],
    steps: Count | None = None,
    seed: Seed = 0,
    out: Path | None = None,
    device: Device = None,
) -> None:
    """Train the tiny teacher or a judge on the world's truth, or continue it; then measure it.

    Args:
        model: teacher (frozen patch features), judge (names the class of a picture) or attribute-judge (its
            shape, texture, colour and place one by one).
        steps: Default: as shipped.
        seed: Decides weights and images.
        out: Folder. Default: runs/MODEL.
    """
    from gear_studio import locks
    from gear_studio.models.judges import AttributeJudge, Judge
    from gear_studio.training import supervised

    out = out or Path("runs") / model
    settings: Any = {"steps": steps or BUDGETS["shipped"][model], "seed": seed, "device": device}
    with locks.hold(out):
        if model == "teacher":
            supervised.train_teacher(out, **settings)
            supervised.evaluate_teacher(out, device=device)
        elif model == "judge":
            supervised.train_judge(out, Judge, **settings)
            supervised.evaluate_judge(out, device=device)
        else:
            supervised.train_judge(out, AttributeJudge, **settings)
            supervised.evaluate_attribute_judge(out, device=device)
    print(f"finished: {out}")
    if model == "teacher":
        say_next("gear-studio", "train", "shapes", "--set", f"teacher={out}", "--out", f"{out}-warmup")
    else:
        say_next("gear-studio", "reproduce", "--budget", "quick")


@checked
def evaluate(runs: Positional[list[Path]], options: OmitArgPrefixes[EvaluationOptions]) -> None:
    """Measure runs on held-out images, print a table, and write evaluation.json into each; of a shipped run
    into runs/shipped/NAME. On several GPUs: accelerate launch -m gear_studio evaluate ...

    Args:
        runs: Folders of runs, or names of shipped ones.
        options: What is measured, and against what.
    """
    from gear_studio.analysis import fidelity
    from gear_studio.analysis.summary import describe_evaluation
    from gear_studio.data.stream import describe_skipped
    from gear_studio.devices import new_accelerator
    from gear_studio.files import write_json
    from gear_studio.places import repository_of, results_folder
    from gear_studio.runs import Run
    from gear_studio.training.loop import hold_folder

    if options.save_samples and len(runs) > 1:
        raise InputError(
            f"--save-samples {options.save_samples} is one place, but {len(runs)} runs were named"
        )
    if not runs:
        raise InputError("no run was named; give folders of runs, or names of shipped ones")
    accelerator = new_accelerator(options.device)
    for name in runs:
        run = Run.from_pretrained(name)
        path = results_folder(run.folder) / "evaluation.json"
        with hold_folder(path.parent, accelerator):
            result = fidelity.evaluate(run, options)
            if not accelerator.is_main_process:
                continue
            write_json(path, result)
        print(describe_evaluation(run.name, result))
        if "reference" in result:
            print(f"samples are compared with: {result['reference']}")
        if classes := result.get("classes"):
            proportions = "in the proportions of these pictures"
            how = {"equal": "equally often", "random": "at random"}.get(classes, proportions)
            print(f"classes are asked for {how}")
        kept = "what was downloaded" if repository_of(run.folder) else "what ships"
        print(f"measured: {path}{f' ({kept} is left as it is)' if path.parent != run.folder else ''}")
        if unread := result.get("skipped"):
            print(describe_skipped(unread))
        if run.has("generator"):
            say_next("gear-studio", "sample", name, "--out", "samples.png")
        else:
            say_next("gear-studio", "inspect", name, "--out", "report")


@checked
def inspect(tokenizers: Positional[list[str]], asked: OmitArgPrefixes[Inspection]) -> None:
    """Look at tokenizers on the same pictures: a page of reconstructions, maps and measures, and its numbers.
    Killed and started again it goes on.

    Args:
        tokenizers: Folders of runs, names of shipped ones, or released files (.pt, .ckpt, .safetensors).
        asked: What is looked at, and where the report goes.
    """
    from gear_studio import inspection

    page = inspection.inspect(tokenizers, asked)
    print(f"wrote {page}")
    print(f"next: open {page} in a browser", file=sys.stderr)


@checked
def sample(
    run: Positional[Path],
    out: Path,
    labels: list[str] | None = None,
    prompt: list[str] | None = None,
    prompts: Path | None = None,
    count: Count | None = None,
    size: Pixels | None = None,
    settings: OmitArgPrefixes[SamplingSettings] = SamplingSettings(seed=0),  # noqa: B008 -- it is frozen
    device: Device = None,
) -> None:
    """Write a grid of samples as one PNG, or the pictures of a file of prompts into a folder.

    Args:
        run: A generator's run: a folder or the name of a shipped one.
        out: The PNG to write; with --prompts a folder.
        labels: Classes, taken in turn: names, or numbers as number:5 (plain 5 where no class has a number
            for a name). Default: all classes.
        prompt: What to show, in words ("a red ring"), for a generator that takes captions; several are taken
            in turn.
        prompts: Many prompts: GenEval's .jsonl (OUT/00000/samples/0000.png, ...), DPG-Bench's folder of .txt
            files or .json (OUT/NAME.png, a grid), WISE's *_verified.json, one or their folder (OUT/1.png,
            ...), GPIC's .jsonl or COCO's .parquet (OUT/000000.png, ...), or a text file with a prompt a line.
        count: Pictures. Default: 32, or for each of --prompts what its benchmark takes: 4, or 1 of WISE, GPIC
            and COCO.
        size: With --prompts, pixels along a side that pictures are resized to, such as 512.
        settings: How codes are chosen.
    """
    import torch

    from gear_studio import sampling
    from gear_studio.data import batch_size_for, find_source
    from gear_studio.data.picture_output import write_grid
    from gear_studio.data.prompts import read_prompts, unknown_words, write_samples
    from gear_studio.devices import choose_device
    from gear_studio.runs import Run

    if sum(option is not None for option in (labels, prompt, prompts)) > 1:
        raise InputError("give one of --labels, --prompt and --prompts")
    if size and not prompts:
        raise InputError(f"--size {size} is for the pictures of --prompts; leave it out")
    loaded, there = Run.from_pretrained(run), choose_device(device)
    generator, tokenizer = loaded.generator.to(there), loaded.tokenizer.to(there)

    def draw(condition: torch.Tensor, first: int | list[int] = 0) -> torch.Tensor:
        indices = sampling.sample(generator, condition, **asdict(settings), first=first)
        with torch.no_grad():
            return tokenizer.decode(indices)

    if prompts:
        listed = read_prompts(prompts)
        each = count or listed[0].pictures
        some = max(1, batch_size_for(tokenizer.config.image_size) // each)
        for begin in range(0, len(listed), some):
            part = listed[begin : begin + some]
            condition = loaded.encode([prompt.text for prompt in part]).repeat_interleave(each, 0)
            drawn = draw(condition, begin * each)
            for prompt_of_part, pictures in zip(part, drawn.split(each), strict=True):
                write_samples(prompt_of_part, pictures, out, size)
    else:
        count = count or 32
        if prompt or loaded.text_encoder:
            if not prompt:
                raise InputError(f"run {loaded.name} is asked in words; say what to show with --prompt")
            conditions = loaded.encode(prompt)
            if find_source(loaded.config["source"]).embedded:
                for unknown in unknown_words(" ".join(prompt)):
                    print(f"{unknown!r} is in no caption that the run was trained on")
        elif labels:
            conditions = torch.tensor(loaded.class_numbers(labels))
        else:
            conditions = torch.arange(len(loaded.config["classes"]))
        write_grid(draw(conditions[torch.arange(count) % len(conditions)]), out)
    print(f"wrote {out}")
    say_next("gear-studio", "evaluate", run)


def reconstruct(
    run: Positional[Path], pictures: Positional[list[Path]], out: Path, device: Device = None
) -> None:
    """Write pictures and, below each, what the tokenizer makes of them, as one PNG. A picture keeps its
    aspect: its short side is resized to that of the tokenizer's own data, its long side cropped in the middle
    to what tokens cover.

    Args:
        run: Any run: a folder or the name of a shipped one.
        pictures: Image files.
        out: The PNG to write.
    """
    import torch

    from gear_studio import data
    from gear_studio.data.images import open_rgb, resize_short_side
    from gear_studio.data.picture_output import write_above
    from gear_studio.devices import choose_device
    from gear_studio.runs import Run

    if not pictures:
        raise InputError(
            f"no picture was named; give files: gear-studio reconstruct {run} PICTURE.png --out {out}"
        )
    place = choose_device(device)
    tokenizer = Run.from_pretrained(run).tokenizer.to(place)
    pairs = []
    for path in pictures:
        original = open_rgb(path)
        image = resize_short_side(original, tokenizer.config.image_size, tokenizer.config.factor)
        height, width = image.shape[1:]
        rows, columns = tokenizer.grid_of((height, width))
        print(
            f"{path}: {original.width} x {original.height} px, resized and cropped in the middle "
            f"to {width} x {height} px, {columns} x {rows} tokens"
        )
        with torch.no_grad():
            shown = data.to_float(image[None].to(place))
            pairs.append((shown[0], tokenizer.reconstruct(shown)[0]))
    write_above(pairs, out)
    print(f"wrote {out}")
    say_next("gear-studio", "inspect", run, "--out", "report")


@checked
def push(
    run: Positional[Path],
    name: Positional[str],
    private: bool = False,
    license: str | None = None,
    out: Path | None = None,
) -> None:
    """Publish a run on the Hugging Face Hub: its weights, its tokenizer and its records, with a model card
    that is written from them. It needs a token that may write: `hf auth login`.

    Args:
        run: A finished run: a folder or the name of a shipped one.
        name: OWNER/NAME of the repository; it is made where it is not there yet.
        private: Make a repository that only its owner sees.
        license: For the card, as the Hub writes it: apache-2.0, mit, cc-by-4.0. Default: not said.
        out: Publish nothing: write what would be uploaded into this new folder, to be looked at.
    """
    from gear_studio.runs import Run

    loaded = Run.from_pretrained(run)
    if out:
        loaded.save_for_hub(out, name, license)
        print(f"wrote {out}")
        print(f"next: read {out / 'README.md'}; hf upload {name} {shlex.quote(str(out))}", file=sys.stderr)
        return
    print(f"pushed: {loaded.push_to_hub(name, private, license)}")
    if loaded.has("generator"):
        say_next("gear-studio", "sample", name, "--out", "samples.png")
    else:
        say_next("gear-studio", "reconstruct", name, "PICTURE.png", "--out", "reconstruction.png")


@checked
def reproduce(
    budget: BudgetName = "shipped",
    out: Path | None = None,
    seed: Seed = 0,
    at_once: Count | None = None,
    ship: bool = False,
    device: Device = None,
) -> None:
    """Retrain and measure every shipped run; killed and started again it goes on.

    Args:
        budget: shipped (what ships), long (more steps on kept pictures), quick (smaller models of 32 px
            pictures), smoke (checks the plumbing).
        out: Folder of the runs. Default: runs/reproduce-BUDGET-sSEED.
        seed: Of all trainings.
        at_once: Trainings side by side. Default: one for each CPU core up to 3, or 3 on a GPU.
        ship: Put the results in the place of the shipped runs.
    """
    from gear_studio.studies import reproduce as zoo
    from gear_studio.training import jobs

    out = out or Path("runs") / f"reproduce-{budget}-s{seed}"
    todo = zoo.zoo_jobs(out, budget, seed, device)
    print(f"reproduce, {len(todo)} jobs into {out}. Budget {budget}: {BUDGET_NOTES[budget]}.", flush=True)
    jobs.run(todo, *jobs.share_cores(at_once, device), out / "logs")
    if ship:
        zoo.ship_zoo(out)
    report(out)


@checked
def study(
    name: Positional[str],
    world: tyro.conf.OmitArgPrefixes[World] = World(),  # noqa: B008 -- it is frozen
    seeds: tuple[Seed, ...] = (),
    at_once: Count | None = None,
    cluster: tyro.conf.OmitArgPrefixes[Cluster] = Cluster(),  # noqa: B008 -- it is frozen
    out: Path | None = None,
    from_zoo: bool = False,
    set: tuple[str, ...] = (),
    ship: bool = False,
    commands: bool = False,
) -> None:
    """Train a named set of runs over arms and seeds, and end in a table and a figure; killed and started
    again it goes on. Settings are to be chosen on seeds 100 and above, results reported on seeds 0 to 2. Each
    run is one process; those that `accelerate launch -m gear_studio train ...` made under the names in
    --commands are taken as they are.

    STUDIES

    Args:
        name: The study.
        world: What all its trainings have in common.
        seeds: Of the trainings. Default: 0 1 2.
        at_once: Trainings side by side. Default: one for each CPU core up to 3, or 3 on a GPU; with a recipe
            of the paper's one; on a cluster all.
        cluster: Where they run.
        out: Folder; the runs of all studies are shared in OUT/runs. Default: runs/studies-BUDGET, or
            runs/studies-SOURCE-RECIPE.
        from_zoo: Train nothing: the table of the shipped runs.
        set: Other recipe values of every training, as NAME=VALUE: gan_weight=0.1.
        ship: Put the results among those that ship, in the package.
        commands: Train nothing: print the commands, in an order in which they can be given.
    """
    from gear_studio import studies
    from gear_studio.training import jobs, slurm

    cluster.check()
    changed = {"source": world.source != "shapes", "recipe": world.recipe != "small", "set": bool(set)}
    for option, given in (changed | {"ship": ship, "commands": commands}).items():
        if from_zoo and given:
            raise InputError(f"--from-zoo trains nothing, so --{option} has nothing to do; leave one out")
    for option, given in changed.items():
        if ship and given:
            raise InputError(f"--ship is for a study as it is, not with --{option}; leave one out")
    fitted = studies.fit_to_world(studies.study_of(name), world, set)
    out = out or (Path("runs") / "studies-zoo" if from_zoo else studies.folder_of(world))
    if from_zoo:
        record = studies.record_of_shipped(fitted)
        seeds = tuple(dict.fromkeys(seeds or record["seeds"]))
        runs, record = studies.shipped_runs(name, seeds), record | {"seeds": list(seeds)}
    else:
        seeds = tuple(dict.fromkeys(seeds or studies.SEEDS))
        todo = studies.study_jobs(fitted, world, seeds, out, set)
        if commands:
            print("\n".join(shlex.join(["gear-studio", *job.command]) for job in todo))
            return
        print(f"study {name}, {len(todo)} jobs into {out}. {studies.describe_sizes(world)}", flush=True)
        if cluster.launcher == "slurm":
            slurm.run(todo, cluster, out / "logs", at_once)
        else:
            at_once = at_once or (None if world.recipe == "small" else 1)
            jobs.run(todo, *jobs.share_cores(at_once, world.execution.device), out / "logs")
        runs = studies.find_runs(fitted, seeds, out, set)
        record = studies.make_record(fitted, world, seeds, set)
    print(studies.write_study(fitted, runs, out / name, record))
    if ship:
        studies.ship_study(fitted, seeds, out)
        print(f"shipped: {studies.SHIPPED / name}")
    if not from_zoo:
        say_next("gear-studio", "explorer", "--runs", out / "runs")


def report(runs: Positional[Path | None] = None, figures: Path | None = None, device: Device = None) -> None:
    """Print the tables of docs/results.md from the shipped runs, or from a folder of runs.

    Args:
        runs: A folder that `reproduce` filled. Default: the shipped runs.
        figures: Folder to write that page's figures to.
    """
    from gear_studio.places import ZOO
    from gear_studio.studies import report

    if device and not figures:
        raise InputError(f"--device {device} is for the samples of --figures; add that, or leave it out")
    print(report.tables(runs or ZOO))
    for path in report.figures(runs or ZOO, figures, device) if figures else []:
        print(f"wrote {path}")
    if runs:
        say_next("gear-studio", "explorer", "--runs", runs)
    else:
        say_next("gear-studio", "reproduce", "--budget", "quick")


def explorer(words: list[str]) -> None:
    """Start the app. words: its command line; the options are its own."""
    from gear_studio.places import APPS

    sys.path.insert(0, str(APPS))
    app = importlib.import_module("explorer")
    app.main(tyro.cli(app.Options, prog="gear-studio explorer", args=words))


if not __debug__:  # python -OO drops docstrings, and these are the help
    for node in ast.parse(Path(__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            function = globals()[node.name]
            function.__doc__ = unwrap(function).__doc__ = ast.get_docstring(node, clean=False)
study.__doc__ = str(study.__doc__).replace(
    "STUDIES", "\n\n    ".join(f"{name}: {each.question}" for name, each in STUDIES.items())
)

COMMANDS: dict[str, Callable[..., Any]] = {  # beside the explorer
    "train": train,
    "import": import_released,
    "recipe": recipe,
    "supervise": supervise,
    "evaluate": evaluate,
    "inspect": inspect,
    "sample": sample,
    "reconstruct": reconstruct,
    "push": push,
    "study": study,
    "reproduce": reproduce,
    "report": report,
}
