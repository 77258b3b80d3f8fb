"""The command line: `gear-studio train | recipe | supervise | evaluate | inspect | sample | reconstruct |
study | reproduce | report`.

Errors that a user can act on end in one line, not in a traceback.
"""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from gear_studio.analysis.metrics import EvaluationOptions
from gear_studio.inspection.request import Inspection
from gear_studio.studies import STUDIES, World
from gear_studio.training.recipes import BUDGETS, recipe_lines, recipe_of
from gear_studio.training.request import BudgetName, RecipeName, StageName, Training


def train(training: OmitArgPrefixes[Training]) -> None:
    """Train one stage, or continue it where it was killed; on several GPUs with `accelerate launch -m
    gear_studio train ...`, which may be other GPUs than before.

    Args:
        training: What is trained, and how.
    """
    from gear_studio.training import loop

    print(f"finished: {loop.train(training).folder}")


def import_released(
    file: Positional[str],
    name: Positional[Path],
    parent: Path | None = None,
    image_size: int = 256,
    quantizer: str | None = None,
    heads: int | None = None,
) -> None:
    """Turn a released checkpoint (GEAR, LlamaGen, Open-MAGVIT2, IBQ, taming-transformers, latent-diffusion)
    into a run.

    Args:
        file: A .pt, .ckpt or .safetensors file, or owner/repository[/file] on the Hugging Face Hub.
        name: The run's folder; a bare name is put into runs/.
        parent: For a generator alone: the run of its tokenizer, beside it.
        image_size: Pixels along a side of the pictures it is for.
        quantizer: Of the tokenizer (vq, euclidean, lfq, ibq), where neither the file nor a config beside it
            says which.
        heads: Of the generator's attention, for a size that is not known.
    """
    from gear_studio import official

    out = name if len(name.parts) > 1 else Path("runs") / name
    run = official.import_run(file, out, parent, image_size, quantizer, heads)
    print(f"imported: {run.folder}{', with its discriminator' if run.has('discriminator') else ''}")


def recipe(
    name: Positional[RecipeName],
    stage: StageName = "joint",
    budget: BudgetName = "shipped",
) -> None:
    """Print a recipe: every setting, what follows from them, and what no recipe changes.

    Args:
        name: small, or the paper's: imagenet, a generator's size, a quantizer.
        stage: warmup, joint or generator.
        budget: Of the small recipe.
    """
    print("\n".join(recipe_lines(str(name), stage, recipe_of(str(name), stage, budget))))


def supervise(
    model: Positional[Literal["teacher", "judge", "attribute-judge"]],
    steps: int | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Train the tiny teacher or a judge on the world's truth, or continue it; then measure it.

    Args:
        model: teacher (frozen patch features), judge (names the class of a picture) or attribute-judge (its
            shape, texture, colour and place one by one).
        steps: Default: as shipped.
        seed: Decides weights and images.
        out: Folder. Default: runs/MODEL.
    """
    from gear_studio.training import supervised

    out = out or Path("runs") / model
    train_model, evaluate_model = {
        "teacher": (supervised.train_teacher, supervised.evaluate_teacher),
        "judge": (supervised.train_judge, supervised.evaluate_judge),
        "attribute-judge": (supervised.train_attribute_judge, supervised.evaluate_attribute_judge),
    }[model]
    train_model(out, steps or BUDGETS["shipped"][model], seed)
    evaluate_model(out)
    print(f"finished: {out}")


def evaluate(runs: Positional[list[Path]], options: OmitArgPrefixes[EvaluationOptions]) -> None:
    """Measure runs on held-out images and write evaluation.json into each. On several GPUs: accelerate launch
    -m gear_studio evaluate ...

    Args:
        runs: Folders of runs, or names of shipped ones.
        options: What is measured, and against what.
    """
    from accelerate import PartialState

    from gear_studio.analysis import fidelity
    from gear_studio.data.stream import describe_skipped
    from gear_studio.files import write_json
    from gear_studio.runs import Run

    if options.save_samples and len(runs) > 1:
        raise ValueError(
            f"--save-samples {options.save_samples} is one place, but {len(runs)} runs were named"
        )
    for name in runs:
        run = Run.from_pretrained(name)
        result = fidelity.evaluate(run, options)
        if PartialState().is_main_process:
            write_json(run.folder / "evaluation.json", result)
            print(f"measured: {run.folder / 'evaluation.json'}")
            if unread := result.get("skipped"):
                print(describe_skipped(unread))


def inspect(tokenizers: Positional[list[str]], asked: OmitArgPrefixes[Inspection]) -> None:
    """Look at tokenizers on the same pictures: a page of reconstructions, maps and measures, and its numbers.
    Killed and started again it goes on.

    Args:
        tokenizers: Folders of runs, names of shipped ones, or released files (.pt, .ckpt, .safetensors).
        asked: What is looked at, and where the report goes.
    """
    from gear_studio import inspection

    print(f"wrote {inspection.inspect(tokenizers, asked)}")


def sample(
    run: Positional[Path],
    out: Path,
    labels: list[str] | None = None,
    prompt: list[str] | None = None,
    prompts: Path | None = None,
    count: int | None = None,
    cfg_scale: float = 1.5,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Write a grid of samples as one PNG, or the pictures of a file of prompts into a folder.

    Args:
        run: A generator's run: a folder or the name of a shipped one.
        out: The PNG to write; with --prompts a folder.
        labels: Class names or numbers, taken in turn. Default: all classes.
        prompt: What to show, in words ("a red ring"), for a generator that takes captions; several are taken
            in turn.
        prompts: Many prompts: GenEval's .jsonl (OUT/00000/samples/0000.png, ...), DPG-Bench's folder of .txt
            files (OUT/NAME.png, a grid), or a text file with a prompt a line.
        count: Pictures. Default: 32, or 4 for each of --prompts.
        cfg_scale: Guidance; 1 is none.
        temperature: 0 is greedy.
        top_k: Keep the k likeliest codes; 0 keeps all.
        top_p: Keep the likeliest codes of this mass; 1 keeps all.
        seed: The same seed gives the same pictures.
        device: Where to compute, cuda or cpu say. Default: the GPU if there is one.
    """
    import torch

    from gear_studio import sampling
    from gear_studio.data.picture_output import write_grid
    from gear_studio.data.prompts import read_prompts, write_samples
    from gear_studio.devices import choose_device
    from gear_studio.runs import Run

    if sum(option is not None for option in (labels, prompt, prompts)) > 1:
        raise ValueError("give one of --labels, --prompt and --prompts")
    loaded, there = Run.from_pretrained(run), choose_device(device)
    generator, tokenizer = loaded.generator.to(there), loaded.tokenizer.to(there)
    settings = cfg_scale, temperature, top_k, top_p, seed

    def draw(condition: torch.Tensor, first: int = 0) -> torch.Tensor:
        indices = sampling.sample(generator, condition, *settings, first=first)
        with torch.no_grad():
            return tokenizer.decode(indices)

    if prompts:
        count = count or 4
        for number, each in enumerate(read_prompts(prompts)):
            condition = loaded.encode([each.text]).expand(count, -1, -1)
            write_samples(each, draw(condition, number * count), out)
    else:
        count = count or 32
        if prompt or loaded.text_encoder:
            if not prompt:
                raise ValueError(f"run {loaded.name} is asked in words; say what to show with --prompt")
            conditions = loaded.encode(prompt)
        elif labels:
            conditions = torch.tensor(loaded.class_numbers(labels))
        else:
            conditions = torch.arange(len(loaded.config["classes"]))
        write_grid(draw(conditions[torch.arange(count) % len(conditions)]), out)
    print(f"wrote {out}")


def reconstruct(
    run: Positional[Path], pictures: Positional[list[Path]], out: Path, device: str | None = None
) -> None:
    """Write pictures and, below each, what the tokenizer makes of them, as one PNG. A picture keeps its
    aspect: its short side is resized to that of the tokenizer's own data, its long side cropped in the middle
    to what tokens cover.

    Args:
        run: Any run: a folder or the name of a shipped one.
        pictures: Image files.
        out: The PNG to write.
        device: Where to compute, cuda or cpu say. Default: the GPU if there is one.
    """
    import torch

    from gear_studio import data
    from gear_studio.data.images import open_rgb, resize_short_side
    from gear_studio.data.picture_output import write_above
    from gear_studio.devices import choose_device
    from gear_studio.runs import Run

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


def reproduce(
    budget: Literal["shipped", "quick", "smoke"] = "shipped",
    out: Path | None = None,
    seed: int = 0,
    at_once: int | None = None,
    ship: bool = False,
) -> None:
    """Retrain and measure every shipped run; killed and started again it goes on.

    Args:
        budget: shipped (what ships), quick (smaller models of 32 px pictures), smoke (checks the plumbing).
        out: Folder of the runs. Default: runs/reproduce-BUDGET-sSEED.
        seed: Of all trainings.
        at_once: Trainings side by side. Default: one for each CPU core up to 3, or 3 on a GPU.
        ship: Put the results in the place of the shipped runs.
    """
    from gear_studio.studies import reproduce as zoo
    from gear_studio.training import jobs

    out = out or Path("runs") / f"reproduce-{budget}-s{seed}"
    jobs.run(zoo.zoo_jobs(out, budget, seed), *jobs.share_cores(at_once), out / "logs")
    if ship:
        zoo.ship_zoo(out)
    report(out)


def study(
    name: Positional[str],
    world: tyro.conf.OmitArgPrefixes[World] = World(),  # noqa: B008 -- it is frozen
    seeds: tuple[int, ...] = (),
    at_once: int | None = None,
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
            of the paper's one.
        out: Folder; the runs of all studies are shared in OUT/runs. Default: runs/studies-BUDGET, or
            runs/studies-SOURCE-RECIPE.
        from_zoo: Train nothing: the table of the shipped runs.
        set: Other recipe values of every training, as NAME=VALUE: gan_weight=0.1.
        ship: Put the results among those that ship, in the package.
        commands: Train nothing: print the commands, in an order in which they can be given.
    """
    from gear_studio import studies
    from gear_studio.training import jobs

    changed = {"source": world.source != "shapes", "recipe": world.recipe != "small", "set": bool(set)}
    for option, given in (changed | {"ship": ship, "commands": commands}).items():
        if from_zoo and given:
            raise ValueError(f"--from-zoo trains nothing, so --{option} has nothing to do; leave one out")
    for option, given in changed.items():
        if ship and given:
            raise ValueError(f"--ship is for a study as it is, not with --{option}; leave one out")
    fitted = studies.fit_to_world(studies.study_of(name), world, set)
    out = out or Path("runs") / ("studies-zoo" if from_zoo else f"studies-{world.name}")
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
        at_once = at_once or (None if world.recipe == "small" else 1)
        jobs.run(todo, *jobs.share_cores(at_once), out / "logs")
        runs = studies.find_runs(fitted, seeds, out, set)
        record = studies.make_record(fitted, world, seeds, set)
    print(studies.write_study(fitted, runs, out / name, record))
    if ship:
        studies.ship_study(fitted, seeds, out)
        print(f"shipped: {studies.SHIPPED / name}")


study.__doc__ = str(study.__doc__).replace(
    "STUDIES", "\n\n    ".join(f"{name}: {each.question}" for name, each in STUDIES.items())
)


def report(runs: Positional[Path | None] = None, figures: Path | None = None) -> None:
    """Print the README's tables from the shipped runs, or from a folder of runs.

    Args:
        runs: A folder that `reproduce` filled. Default: the shipped runs.
        figures: Folder to write the README's figures to.
    """
    from gear_studio.places import ZOO
    from gear_studio.studies import report

    print(report.tables(runs or ZOO))
    for path in report.figures(runs or ZOO, figures) if figures else []:
        print(f"wrote {path}")


COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train,
    "import": import_released,
    "recipe": recipe,
    "supervise": supervise,
    "evaluate": evaluate,
    "inspect": inspect,
    "sample": sample,
    "reconstruct": reconstruct,
    "study": study,
    "reproduce": reproduce,
    "report": report,
}


def run(words: list[str] | None = None) -> None:
    """Do what a command line says. words: what follows `gear-studio`; None takes this process's own."""
    tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="gear-studio", description=__doc__, args=words)


def main() -> None:
    try:
        run()
    except (FileNotFoundError, ValueError, KeyError, RuntimeError, ImportError) as error:
        sys.exit(f"gear-studio: {error.args[0] if isinstance(error, KeyError) else error}")
