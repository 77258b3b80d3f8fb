"""The training loop: devices and processes (Accelerate), checkpoints, metrics, validation, pictures.

Three promises, and how they are kept:

- *A killed run continues exactly.* Every step takes its randomness from (seed, step, process) and its images
  from (seed, step), so a checkpoint needs no random state; it is written whole or not at all, and metrics
  logged after it are dropped on resuming.
- *CUDA is never waited for.* Metrics are summed on the device and read back once every `log_every` steps.
- *A diverged run says so.* The first step at which any loss was not finite is kept on the device and reported
  at the next log, before a checkpoint can be overwritten.
"""

import dataclasses
import json
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import accelerate
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from tqdm import tqdm

from gear_studio import data, sampling
from gear_studio.data import tokens
from gear_studio.data.pictures import write_grid
from gear_studio.data.prompts import ClassLabels, Conditions, SourceCaptions
from gear_studio.data.stream import skipped, skipped_line
from gear_studio.files import atomic, read_json, write_json
from gear_studio.models import text_encoders
from gear_studio.models.discriminator import Discriminator
from gear_studio.models.generator import GeneratorConfig
from gear_studio.models.teachers import load_teachers
from gear_studio.models.tokenizer import Tokenizer, TokenizerConfig
from gear_studio.runs import Run
from gear_studio.training.execution import WHOLE, Execution
from gear_studio.training.fd import SampledDistance
from gear_studio.training.recipes import ARMS, WITHOUT_GENERATOR, Recipe
from gear_studio.training.stages import Stage

SHOWN = ("l1", "ntp", "alignment_soft", "alignment_hard", "usage")  # on the progress bar


class DivergedError(RuntimeError):
    """A loss became NaN or infinite."""


def seed_step(seed: int, step: int, process: int) -> None:
    torch.manual_seed(((seed * 1_000_003 + step) * 1_009 + process) % 2**63)


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


class Meter:
    """Running means of scalars that stay on their device until `read`."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.sums: dict[str, Tensor] = {}
        self.first_bad: dict[str, Tensor] = {}
        self.count = 0

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        self.count += 1
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums.get(name, 0) + value
            bad = torch.where(value.isfinite(), torch.inf, float(step))
            self.first_bad[name] = torch.minimum(self.first_bad.get(name, bad), bad)

    def read(self) -> tuple[dict[str, float], tuple[int, str] | None]:
        """Means over the steps and processes since the last read, and the first (step, loss) that was not
        finite."""
        names = list(self.sums)
        means = self.accelerator.reduce(
            torch.stack([self.sums[n] for n in names]) / self.count, "mean"
        ).tolist()
        bad = self.accelerator.gather(torch.stack([self.first_bad[n] for n in names])[None]).amin(0).tolist()
        self.sums, self.first_bad, self.count = {}, {}, 0
        first = min(
            range(len(names)), key=bad.__getitem__
        )  # a tie goes to the loss computed first: the cause
        diverged = None if bad[first] == torch.inf else (int(bad[first]), names[first])
        return dict(zip(names, means, strict=True)), diverged


class Checkpoints:
    """The last two resumable states of a run, each written atomically."""

    def __init__(self, folder: Path):
        self.folder = folder

    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def save(self, step: int, state: dict) -> None:
        with atomic(self.folder / f"step-{step:08d}.pt") as temporary:
            torch.save({"step": step, **state}, temporary)
        for old in self.paths()[:-2]:
            old.unlink()

    def sweep(self) -> None:
        """Remove what a kill in the middle of a save has left."""
        for stale in self.folder.glob(".step-*.pt.*"):
            stale.unlink()

    def load(self) -> dict | None:
        """The newest state, or None. Raises ValueError naming a file that is damaged or is no checkpoint of
        ours."""
        if not self.paths():
            return None
        path = self.paths()[-1]
        try:
            # Mapped, so that the processes of a machine share one copy of what they read.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if not isinstance(state, dict) or not {"step", "modules", "ema", "optimizers"} <= state.keys():
                raise ValueError("it holds something else")
        except Exception as error:
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{path} is not a complete checkpoint of this studio ({first_line}); "
                "delete it to continue from the one before, or from the start"
            ) from error
        return state


def prepare_folder(folder: Path, config: dict, extend: bool = False) -> None:
    """Claim a folder for a run: a new one gets its config, one that holds another run is refused, naming what
    differs. extend: one that was asked for fewer steps, and is the same otherwise, is asked for these from
    now on."""
    # A setting that came later has its default in older runs: they were trained as it now says.
    defaults, parts = known_defaults(Recipe), {"tokenizer": TokenizerConfig, "generator": GeneratorConfig}
    nested = {name: known_defaults(kind) for name, kind in parts.items()}
    config, defaults, nested = json.loads(json.dumps([config, defaults, nested]))
    if (folder / "config.json").exists():
        held = read_json(folder / "config.json", "a run")
        flat = {**config, **config["recipe"]}
        flat_held = {**held, **defaults, **held.get("recipe", {})}
        flat_held |= {name: nested[name] | flat_held[name] for name in nested.keys() & flat_held.keys()}
        different = sorted(
            k for k in flat.keys() | flat_held.keys() if flat.get(k) != flat_held.get(k) and k != "recipe"
        )
        longer = different == ["steps"] and flat["steps"] > flat_held["steps"]
        if longer and extend:
            reopen(folder, flat_held)
            write_json(folder / "config.json", config)
        elif different:
            shown = ", ".join(
                f"{k} is {flat_held.get(k)!r}, asked for {flat.get(k)!r}" for k in different[:3]
            )
            raise ValueError(
                f"{folder} already holds another run ({shown}); "
                f"{'go on with it by --extend, ' if longer else ''}choose another --out or delete the folder"
            )
    else:
        write_json(folder / "config.json", config)


def reopen(folder: Path, held: dict) -> None:
    """Make a run, finished or not, one that may go on beyond its last step. held: its config and recipe.

    Raises ValueError where it would not end as if it had been asked for more from the start, and where other
    runs are built on what it is now."""
    steps, rhythm = held["steps"], [name for name in ("checkpoint_every", "fd_every") if held[name]]
    if off := [f"{name} {held[name]}" for name in rhythm if steps % held[name]]:
        raise ValueError(
            f"{folder} was asked for {steps} steps, no multiple of {' and '.join(off)}: longer, it would "
            "have been measured at other steps. Train it anew with another --out"
        )
    beside = folder.resolve().parent.glob("*/config.json")
    if built := [p.parent.name for p in beside if read_json(p, "a run").get("parent") == folder.name]:
        raise ValueError(
            f"{folder} cannot go on: {', '.join(sorted(built))} started from what it is now. Train it anew "
            "with another --out"
        )
    run = Run(folder)
    if run.finished:
        if not Checkpoints(folder / "checkpoints").paths():
            raise ValueError(
                f"{folder} cannot go on: its checkpoints were deleted. Train it anew with another --out"
            )
        write_json(folder / "record.json", run.record | {"finished": False})
    if (folder / "evaluation.json").exists():  # of what it is now, and will not be
        (folder / "evaluation.json").replace(folder / f"evaluation-step-{steps}.json")


def check_tokenizer(held: TokenizerConfig, asked: TokenizerConfig, parent: str | Path | None) -> None:
    """Refuse a parent whose tokenizer is not the one a warm-up was asked for, naming what differs."""
    theirs, ours = (json.loads(json.dumps(dataclasses.asdict(config))) for config in (held, asked))
    if different := [name for name in ours if theirs[name] != ours[name]]:
        shown = ", ".join(f"{name} is {theirs[name]!r}, asked for {ours[name]!r}" for name in different[:3])
        raise ValueError(
            f"parent {parent} holds another tokenizer than the recipe's ({shown}); choose the --recipe or "
            "--tokenizer that fits it, or another --parent"
        )


def known_defaults(config: type) -> dict:
    """The fields of a dataclass that have a default, and it."""
    return {f.name: f.default for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING}


def pictures_of(folder: Path, source: data.Source) -> dict:
    """For the config of a run on files, which: {"pictures": {"folder": ..., "sha256": ...}}; else {}.

    A run continued keeps what it says, wherever the same files lie now; one from before runs said so takes
    any. Raises ValueError where it is on other files."""
    if not hasattr(source, "identity"):
        return {}
    now = {"folder": str(source.folder.absolute()), "sha256": source.identity()}
    if not (folder / "config.json").exists():
        return {"pictures": now}
    then = read_json(folder / "config.json", "a run").get("pictures")
    if then is None:
        return {}
    if then["sha256"] != now["sha256"]:
        raise ValueError(
            f"{folder} is a run on the pictures that were in {then['folder']}; those now in {now['folder']} "
            "are others (by names, labels or sizes, captions included); name the folder of the former, or "
            "choose another --out"
        )
    return {"pictures": then}


def resume_metrics(path: Path, step: int) -> None:
    """Drop what was logged after `step`, and a last line torn by a kill."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            break
    with atomic(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept))


def train(
    source: str,
    stage: str,
    arm: str,
    recipe: Recipe,
    seed: int = 0,
    out: str | Path = "runs/run",
    parent: str | Path | None = None,
    folder: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
    execution: Execution = WHOLE,
    extend: bool = False,
) -> Run:
    """Train one stage into the folder `out`, continuing what is there, and return the finished Run.

    source: shapes, digits, folder or shards (the last two lie in `folder`). parent: the Run whose tokenizer
    the warm-up (None: from scratch) and the joint stage start from, or the generator stage is trained on; it
    must lie beside `out`. workers: data-loading processes; None: 2 for a GPU, which would wait for the
    drawing, else 0. execution: how steps are computed; it and the number of processes may change when a run
    is continued. extend: go on with a run that was asked for fewer steps than the recipe's. Raises
    ValueError for an arm the stage does not know, a folder that holds another run or a damaged checkpoint;
    DivergedError when a loss is not finite."""
    if arm not in ARMS[stage]:
        raise ValueError(f"stage {stage} has no arm {arm!r}; choose one of {', '.join(ARMS[stage])}")
    if stage != "warmup" and parent is None:
        raise ValueError(f"stage {stage} needs a parent run with a tokenizer")
    if recipe.token_views and recipe.text_encoder:
        raise ValueError(
            f"token_views={recipe.token_views}: views encoded ahead keep no captions yet; set it to 0"
        )
    if recipe.token_views and stage != "generator":
        raise ValueError(
            f"token_views={recipe.token_views}: stage {stage} trains the tokenizer, so nothing can be "
            "encoded ahead; set it to 0, or use it in the generator stage"
        )
    generates = stage == "generator" or (stage == "joint" and arm not in WITHOUT_GENERATOR)
    if recipe.fd_every and (not generates or execution.shard):
        why = "a sharded generator cannot be sampled" if generates else f"arm {arm} of stage {stage} has none"
        raise ValueError(
            f"fd_every={recipe.fd_every} measures what a generator samples, and {why}; set it to 0"
        )
    out = Path(out)
    accelerator = Accelerator(
        mixed_precision="bf16" if torch.cuda.is_available() else "no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=data.PATIENCE),
        ],
    )
    if workers is None:
        workers = 2 if accelerator.device.type == "cuda" else 0
    main = accelerator.is_main_process
    execution.pieces(recipe.batch_size // accelerator.num_processes)
    if execution.shard and accelerator.num_processes == 1:
        raise ValueError(
            "shard spreads the generator over several processes, and this is the only one; leave it out, or "
            "start with `accelerate launch`"
        )
    # Softmaxes over codes are full of numbers below 1e-38, on which a CPU is many times slower than on zeros.
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    start_from = Run.from_pretrained(parent) if parent else None
    if start_from and start_from.folder.resolve().parent != out.resolve().parent:
        raise ValueError(f"parent {parent} does not lie beside {out}; put both runs in one folder")
    tokenizer = start_from.tokenizer if start_from else Tokenizer(recipe.tokenizer)
    if stage == "warmup":
        check_tokenizer(tokenizer.config, recipe.tokenizer, parent)
    captioned = bool(recipe.text_encoder)
    train_source, held_out = (
        data.load(
            source,
            split,
            tokenizer.config.image_size,
            folder,
            captions=captioned,
            combinations="seen" if recipe.held_out_combinations else "all",
        )
        for split in ("train", "val")
    )
    encoder = None
    if captioned and generates:
        length = recipe.generator.caption_length or text_encoders.LENGTH
        encoder = text_encoders.load_text_encoder(recipe.text_encoder, length)
    teacher, *more_teachers = load_teachers(recipe.teacher, tokenizer.grid, recipe.teacher_weights)
    # What follows from the data and the tokenizer is not the recipe's to choose.
    generator = dataclasses.replace(
        recipe.generator,
        classes=0 if encoder else len(train_source.classes),
        codes=tokenizer.config.codes,
        grid=tokenizer.grid,
        caption_dim=encoder.dim if encoder else 0,
        caption_length=encoder.length if encoder else 0,
    )
    recipe = dataclasses.replace(recipe, tokenizer=tokenizer.config, generator=generator)
    config = {
        "source": source,
        "stage": stage,
        "arm": arm,
        "seed": seed,
        "parent": Path(parent).name if parent else None,
        "classes": train_source.classes,
        "recipe": recipe.asdict(),
    }
    if main:
        config |= pictures_of(out, train_source)
        config["teacher_sha256"] = [each.fingerprint() for each in (teacher, *more_teachers)]
        prepare_folder(out, config, extend)
    accelerator.wait_for_everyone()
    if Run(out).finished:
        return Run(out)

    warm = stage == "joint" and start_from.has("discriminator")
    discriminator = Discriminator.from_pretrained(start_from.folder) if warm else None
    training = Stage(
        stage,
        arm,
        recipe,
        teacher,
        accelerator,
        tokenizer,
        discriminator,
        more_teachers,
        execution,
        null=encoder([""])[0] if encoder else None,
    )
    conditions: Conditions = ClassLabels(len(train_source.classes))
    if encoder:
        numbers = data.chosen(len(held_out), min(recipe.fd_samples, len(held_out)))[0]
        conditions = SourceCaptions(encoder, held_out, numbers)
    checkpoints, metrics = Checkpoints(out / "checkpoints"), out / "metrics.jsonl"
    state = checkpoints.load()
    start, elapsed = 0, 0.0
    if state:
        training.load_state_dict(state)
        start, elapsed = state["step"], state["seconds"]
    if main:
        checkpoints.sweep()
        resume_metrics(metrics, start)
        write_record(out, accelerator, execution, elapsed, finished=False)

    validation = held_out_batches(held_out, conditions, recipe, accelerator)
    distance = None
    if recipe.fd_every:
        distance = SampledDistance(held_out, conditions, training.teacher, recipe.fd_samples, accelerator)
    if recipe.token_views:
        # With the tokenizer's run, for every generator that is trained on it.
        kept = start_from.folder / "tokens" / f"{source}-{recipe.token_views}"
        tokens.encode(train_source, tokenizer, recipe.token_views, kept, accelerator, workers, progress)
        train_source = tokens.Encoded(train_source, kept, pixels=recipe.alignment_weight > 0)
    batches = data.stream(
        train_source,
        recipe.batch_size,
        seed,
        steps=recipe.steps - start,
        start=start,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        workers=workers,
    )
    meter, began, window = Meter(accelerator), time.monotonic(), time.monotonic()
    bar = tqdm(
        total=recipe.steps,
        initial=start,
        desc=f"{stage} {arm} seed {seed}",
        unit="step",
        disable=not (main and progress),
    )
    last_good = f"{checkpoints.paths()[-1]}" if checkpoints.paths() else "none yet"
    for step, batch in enumerate(batches, start=start + 1):
        seed_step(seed, step, accelerator.process_index)
        batch["condition"] = conditions.of_batch(batch)
        batch = {
            name: value.to(accelerator.device, non_blocking=True)
            for name, value in batch.items()
            if isinstance(value, Tensor)
        }
        images = data.to_float(batch["image"]) if "image" in batch else None
        meter.add(step, training.step(step, images, batch["condition"], batch.get("tokens")))
        if step % recipe.log_every and step < recipe.steps:
            continue
        row, bad = meter.read()
        if bad:
            raise DivergedError(
                f"loss {bad[1]!r} was not finite at step {bad[0]} of {out}; the last good "
                f"checkpoint is {last_good}. Start again with a lower learning rate: the same command would "
                "meet the same step"
            )
        row |= {name: value.item() for name, value in training.codebook_metrics().items()}
        checkpoint = step % recipe.checkpoint_every == 0 or step == recipe.steps
        if checkpoint:
            row |= validate(training, validation, accelerator)
        now = time.monotonic()
        steps_seen = (step - 1) % recipe.log_every + 1
        row |= {
            "images_per_second": steps_seen * recipe.batch_size / (now - window),
            "seconds": elapsed + now - began,
        }
        if distance and (step % recipe.fd_every == 0 or step == recipe.steps):
            row["val_fd"] = distance(*training.average())
        if main:
            with metrics.open("a") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")
            bar.update(step - bar.n)
            bar.set_postfix({name: f"{row[name]:.3f}" for name in SHOWN if name in row})
        if checkpoint:  # what is sharded, every process helps to gather
            parts, state = training.parts(), training.state_dict()
            if main:
                pictures(training, parts, validation[0][0], conditions, out, stage)
                seconds = elapsed + time.monotonic() - began
                if recipe.keep_every and step % recipe.keep_every == 0:
                    kept = snapshot(out, step, parts)
                    write_record(kept, accelerator, execution, seconds, finished=True)
                checkpoints.save(step, {**state, "seconds": seconds})
                last_good = checkpoints.paths()[-1]
            del parts, state
        window = time.monotonic()
    bar.close()
    parts, unread = training.parts(), skipped(train_source, held_out)
    if main:
        for name, module in parts.items():
            module.save_pretrained(out / name)
        seconds = elapsed + time.monotonic() - began
        write_record(out, accelerator, execution, seconds, finished=True, unread=unread)
        if unread:
            print(skipped_line(unread))
    accelerator.wait_for_everyone()
    return Run(out)


def snapshot(out: Path, step: int, parts: dict[str, nn.Module]) -> Path:
    """Write what a run is by now as a Run of its own, as if it had been asked for so many steps. Returns its
    folder, RUN/snapshots/step-..."""
    folder = out / "snapshots" / f"step-{step:09d}"
    for name, module in parts.items():
        module.save_pretrained(folder / name)
    shutil.copyfile(out / "metrics.jsonl", folder / "metrics.jsonl")
    config = read_json(out / "config.json", "a run")
    config["recipe"]["steps"] = step
    if config["parent"]:  # it lies beside `out`
        config["parent"] = f"../../{config['parent']}"
    write_json(folder / "config.json", config)  # last: it makes the folder a Run
    return folder


def write_record(
    out: Path,
    accelerator: Accelerator,
    execution: Execution,
    seconds: float,
    finished: bool,
    unread: Sequence[str] = (),
) -> None:
    """unread: the files found unreadable since the training was last started, by all processes."""
    write_json(
        out / "record.json",
        {
            "command": "gear-studio " + " ".join(sys.argv[1:]),
            "versions": versions(),
            "device": device_name(accelerator.device),
            "processes": accelerator.num_processes,
            "execution": dataclasses.asdict(execution),
            "seconds": round(seconds, 1),
            "finished": finished,
            "skipped": list(unread),
        },
    )


def held_out_batches(
    held_out: data.Source, conditions: Conditions, recipe: Recipe, accelerator: Accelerator
) -> list[tuple[Tensor, Tensor]]:
    """The validation images, the same for every run on this source, uint8 on the device in batches of 64, and
    what they show."""
    numbers = data.chosen(len(held_out), min(recipe.validation_images, len(held_out)))[0]
    batches = []
    for start in range(0, len(numbers), 64):
        batch = held_out.read(numbers[start : start + 64])
        batches.append(
            (batch["image"].to(accelerator.device), conditions.of_batch(batch).to(accelerator.device))
        )
    return batches


def validate(
    training: Stage, batches: list[tuple[Tensor, Tensor]], accelerator: Accelerator
) -> dict[str, float]:
    """Means over the validation images, named val_*. Every process looks at all of them: they are few."""
    totals: dict[str, Tensor] = {}
    with accelerator.autocast():
        for images, labels in batches:
            for name, value in training.validate(data.to_float(images), labels).items():
                totals[name] = totals.get(name, 0) + value.float()
    count = sum(len(images) for images, _ in batches)
    return {f"val_{name}": (total / count).item() for name, total in totals.items()}


@torch.no_grad()
def pictures(
    training: Stage,
    parts: dict[str, nn.Module],
    held_out: Tensor,
    conditions: Conditions,
    out: Path,
    stage: str,
) -> None:
    """Grids of EMA reconstructions (originals above) and, in the generator stage, of samples with guidance
    1.5."""
    if "tokenizer" in parts:
        images = data.to_float(held_out[:8])
        write_grid(torch.cat([images, parts["tokenizer"].reconstruct(images)]), out / "reconstructions.png")
    if stage == "generator":
        indices = sampling.sample(parts["generator"], conditions.for_samples(range(32)), seed=0)
        write_grid(training.tokenizer.decode(indices), out / "samples.png")
