"""The command line: `gear-studio train | recipe | supervise | evaluate | sample | reconstruct | study |
reproduce | report`.

Errors that a user can act on end in one line, not in a traceback.
"""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gear_studio.analysis.metrics import METRICS
from gear_studio.models.tokenizer import preset
from gear_studio.studies import STUDIES
from gear_studio.training.recipes import (
    ARMS,
    BUDGETS,
    NAMES,
    recipe_lines,
    recipe_of,
    with_captions,
    with_setting,
)

Positional = tyro.conf.Positional
Stage = Literal["warmup", "joint", "generator"]
Source = Literal["shapes", "digits", "folder", "shards"]
RecipeName = Literal[*NAMES]
Arm = Literal["warmup", *ARMS["generator"]]
Metric = Literal[*METRICS]


def run_name(label: str, stage: str, arm: str, seed: int) -> str:
    return f"{label}-warmup-s{seed}" if stage == "warmup" else f"{label}-{stage}-{arm}-s{seed}"


def default_parent(out: Path, label: str, stage: str, arm: str, seed: int) -> Path | None:
    """The Run that a stage builds on, beside `out`: the warm-up, or the joint Run of the same arm."""
    match stage, arm:
        case "warmup", _:
            return None
        case ("joint", _) | ("generator", "baseline"):
            return out.parent / run_name(label, "warmup", "warmup", seed)
        case _:
            return out.parent / run_name(label, "joint", arm, seed)


def train(
    source: Positional[Source],
    stage: Stage = "warmup",
    arm: Arm | None = None,
    seed: int = 0,
    recipe_name: Annotated[RecipeName, tyro.conf.arg(name="recipe")] = "small",
    budget: Literal["shipped", "quick", "smoke"] = "shipped",
    steps: int | None = None,
    batch_size: int | None = None,
    tokenizer: str | None = None,
    condition: Literal["class", "caption"] | None = None,
    folder: Path | None = None,
    out: Path | None = None,
    parent: Path | None = None,
    workers: int | None = None,
    teacher_weights: list[Path] | None = None,
    micro_batch: int = 0,
    recompute: bool = False,
    compile: bool = False,
    shard: bool = False,
    extend: bool = False,
    set: list[str] | None = None,
) -> None:
    """Train one stage, or continue it where it was killed; on several GPUs with `accelerate launch -m
    gear_studio train ...`, which may be other GPUs than before.

    Args:
        source: What to train on: the embedded world, real handwritten digits, a folder of pictures by
        class, or WebDataset shards.
        stage: warmup (tokenizer), joint (tokenizer guided by a generator), generator (on the frozen
        tokenizer).
        arm: What is compared: baseline, gear, continued, or one of the ablations straight-through, soft-ntp
        and latent. Default: gear, or warmup for the warm-up.
        seed: Decides weights, images and dropout.
        recipe_name: small, or one of the paper's; `gear-studio recipe NAME` prints it.
        budget: Of the small recipe: shipped; quick, smaller models of 32 px pictures; smoke, a few steps.
        steps: Steps, instead of the budget's.
        batch_size: Images a step over all processes, instead of the recipe's.
        tokenizer: What the warm-up trains instead of `small`: small-lfq, small-ibq, mini, mini-lfq, mini-ibq,
        vq-16, lfq-16 or ibq-16.
        Given to the later stages too, it finds the runs: runs/SOURCE-TOKENIZER-STAGE-...
        condition: What the generator is asked by: class labels, or captions (of shapes its own; of folder
        and shards the .txt beside each picture). Default: the recipe's. The run is called
        runs/SOURCE-caption-STAGE-... and builds on the same tokenizers.
        folder: For source `folder`: one sub-folder a class (optionally inside train/ and val/). For source
        `shards`: a folder of .tar files, or a pattern such as 'PATH/{000000..000099}.tar'.
        out: The run's folder. Default: runs/SOURCE-STAGE-ARM-sSEED.
        parent: The run to build on, beside OUT. Default: the warm-up, or the joint run of the same arm; for
        the warm-up none, from scratch. One that is given, such as an imported run, gives it the tokenizer to
        start from; its discriminator is new.
        workers: Data-loading processes; 0 loads in the training process. Default: 2 for a GPU, else 0.
        teacher_weights: The file of a published teacher's weights (safetensors or torch), instead of a
        download; with several teachers one for each.
        micro_batch: Images a process works on at a time; their gradients add up to the batch's. Default: its
        share of the batch.
        recompute: Do not keep activations inside blocks: less memory, a third more work.
        compile: With torch.compile: faster, after some minutes at the start.
        shard: Spread the generator over the processes (FSDP2).
        extend: Go on with a run that was asked for fewer steps, finished or not, as if it had been asked for
        these.
        set: Other recipe values, as NAME=VALUE: gan_weight=0.1 tau=0.05 teacher=FOLDER teacher=dinov2-b
        generator.blocks=4 fd_every=250 (FD of samples while it trains) keep_every=100000 (a run to evaluate
        or sample from in OUT/snapshots, every so many steps). In the generator stage token_views=10 encodes
        ten crops of every picture ahead, once a tokenizer.
    """
    from gear_studio.training.execution import Execution
    from gear_studio.training.loop import train as run_training

    arm = arm or ("warmup" if stage == "warmup" else "gear")
    recipe = recipe_of(recipe_name, stage, budget)
    changes = {"steps": steps, "batch_size": batch_size, "tokenizer": tokenizer and preset(tokenizer)}
    recipe = dataclasses.replace(recipe, **{k: v for k, v in changes.items() if v is not None})
    if condition == "class" and recipe.text_encoder:
        raise ValueError(f"recipe {recipe_name} is one of captions; choose another for --condition class")
    recipe = with_captions(recipe) if condition == "caption" else recipe
    for assignment in set or []:
        recipe = with_setting(recipe, *assignment.partition("=")[::2])
    if teacher_weights:  # absolute, so that the run finds them again from anywhere
        recipe = dataclasses.replace(recipe, teacher_weights=tuple(str(p.resolve()) for p in teacher_weights))
    label = f"{source}-{tokenizer}" if tokenizer else source
    own = f"{label}-caption" if recipe.text_encoder and stage != "warmup" else label
    out = out or Path("runs") / run_name(own, stage, arm, seed)
    parent = parent or default_parent(out, label, stage, arm, seed)
    if parent is not None and not (parent / "tokenizer").is_dir():
        raise FileNotFoundError(
            f"stage {stage} builds on {parent}, which holds no finished tokenizer; train that first, "
            "or name another run with --parent"
        )
    execution = Execution(micro_batch, recompute, compile, shard)
    run = run_training(
        source, stage, arm, recipe, seed, out, parent, folder, workers, execution=execution, extend=extend
    )
    print(f"finished: {run.folder}")


def import_released(
    file: Positional[str], name: Positional[Path], parent: Path | None = None, image_size: int = 256
) -> None:
    """Turn a released checkpoint (GEAR, LlamaGen, Open-MAGVIT2, IBQ) into a run.

    Args:
        file: A .pt, .ckpt or .safetensors file, or owner/repository[/file] on the Hugging Face Hub.
        name: The run's folder; a bare name is put into runs/.
        parent: For a generator alone: the run of its tokenizer, beside it.
        image_size: Pixels along a side of the pictures it is for.
    """
    from gear_studio import official

    out = name if len(name.parts) > 1 else Path("runs") / name
    print(f"imported: {official.import_run(file, out, parent, image_size).folder}")


def recipe(
    name: Positional[RecipeName],
    stage: Stage = "joint",
    budget: Literal["shipped", "quick", "smoke"] = "shipped",
) -> None:
    """Print a recipe: every setting, what follows from them, and what no recipe changes.

    Args:
        name: small, or the paper's: imagenet, a generator's size, a quantizer.
        stage: warmup, joint or generator.
        budget: Of the small recipe.
    """
    print("\n".join(recipe_lines(name, stage, recipe_of(name, stage, budget))))


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
    from gear_studio.training import teacher

    out = out or Path("runs") / model
    train_model, evaluate_model = {
        "teacher": (teacher.train_teacher, teacher.evaluate_teacher),
        "judge": (teacher.train_judge, teacher.evaluate_judge),
        "attribute-judge": (teacher.train_attribute_judge, teacher.evaluate_attribute_judge),
    }[model]
    train_model(out, steps or BUDGETS["shipped"][model], seed)
    evaluate_model(out)
    print(f"finished: {out}")


def evaluate(
    runs: Positional[list[Path]],
    samples: int = 5000,
    seeds: int = 3,
    cfg_scale: float = 1.5,
    metrics: tuple[Metric, ...] = ("fd",),
    prompts: Path | None = None,
    reference: Path | None = None,
    folder: Path | None = None,
    teacher: str | None = None,
    clip: str | None = None,
    dinov2_weights: Path | None = None,
    inception_weights: Path | None = None,
    lpips_weights: Path | None = None,
    save_samples: Path | None = None,
    cache: Path | None = None,
    batch_size: int | None = None,
) -> None:
    """Measure runs on held-out images and write evaluation.json into each. On several GPUs: accelerate launch
    -m gear_studio evaluate ...

    Args:
        runs: Folders of runs, or names of shipped ones.
        samples: Images behind every figure, the same for every run that is compared.
        seeds: Sampling seeds, for the spread.
        cfg_scale: Guidance scale of the guided figures.
        metrics: fd (Frechet distance in the teacher's features; works offline), fd-dinov2 (in DINOv2's, as
        published), fid, sfid, is (Inception Score), pr (precision and recall), of a generator on captions
        clipscore, of reconstructions ssim and lpips, and likeness (CKA and CKNNA of tokenizer and generator
        with the teacher).
        prompts: What samples are asked for, in turn, instead of the captions of held-out images: a file or
        folder as `sample --prompts` takes. Distances are then best taken to a --reference.
        reference: What samples are compared with: a folder of images, or an .npz with mu and sigma (and
        arr_0) as the ADM evaluator publishes them. Default: the run's own held-out images.
        folder: Where the pictures of a run on source `folder` or `shards` lie.
        teacher: Whose features fd is taken in. Default: the run's own teacher.
        clip: The CLIP of clipscore: a name on the Hugging Face Hub or a folder. Default:
        openai/clip-vit-large-patch14.
        dinov2_weights: The file of DINOv2 ViT-L/14, where it cannot be downloaded.
        inception_weights: The file of FID's Inception network, where it cannot be downloaded.
        lpips_weights: The file of VGG-16, where it cannot be downloaded.
        save_samples: Also write the first seed's samples: a folder of PNGs, or X.npz for the ADM evaluator;
        the guidance is added to the name.
        cache: Folder of reference statistics. Default: gear-studio/references in the user's cache folder.
        batch_size: Images at a time on a device. Default: 250 up to 64 px, else 32.
    """
    from accelerate import PartialState

    from gear_studio.analysis import fidelity
    from gear_studio.data.stream import skipped_line
    from gear_studio.files import write_json
    from gear_studio.runs import Run

    if save_samples and len(runs) > 1:
        raise ValueError(f"--save-samples {save_samples} is one place, but {len(runs)} runs were named")
    options = fidelity.EvaluationOptions(
        samples=samples,
        seeds=seeds,
        cfg_scale=cfg_scale,
        metrics=metrics,
        prompts=prompts,
        reference=reference,
        folder=folder,
        teacher=teacher,
        clip=clip,
        dinov2_weights=dinov2_weights,
        inception_weights=inception_weights,
        lpips_weights=lpips_weights,
        save_samples=save_samples,
        cache=cache,
        batch_size=batch_size,
    )
    for name in runs:
        run = Run.from_pretrained(name)
        result = fidelity.evaluate(run, options)
        if PartialState().is_main_process:
            write_json(run.folder / "evaluation.json", result)
            print(f"measured: {run.folder / 'evaluation.json'}")
            if unread := result.get("skipped"):
                print(skipped_line(unread))


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
    """
    import torch

    from gear_studio import sampling
    from gear_studio.data.pictures import write_grid
    from gear_studio.data.prompts import read_prompts, write_samples
    from gear_studio.runs import Run

    if sum(given is not None for given in (labels, prompt, prompts)) > 1:
        raise ValueError("give one of --labels, --prompt and --prompts")
    loaded = Run.from_pretrained(run)
    settings = cfg_scale, temperature, top_k, top_p, seed

    def pictures(condition: torch.Tensor, first: int = 0) -> torch.Tensor:
        indices = sampling.sample(loaded.generator, condition, *settings, first=first)
        with torch.no_grad():
            return loaded.tokenizer.decode(indices)

    if prompts:
        count = count or 4
        for number, each in enumerate(read_prompts(prompts)):
            condition = loaded.encode([each.text]).expand(count, -1, -1)
            write_samples(each, pictures(condition, number * count), out)
    else:
        count = count or 32
        if prompt or loaded.text_encoder:
            if not prompt:
                raise ValueError(f"run {loaded.name} is asked in words; say what to show with --prompt")
            asked = loaded.encode(prompt)
        elif labels:
            asked = torch.tensor(loaded.class_numbers(labels))
        else:
            asked = torch.arange(len(loaded.config["classes"]))
        write_grid(pictures(asked[torch.arange(count) % len(asked)]), out)
    print(f"wrote {out}")


def reconstruct(run: Positional[Path], pictures: Positional[list[Path]], out: Path) -> None:
    """Write pictures and, below each, what the tokenizer makes of them, as one PNG.

    Args:
        run: Any run: a folder or the name of a shipped one.
        pictures: Image files; centre-cropped to a square and resized.
        out: The PNG to write.
    """
    import torch

    from gear_studio import data
    from gear_studio.data.folder import fit, open_rgb
    from gear_studio.data.pictures import write_grid
    from gear_studio.runs import Run

    tokenizer = Run.from_pretrained(run).tokenizer
    images = torch.stack(
        [data.to_float(fit(open_rgb(path), tokenizer.config.image_size)) for path in pictures]
    )
    with torch.no_grad():
        write_grid(torch.cat([images, tokenizer.reconstruct(images)]), out, columns=len(images))
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
    jobs.run(zoo.jobs(out, budget, seed), *jobs.side_by_side(at_once), out / "logs")
    if ship:
        zoo.ship(out)
    report(out)


def study(
    name: Positional[str],
    source: Source = "shapes",
    folder: Path | None = None,
    recipe_name: Annotated[RecipeName, tyro.conf.arg(name="recipe")] = "small",
    budget: Literal["shipped", "quick", "smoke"] = "shipped",
    seeds: list[int] | None = None,
    at_once: int | None = None,
    out: Path | None = None,
    from_zoo: bool = False,
    set: list[str] | None = None,
    ship: bool = False,
    commands: bool = False,
    workers: int | None = None,
    teacher_weights: list[Path] | None = None,
    micro_batch: int = 0,
    recompute: bool = False,
    compile: bool = False,
) -> None:
    """Train a named set of runs over arms and seeds, and end in a table and a figure; killed and started
    again it goes on. Settings are to be chosen on seeds 100 and above, results reported on seeds 0 to 2. Each
    run is one process; those that `accelerate launch -m gear_studio train ...` made under the names in
    --commands are taken as they are.

    STUDIES

    Args:
        name: The study.
        source: What to train on, as `train` takes it.
        folder: For source `folder` and `shards`, where the pictures lie.
        recipe_name: small, or one of the paper's.
        budget: Of the small recipe: shipped (what ships), quick (smaller models of 32 px pictures), smoke
        (checks the plumbing).
        seeds: Of the trainings. Default: 0 1 2.
        at_once: Trainings side by side. Default: one for each CPU core up to 3, or 3 on a GPU; with a recipe
        of the paper's one.
        out: Folder; the runs of all studies are shared in OUT/runs. Default: runs/studies-BUDGET, or
        runs/studies-SOURCE-RECIPE.
        from_zoo: Train nothing: the table of the shipped runs.
        set: Other recipe values of every training, as NAME=VALUE: gan_weight=0.1.
        ship: Put the results among those that ship, in the package.
        commands: Train nothing: print the commands, in an order in which they can be given.
        workers: Of every training, as `train` takes it; so are the others below.
        teacher_weights: The file of a published teacher's weights.
        micro_batch: Images a process works on at a time.
        recompute: Do not keep activations inside blocks.
        compile: With torch.compile.
    """
    from gear_studio import studies
    from gear_studio.training import jobs

    how = ["--workers", str(workers)] if workers is not None else []
    how += ["--teacher-weights", *map(str, teacher_weights)] if teacher_weights else []
    how += ["--micro-batch", str(micro_batch)] if micro_batch else []
    how += ["--recompute"] * recompute + ["--compile"] * compile
    world, extra = studies.World(source, folder, recipe_name, budget, tuple(how)), tuple(set or ())
    other = {"source": source != "shapes", "recipe": recipe_name != "small", "set": set}
    for option, given in (other | {"ship": ship, "commands": commands}).items():
        if from_zoo and given:
            raise ValueError(f"--from-zoo trains nothing, so --{option} has nothing to do; leave one out")
    for option, given in other.items():
        if ship and given:
            raise ValueError(f"--ship is for a study as it is, not with --{option}; leave one out")
    chosen = studies.fitted(studies.named(name), world, extra)
    out = out or Path("runs") / ("studies-zoo" if from_zoo else f"studies-{world.name}")
    if from_zoo:
        asked = studies.shipped_record(chosen)
        seeds = list(dict.fromkeys(seeds or asked["seeds"]))
        found, asked = studies.shipped(name, seeds), asked | {"seeds": seeds}
    else:
        seeds = list(dict.fromkeys(seeds or studies.SEEDS))
        todo = studies.jobs(chosen, world, seeds, out, extra)
        if commands:
            print("\n".join(shlex.join(["gear-studio", *job.command]) for job in todo))
            return
        at_once = at_once or (None if recipe_name == "small" else 1)
        jobs.run(todo, *jobs.side_by_side(at_once), out / "logs")
        found = studies.found(chosen, seeds, out, extra)
        asked = studies.record(chosen, world, seeds, extra)
    print(studies.write(chosen, found, out / name, asked))
    if ship:
        studies.ship(chosen, seeds, out)
        print(f"shipped: {studies.SHIPPED / name}")


study.__doc__ = study.__doc__.replace(
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


COMMANDS = {
    "train": train,
    "import": import_released,
    "recipe": recipe,
    "supervise": supervise,
    "evaluate": evaluate,
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
