"""From a `Training` to something the loop can train: checked, gathered, built. Nothing is written here but
the tokens that are encoded ahead, with the run of their tokenizer."""

import copy
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn

from gear_studio import data, devices, sampling
from gear_studio.data import tokens
from gear_studio.data.picture_output import write_grid
from gear_studio.data.prompts import ClassLabels, Conditions, SourceCaptions
from gear_studio.data.stream import collect_skipped, describe_skipped
from gear_studio.errors import InputError, MissingError
from gear_studio.files import digest_file
from gear_studio.models import inception, text_encoders
from gear_studio.models.discriminator import Discriminator
from gear_studio.models.generator import Generator
from gear_studio.models.pretrained import Pretrained
from gear_studio.models.projector import Projector, ProjectorConfig
from gear_studio.models.teachers import TEACHERS, Teacher, load_teachers, teacher_names
from gear_studio.models.tokenizer import Tokenizer, TokenizerConfig
from gear_studio.places import check_parent, name_parent, results_folder, shipped_names
from gear_studio.runs import Run
from gear_studio.training.frozen_networks import features_in, keep_pictures
from gear_studio.training.recipes import Recipe, trains_generator
from gear_studio.training.request import Training
from gear_studio.training.run_folder import keep_snapshot
from gear_studio.training.sampled_distance import SampledDistance
from gear_studio.training.stages import FrozenAnswers, Stage, Start
from gear_studio.training.trackers import check_trackers, track_pictures


def check(training: Training) -> None:
    """Refuse settings that do not fit each other, and a run to build on that holds no tokenizer; without
    loading anything.

    Raises ValueError, for a device that is not there, too, and FileNotFoundError for that run."""
    recipe, stage, arm, out = training.resolved, training.stage, training.arm, training.out
    assert arm is not None and out is not None, "a training is completed before it is checked"
    check_trackers(training.track)
    if training.folder is not None and not data.find_source(training.source).on_disk:
        raise InputError(
            f"folder {training.folder} is of no use to source {training.source!r}; train on folder or "
            "shards, or leave it out"
        )
    devices.choose_device(training.execution.device)
    if recipe.token_views and recipe.text_encoder:
        raise InputError(
            f"token_views={recipe.token_views}: views encoded ahead keep no captions yet; set it to 0"
        )
    if recipe.token_views and recipe.kept_pictures:
        raise InputError(
            f"token_views={recipe.token_views} and kept_pictures={recipe.kept_pictures} are two ways to keep "
            "tokens; set one of them to 0"
        )
    if recipe.token_views and stage != "generator":
        raise InputError(
            f"token_views={recipe.token_views}: stage {stage} trains the tokenizer, so nothing can be "
            "encoded ahead; set it to 0, or use it in the generator stage"
        )
    if recipe.start != "fresh" and stage != "generator":
        raise InputError(
            f"start={recipe.start} is of the generator stage, and this is stage {stage}; leave it out"
        )
    generates = trains_generator(stage, arm)
    for name, every in (("fd_every", recipe.fd_every), ("fid_every", recipe.fid_every)):
        if every and (not generates or training.execution.shard):
            no_samples = "a sharded generator cannot be sampled"
            why = no_samples if generates else f"arm {arm} of stage {stage} has none"
            raise InputError(f"{name}={every} measures what a generator samples, and {why}; set it to 0")
    if (parent := training.parent_folder) is None:
        return
    if not (parent / "tokenizer").is_dir():
        raise MissingError(
            f"stage {stage} builds on {parent}, which holds no finished tokenizer; train that first, "
            "or name another run with --parent, such as one that ships "
            f"({', '.join(shipped_names('tokenizer'))})"
        )
    source = find_start(training)
    if source is not None and not (source / "generator").is_dir():
        ways = "name the run of a joint stage with --parent, or " if recipe.start == "joint" else ""
        raise MissingError(
            f"start={recipe.start} goes on with the generator of {source}, which holds none; {ways}train a "
            "new one with --start fresh"
        )
    check_parent(parent, out)


def find_start(training: Training) -> Path | None:
    """The folder of the Run whose generator trains on; None for a new one."""
    start = training.resolved.start
    if start == "fresh":
        return None
    return training.parent_folder if start == "joint" else Path(start)


def new_accelerator(training: Training) -> Accelerator:
    """`devices.new_accelerator`, with the trackers of a training. Raises as that and `check_launch`."""
    check_launch()
    out = str(training.out)
    return devices.new_accelerator(
        training.execution.device,
        log_with=list(training.track) or None,
        project_config=ProjectConfiguration(out, logging_dir=f"{out}/tensorboard"),
    )


def check_launch() -> None:
    """Refuse what a config of `accelerate launch` may ask for and a training does in its own way. Raises
    ValueError."""
    asked = [
        name
        for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")
        if devices.launched_with(name)
    ]
    if asked:
        raise InputError(
            f"Accelerate's config asks for {asked[0]}, and a training spreads its generator by itself: say "
            "distributed_type MULTI_GPU in the config, and --shard to `train`"
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise InputError(
            f"Accelerate's config asks for the dynamo backend {backend}; take it out, and say --compile to "
            "`train`"
        )


def check_share(training: Training, accelerator: Accelerator) -> None:
    """Refuse a batch or an execution that does not suit the number of processes. Raises ValueError."""
    batch_size, processes = training.resolved.batch_size, accelerator.num_processes
    if batch_size < 1 or batch_size % processes:
        raise InputError(
            f"batch_size {batch_size} does not divide among {processes} processes; use a multiple of it"
        )
    training.execution.pieces_of(batch_size // processes)
    if training.execution.shard and processes == 1:
        raise InputError(
            "shard spreads the generator over several processes, and this is the only one; leave it out, or "
            "start with `accelerate launch`"
        )


def check_tokenizer(held: TokenizerConfig, asked: TokenizerConfig, parent: str | Path) -> None:
    """Refuse a parent whose tokenizer is not the one a warm-up was asked for, naming what differs."""
    theirs, ours = (json.loads(json.dumps(dataclasses.asdict(config))) for config in (held, asked))
    if different := [name for name in ours if theirs[name] != ours[name]]:
        shown = ", ".join(f"{name} is {theirs[name]!r}, asked for {ours[name]!r}" for name in different[:3])
        raise InputError(
            f"parent {parent} holds another tokenizer than the recipe's ({shown}); choose the --recipe or "
            "--tokenizer that fits it, or another --parent"
        )


@dataclass
class Parts:
    """What a training is made of, beside its weights that are new."""

    training: Training
    arm: str
    out: Path
    recipe: Recipe
    """The one asked for, completed by what follows from pictures and tokenizer."""
    parent: Run | None
    tokenizer: Tokenizer
    """The training's own: new, or a copy of the parent's."""
    start: Start
    teachers: list[Teacher]
    encoder: text_encoders.TextEncoder | None
    """Of captions, where a generator is conditioned on them."""
    train_source: data.Source
    held_out: data.Source

    def config(self) -> dict[str, Any]:
        """What config.json says; of pictures on files `folder.describe_pictures` adds which."""
        training = self.training
        contents = {"teacher_sha256": [teacher.fingerprint() for teacher in self.teachers]}
        for name in ("perceptual", "inception_weights", "fd_teacher"):
            place = getattr(self.recipe, name)
            file = Path(place, "model.safetensors") if Path(place).is_dir() else Path(place)
            if place not in ("", "teacher", "lpips", *TEACHERS) and file.is_file():
                contents[f"{name}_sha256"] = [digest_file(file)]
        if self.encoder and (sha256 := self.encoder.fingerprint()):
            contents["text_encoder_sha256"] = [sha256]
        if self.recipe.start not in ("fresh", "joint"):
            contents["start_sha256"] = [digest_file(Path(self.recipe.start) / "generator/model.safetensors")]
        return {
            "source": training.source,
            "stage": training.stage,
            "arm": self.arm,
            "seed": training.seed,
            "parent": name_parent(self.parent.folder) if self.parent else None,
            "classes": self.train_source.classes,
            "recipe": self.recipe.asdict(),
            **contents,
        }


def gather_parts(training: Training) -> Parts:
    """Load everything a training starts from. A new tokenizer's weights are drawn here.

    Raises FileNotFoundError and ValueError for what is missing or does not fit."""
    recipe, stage, arm, out = training.resolved, training.stage, training.arm, training.out
    assert arm is not None and out is not None, "a training is completed before it is built"
    parent = Run(training.parent_folder) if training.parent_folder else None
    tokenizer = copy.deepcopy(parent.tokenizer) if parent else Tokenizer(recipe.tokenizer)
    if recipe.image_size:
        tokenizer.set_image_size(recipe.image_size)
    if parent and stage == "warmup":
        check_tokenizer(tokenizer.config, recipe.tokenizer, parent.folder)
    average: Tokenizer | None = None
    if parent and stage != "generator" and parent.has("live-tokenizer"):
        tokenizer, average = Tokenizer.from_pretrained(parent.folder / "live-tokenizer"), tokenizer
        tokenizer.set_image_size(average.config.image_size)
    train_source, held_out = (
        data.load(
            training.source,
            split,
            tokenizer.config.image_size,
            training.folder,
            captions=bool(recipe.text_encoder),
            combinations="seen" if recipe.held_out_combinations else "all",
        )
        for split in ("train", "val")
    )
    if recipe.token_views:
        tokens.check_source(train_source)
    encoder = None
    if recipe.text_encoder and trains_generator(stage, arm):
        encoder = text_encoders.load_text_encoder(
            recipe.text_encoder,
            recipe.generator.caption_length or text_encoders.LENGTH,
            devices.choose_device(training.execution.device),
        )
    teachers = load_teachers(recipe.teacher, tokenizer.grid, recipe.teacher_weights, recipe.teacher_block)
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
    start = gather_start(training, recipe, parent, average, teachers)
    return Parts(
        training, arm, out, recipe, parent, tokenizer, start, teachers, encoder, train_source, held_out
    )


def gather_start(
    training: Training,
    recipe: Recipe,
    parent: Run | None,
    average: Tokenizer | None,
    teachers: Sequence[Teacher],
) -> Start:
    """What the training starts from beside its tokenizer. A projector is taken where it is of the same
    teacher and size; else it is new."""
    discriminator = None
    if training.stage == "joint" and parent and parent.has("discriminator"):
        discriminator = Discriminator.from_pretrained(parent.folder)
    folder = find_start(training)
    if folder is None:
        return Start(average, discriminator)
    run = Run.from_pretrained(folder)
    known = run.config.get("teacher_sha256", [])
    same_block = run.config["recipe"].get("teacher_block", 0) == recipe.teacher_block
    projectors: list[Projector | None] = []
    for number, teacher in enumerate(teachers):
        part = run.folder / (f"projector-{teacher.name}" if number else "projector")
        projector = Projector.from_pretrained(part) if part.is_dir() else None
        expected = ProjectorConfig(recipe.generator.dim, teacher.dim, recipe.projector_hidden)
        same = same_block and known[number : number + 1] in ([], [teacher.fingerprint()])
        projectors.append(projector if projector and projector.config == expected and same else None)
    return Start(average, discriminator, run.generator, projectors)


class StageTrainee:
    """A `Stage` with the pictures it learns from and those it is measured on: the loop's `Trainee`.

    Raises what its parts raise, such as FileNotFoundError for a perceptual network that is missing."""

    shown = ("l1", "ntp", "alignment_soft", "alignment_hard", "usage")
    digits = None

    def __init__(self, parts: Parts, accelerator: Accelerator, progress: bool = True):
        training, recipe, held_out = parts.training, parts.recipe, parts.held_out
        self.training, self.recipe, self.out, self.accelerator = training, recipe, parts.out, accelerator
        self.train_source, self.held_out = parts.train_source, held_out
        self.title = f"{training.stage} {parts.arm} seed {training.seed}"
        self.record: Mapping[str, Any] = {"execution": dataclasses.asdict(training.execution), "skipped": []}
        self.workers = training.workers
        if self.workers is None:  # a GPU would wait for the drawing
            self.workers = 2 if accelerator.device.type == "cuda" else 0
        self.stage = self._new_stage(parts)
        parts.start = Start()  # its weights are in the stage by now
        self.conditions: Conditions = ClassLabels(len(self.train_source.classes))
        if parts.encoder:
            numbers = data.choose_pictures(len(held_out), min(recipe.fd_samples, len(held_out)))[0]
            self.conditions = SourceCaptions(parts.encoder, held_out, numbers)
        self.validation = read_validation_images(held_out, self.conditions, recipe, accelerator)
        self.known: list[FrozenAnswers] = []  # about the validation images
        self.distances: dict[str, SampledDistance] = {}
        if recipe.fd_every or recipe.fid_every:
            in_proportion = (
                parts.encoder is None
                and recipe.fd_classes == "reference"
                and not data.find_source(training.source).balanced
            )
            conditions = None if in_proportion else self.conditions
            networks: dict[str, nn.Module] = {}
            if recipe.fd_every:
                teacher = self.stage.teacher
                if recipe.fd_teacher not in ("teacher", teacher_names(recipe.teacher)[0]):
                    teacher = Teacher.from_pretrained(recipe.fd_teacher, parts.tokenizer.grid)
                networks["fd"] = teacher
            if recipe.fid_every:
                option = "--set inception_weights=FILE"
                networks["fid"] = inception.Inception(recipe.inception_weights or None, option)
            for name, network in networks.items():
                self.distances[name] = SampledDistance(
                    held_out, conditions, network.to(accelerator.device), recipe.fd_samples, accelerator
                )
        if recipe.token_views and parts.parent:
            # With the tokenizer's run, for every generator that is trained on it.
            size = f"-{recipe.image_size}px" if recipe.image_size else ""
            place = results_folder(parts.parent.folder) / "tokens"
            kept = place / f"{training.source}-{recipe.token_views}{size}"
            tokens.encode(
                self.train_source,
                self.stage.tokenizer,
                recipe.token_views,
                kept,
                accelerator,
                self.workers,
                progress,
            )
            with_pixels = recipe.alignment_weight > 0
            self.train_source = tokens.EncodedSource(self.train_source, kept, pixels=with_pixels)
        if recipe.kept_pictures:
            captions = parts.encoder is not None
            self.train_source = keep_pictures(self.train_source, captions, self.stage, progress)

    def _new_stage(self, parts: Parts) -> Stage:
        teacher, *more_teachers = parts.teachers
        return Stage(
            self.training.stage,
            parts.arm,
            self.recipe,
            teacher,
            self.accelerator,
            parts.tokenizer,
            parts.start,
            more_teachers,
            self.training.execution,
            null=parts.encoder([""])[0] if parts.encoder else None,
        )

    def batches(self, start: int) -> Iterable[dict[str, Any]]:
        return data.stream(
            self.train_source,
            self.recipe.batch_size,
            self.training.seed,
            steps=self.recipe.steps - start,
            start=start,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            workers=self.workers or 0,
        )

    def step(self, number: int, batch: dict[str, Any]) -> dict[str, Tensor]:
        batch = batch | {"condition": self.conditions.of_batch(batch)}
        on_device = {
            name: value.to(self.accelerator.device, non_blocking=True)
            for name, value in batch.items()
            if isinstance(value, Tensor)
        }
        images = data.to_float(on_device["image"]) if "image" in on_device else None
        condition, tokens = on_device["condition"], on_device.get("tokens")
        return self.stage.step(number, images, condition, tokens, features_in(on_device))

    def validate(self) -> dict[str, float]:
        """Means over the validation images, named val_*. Every process looks at all of them: they are few."""
        totals: dict[str, Tensor] = {}
        with self.accelerator.autocast():
            if self.recipe.kept_pictures and not self.known:
                self.known = [self.stage.ask_frozen(data.to_float(images)) for images, _ in self.validation]
            for number, (images, condition) in enumerate(self.validation):
                known = self.known[number] if self.known else None
                for name, value in self.stage.validate(data.to_float(images), condition, known).items():
                    totals[name] = totals.get(name, 0) + value.float()
        count = sum(len(images) for images, _ in self.validation)
        return {f"val_{name}": (total / count).item() for name, total in totals.items()}

    def measure(self, number: int) -> dict[str, float]:
        row = {name: value.item() for name, value in self.stage.measure_codes().items()}
        for name, distance in self.distances.items():
            if number % getattr(self.recipe, f"{name}_every") == 0 or number == self.recipe.steps:
                row[f"val_{name}"] = distance(self.stage.average_generator, self.stage.average_tokenizer)
        return row

    def state_dict(self) -> dict[str, dict]:
        return self.stage.state_dict()

    def load_state_dict(self, state: dict[str, dict]) -> None:
        self.stage.load_state_dict(state)

    def save_progress(self, number: int, write_record: Callable[[Path], None]) -> None:
        """Pictures, and a snapshot where the recipe keeps one."""
        parts = self.stage.gather_parts()
        if self.accelerator.is_main_process:
            track_pictures(self.accelerator, number, self._write_pictures(parts))
            if self.recipe.keep_every and number % self.recipe.keep_every == 0:
                write_record(keep_snapshot(self.out, number, parts))

    def save(self) -> dict[str, Any]:
        parts = self.stage.gather_parts()
        unread = collect_skipped(self.train_source, self.held_out)  # since the last start, by all processes
        if self.accelerator.is_main_process:
            for name, module in parts.items():
                module.save_pretrained(self.out / name)
            if unread:
                print(describe_skipped(unread))
        return {"skipped": unread}

    @torch.no_grad()
    def _write_pictures(self, parts: Mapping[str, Pretrained]) -> list[Path]:
        """Grids of EMA reconstructions (originals above) and, in the generator stage, of samples with
        guidance 1.5; where a tracker shows them, of the joint stage's samples, too. Returns their files."""
        files = []
        if "tokenizer" in parts:
            images = data.to_float(self.validation[0][0][:8])
            again = self.stage.average_tokenizer.reconstruct(images)
            files.append(self.out / "reconstructions.png")
            write_grid(torch.cat([images, again]), files[-1])
        if "generator" in parts and (self.training.stage == "generator" or self.accelerator.trackers):
            condition = self.conditions.for_samples(range(32))
            indices = sampling.sample(cast(Generator, parts["generator"]), condition, seed=0)
            files.append(self.out / "samples.png")
            write_grid(self.stage.average_tokenizer.decode(indices), files[-1])
        return files


def read_validation_images(
    held_out: data.Source, conditions: Conditions, recipe: Recipe, accelerator: Accelerator
) -> list[tuple[Tensor, Tensor]]:
    """The validation images, the same for every run on this source, uint8 on the device in batches of 64, and
    the conditions that ask for them."""
    numbers = data.choose_pictures(len(held_out), min(recipe.validation_images, len(held_out)))[0]
    batches = []
    for start in range(0, len(numbers), 64):
        batch = held_out.read(numbers[start : start + 64])
        batches.append(
            (batch["image"].to(accelerator.device), conditions.of_batch(batch).to(accelerator.device))
        )
    return batches
