"""Run: a folder on disk with everything one training left behind. The zoo is a set of shipped Runs.

    config.json       what was asked for: source (of files: which), stage, arm, seed, parent, the whole recipe
    record.json       what happened: command, versions, device, seconds, finished or not, files skipped
    metrics.jsonl     one JSON object a line, every `log_every` steps
    tokenizer/ generator/ projector/     EMA weights (safetensors), each with its own config.json
    discriminator/ live-tokenizer/       what the joint stage starts from, beside the average
    *.png             reconstruction and sample grids
    evaluation.json   what `gear-studio evaluate` measured
    checkpoints/      resumable state, never shipped
    snapshots/        what it was at earlier steps (recipe.keep_every), Runs themselves
    .lock             held by the process that writes here (`locks`)

Runs without weights, as most of the shipped studies are, may share one file instead (`run_files`).

A Run is the only thing that crosses from training to looking: notebooks, app and CLI read Runs. A generator's
Run names the Run of the tokenizer it was trained on (`parent`); the two lie side by side, or that one ships.
"""

import copy
import math
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from gear_studio import cards, hub, sampling
from gear_studio.errors import InputError, MissingError, UnknownNameError
from gear_studio.files import one_line, read_json, write_json
from gear_studio.models import text_encoders
from gear_studio.models.conditions import CaptionCondition
from gear_studio.models.generator import Generator
from gear_studio.models.pretrained import Pretrained, read_shapes
from gear_studio.models.projector import Projector
from gear_studio.models.teachers import Teacher, teacher_names
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.places import ZOO, find_parent, repository_of
from gear_studio.run_files import (
    NoRun,
    holds,
    is_shared,
    read_config,
    read_evaluation,
    read_metrics,
    read_record,
    small_files,
    write_small_files,
)

PARTS: dict[str, type[Pretrained]] = {"tokenizer": Tokenizer, "generator": Generator, "projector": Projector}


def list_runs(folder: str | Path = ZOO) -> "dict[str, Run]":
    """The Runs directly inside a folder that hold weights and have a tokenizer, their own or their parent's,
    by name.

    Anything else there (the teacher, a training under way) is passed over; a warning names folders that are
    damaged, each once."""
    runs, damaged = find_runs(folder)
    for reason in damaged.values():
        warnings.warn(f"passed over: {reason}", stacklevel=2)
    return runs


def find_runs(folder: str | Path = ZOO) -> "tuple[dict[str, Run], dict[str, str]]":
    """As `list_runs`, and beside the Runs the folders that are damaged: by name, what is wrong."""
    runs, damaged = {}, {}
    for path in sorted(Path(folder).glob("*/config.json")):
        name = path.parent.name
        try:
            run = Run(path.parent)
            if any(map(run.has, PARTS)):
                _ = run.tokenizer_folder
                runs[name] = run
        except NoRun:
            continue
        except (ValueError, OSError) as error:
            damaged[name] = one_line(error)
    return runs, damaged


class Run:
    """The folder of one training; models are loaded when they are first asked for, and kept.

    Raises FileNotFoundError or ValueError where a folder is no Run."""

    folder: Path
    name: str
    config: dict[str, Any]

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.name = (repository_of(self.folder) or self.folder.name).rpartition("/")[2]
        self.config = read_config(self.folder)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path) -> Self:
        """A Run from its folder, a shipped one by name, or one of the Hugging Face Hub by OWNER/NAME, which
        is downloaded once.

        Raises FileNotFoundError or ValueError where there is no Run."""
        files = ["*.json", "*.jsonl", "*.png", *(f"{part}/model.safetensors" for part in PARTS)]
        return cls(hub.find_folder(name_or_folder, files, lambda place: place.is_dir() or is_shared(place)))

    def __repr__(self) -> str:
        """One line: stage, arm, source and seed, the parts that lie in its folder, and its steps."""
        asked = self.config
        what = [f"stage {asked['stage']}"] + ([f"arm {asked['arm']}"] if asked["arm"] else [])
        what += [f"{asked['source']}, seed {asked['seed']}"] if asked["source"] else []
        parts = ", ".join(part for part in PARTS if self.has(part)) or "no weights"
        built_on = f", built on {asked['parent']}" if asked["parent"] else ""
        try:
            state = "finished" if self.finished else "not finished"
        except ValueError:
            state = "its record.json is damaged"
        steps = f"{asked['recipe']['steps']} steps, " if "steps" in asked["recipe"] else ""
        return f"<Run {self.name}: {', '.join(what)}; {parts}{built_on}; {steps}{state}>"

    @property
    def record(self) -> dict:
        return read_record(self.folder)

    @property
    def finished(self) -> bool:
        return holds(self.folder, "record.json") and self.record["finished"]

    @cached_property
    def metrics(self) -> list[dict]:
        """The metrics, oldest first. Raises ValueError naming a line that is damaged."""
        return read_metrics(self.folder)

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of one metric, two float arrays of equal length, at the steps where it was
        measured."""
        rows = [(row["step"], row[key]) for row in self.metrics if key in row]
        if not rows:
            known = sorted({name for row in self.metrics for name in row} - {"step"})
            raise UnknownNameError(f"run {self.name} has no metric {key!r}; it has {', '.join(known)}")
        steps, values = np.array(rows, dtype=float).T
        return steps, values

    @cached_property
    def evaluation(self) -> dict:
        """What `gear-studio evaluate` wrote, empty before that."""
        return read_evaluation(self.folder)

    def setting(self, name: str) -> Any:
        """A value of the recipe. Raises ValueError where config.json has none."""
        if name not in self.config["recipe"]:
            raise InputError(f"{self.folder / 'config.json'} has no {name} in its recipe; write it there")
        return self.config["recipe"][name]

    @cached_property
    def parent(self) -> "Run | None":
        """The Run this one started from: the tokenizer's, or the warm-up's."""
        if not (name := self.config["parent"]):
            return None
        folder = find_parent(name, self.folder)
        if not (folder.is_dir() or is_shared(folder)):
            raise MissingError(f"run {self.name} is built on {name}, which is not there: put it at {folder}")
        return Run(folder)

    def pictures_folder(self) -> Path | None:
        """Where the pictures lay that a Run on files was trained on; None of other Runs.

        Raises FileNotFoundError where they are there no longer."""
        pictures = self.config.get("pictures")
        if not pictures:
            return None
        folder = Path(pictures["folder"])
        is_pattern = any(sign in folder.name for sign in "*?[{")
        if not folder.exists() and not (is_pattern and folder.parent.is_dir()):
            raise MissingError(
                f"run {self.name} was trained on the pictures in {folder}, which is not there; say where "
                "they are now with --folder"
            )
        return folder

    def has(self, part: str) -> bool:
        return (self.folder / part).is_dir()

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's weights lie: in this Run, or in the nearest it is built on.

        Raises FileNotFoundError where none has them, ValueError for a Run that is built on itself."""
        run, seen = self, list[Path]()
        while not run.has("tokenizer") and run.parent is not None:
            seen.append(run.folder.resolve())
            run = run.parent
            if run.folder.resolve() in seen:
                raise InputError(
                    f"{self.folder / 'config.json'} names a parent that is built on the run itself "
                    f"({run.config['parent']}); name the run of its tokenizer there"
                )
        return run._own("tokenizer")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The EMA tokenizer: this Run's own, or its parent's, for pictures of the size that this Run had."""
        if self.tokenizer_folder == self.folder or self.parent is None:
            return Tokenizer.from_pretrained(self.folder)
        size = self.config["recipe"].get("image_size")
        if not size or size == self.parent.tokenizer.config.image_size:
            return self.parent.tokenizer
        tokenizer = copy.deepcopy(self.parent.tokenizer)
        tokenizer.set_image_size(size)
        return tokenizer

    @cached_property
    def generator(self) -> Generator:
        return Generator.from_pretrained(self._own("generator"))

    @cached_property
    def text_encoder(self) -> text_encoders.TextEncoder | None:
        """The encoder of the captions that the generator is conditioned on, on the generator's device; None
        for class labels.

        Raises ImportError or FileNotFoundError where a language model cannot be had."""
        recipe = self.config["recipe"]
        if not self.has("generator") or not recipe.get("text_encoder"):
            return None
        length = recipe["generator"]["caption_length"]
        device = self.generator.token_table.device
        return text_encoders.load_text_encoder(recipe["text_encoder"], length, device)

    def encode(self, captions: list[str]) -> torch.Tensor:
        """Captions as a condition of the generator, (B, T, 1 + caption_dim), on its device.

        Raises ValueError for a generator of class labels."""
        condition = self.generator.condition if self.text_encoder else None
        if self.text_encoder is None or not isinstance(condition, CaptionCondition):
            raise InputError(
                f"run {self.name} has no generator that takes captions; train one with --condition caption"
            )
        if not condition.null.any():  # an imported one: released files leave it to the encoder
            condition.null.copy_(self.text_encoder([""])[0])
        return self.text_encoder(captions).to(condition.null.device)

    @torch.no_grad()
    def sample(self, asked: str | int | Sequence[str | int], **settings: Any) -> torch.Tensor:
        """Draw pictures, one for each that is asked for: (B, 3, H, W) in [-1, 1], where the models are.

        asked: names or numbers of classes, as in `class_numbers`, or captions of a generator that takes them;
        one alone stands for a list of one. settings: as in `sampling.sample`, such as cfg_scale and seed.
        Raises ValueError for a class that there is not and a setting out of range, FileNotFoundError where
        the Run holds no generator."""
        each = [asked] if isinstance(asked, str | int) else list(asked)
        generator, tokenizer = self.generator, self.tokenizer
        condition = self.encode(list(map(str, each))) if self.text_encoder else self.class_numbers(each)
        indices = sampling.sample(generator, condition, **settings)
        return tokenizer.decode(indices.to(next(tokenizer.parameters()).device))

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """What the tokenizer makes of images (B, 3, H, W), float in [-1, 1]: the same shape and range, where
        the tokenizer is.

        Raises ValueError for images of another shape or type."""
        if not images.is_floating_point():
            raise InputError(
                f"images have type {images.dtype}; expected float in [-1, 1]: data.to_float makes them of "
                "uint8"
            )
        return self.tokenizer.reconstruct(images.to(next(self.tokenizer.parameters()).device))

    @cached_property
    def projector(self) -> Projector:
        return Projector.from_pretrained(self._own("projector"))

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher that the Run was aligned with (of several, the first), one patch a token.

        Raises FileNotFoundError where its weights are missing, ValueError where they are others than in
        training."""
        recipe = self.config["recipe"]
        name, weights = teacher_names(self.setting("teacher"))[0], recipe.get("teacher_weights")
        file, block = weights[0] if weights else None, recipe.get("teacher_block", 0)
        teacher = Teacher.from_pretrained(name, self.tokenizer.grid, file, block)
        here = teacher.fingerprint()
        then = self.config.get("teacher_sha256", [here])[0]
        if then != here:
            raise InputError(
                f"run {self.name} was trained with other weights of teacher {name!r} (teacher_sha256 in its "
                f"config.json begins with {then[:12]}, that of the weights here with {here[:12]}); what it "
                "learnt does not compare with these, bring the ones it was trained with"
            )
        return teacher

    def alignment_target(self, features: torch.Tensor) -> torch.Tensor:
        """The teacher's features (B, N, d_f) after the spatial norm of the Run's recipe, as the projector
        was aligned with them."""
        recipe = self.config["recipe"]
        norm = recipe.get("spatial_norm", "none"), recipe.get("spatial_norm_alpha", 0.6)
        return self.teacher.alignment_target(features, *norm)

    def class_numbers(self, classes: Sequence[str | int]) -> list[int]:
        """The numbers of classes. An int is a number; a string is a name, or number:5. Where no class has a
        whole number for a name, "5" is a number too.

        Raises ValueError naming the first that is unknown, or the name of several classes."""
        names: list[str] = self.config["classes"]
        by_number = {f"number:{i}": i for i in range(len(names))}
        if not any(name.isdecimal() for name in names):
            by_number |= {str(i): i for i in range(len(names))}
        numbers = []
        for asked in classes:
            shared = [i for i, name in enumerate(names) if name == asked]
            if len(shared) > 1:
                each = " or ".join(f"number:{i}" for i in shared)
                raise InputError(
                    f"{len(shared)} classes of run {self.name} are called {asked!r}; write {each}"
                )
            spelled = asked if isinstance(asked, str) else f"number:{asked}"
            number = shared[0] if shared else by_number.get(spelled)
            if number is None:
                some = ", ".join(names[:24]) + (f" and {len(names) - 24} more" if len(names) > 24 else "")
                raise InputError(
                    f"unknown class {asked!r}; choose from {some}, or a number, number:0 to "
                    f"number:{len(names) - 1}"
                )
            numbers.append(number)
        return numbers

    def _own(self, part: str) -> Path:
        if not self.has(part):
            raise MissingError(f"run {self.name} ({self.config['stage']}) holds no {part}")
        return self.folder

    def save_pretrained(
        self,
        folder: str | Path,
        parts: tuple[str, ...] = tuple(PARTS),
        dtype: torch.dtype | None = torch.float16,
    ) -> None:
        """Ship this Run: the weights of `parts` as `dtype` (None: as they are), metrics, records and
        pictures, without checkpoints."""
        folder = Path(folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if is_shared(self.folder):
            write_small_files(folder, small_files(self.folder))
            return
        for path in sorted(self.folder.iterdir()):
            if path.suffix in {".json", ".jsonl", ".png"}:
                shutil.copyfile(path, folder / path.name)
        for part in parts:
            if self.has(part):
                getattr(self, part).save_pretrained(folder / part, dtype=dtype)

    def save_for_hub(self, folder: str | Path, name: str, license: str | None = None) -> None:
        """Write what `push_to_hub` uploads into a new folder: this Run with its tokenizer, wherever that
        lies, and a model card for OWNER/NAME. Places of this machine are taken out of what is written.

        Raises ValueError for a name that cannot be one, for a folder that holds something, and for a Run that
        is not finished or has no weights."""
        hub.check_name(name)
        folder = Path(folder)
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise InputError(f"{folder} is there already; name a new folder")
        if not self.finished:
            raise InputError(f"run {self.name} is not finished; train it to its end before it is published")
        if not any(map(self.has, PARTS)):
            raise InputError(f"run {self.name} holds no weights; publish one that does")
        tokenizer = self.tokenizer
        self.save_pretrained(folder, dtype=None)
        if not self.has("tokenizer"):
            tokenizer.save_pretrained(folder / "tokenizer")
        for path in folder.glob("*.json"):
            write_json(path, hub.without_places(read_json(path, "a run")))
        shapes = {
            part: read_shapes(folder / part / "model.safetensors")
            for part in PARTS
            if (folder / part).is_dir()
        }
        weights = {part: sum(map(math.prod, held.values())) for part, held in shapes.items()}
        card = cards.of_run(
            name, read_config(folder), read_record(folder), read_evaluation(folder), weights, license
        )
        (folder / hub.CARD).write_text(card, encoding="utf-8")

    def push_to_hub(self, name: str, private: bool = False, license: str | None = None) -> str:
        """Publish this Run on the Hugging Face Hub as OWNER/NAME, with a model card. private: where the
        repository is made now. license: as the Hub writes it, such as apache-2.0. Returns the address.

        Raises as `save_for_hub`, and RuntimeError where the Hub cannot be used, saying why."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_for_hub(folder, name, license)
            return hub.upload(Path(folder), name, private)
