"""Which Runs the explorer offers, by what they can do, and their models on one device."""

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TypeVar

import torch
from torch import nn

from gear_studio import runs
from gear_studio.devices import choose_device
from gear_studio.errors import InputError
from gear_studio.files import read_json
from gear_studio.looking.pictures import SMALL, Picture
from gear_studio.looking.view import Kept, View
from gear_studio.models.generator import Generator
from gear_studio.models.projector import Projector
from gear_studio.models.teachers import Teacher
from gear_studio.models.text_encoders import TextEncoder
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.places import find_parent, is_shipped
from gear_studio.runs import Run
from gear_studio.studies import CAPTIONS, SHIPPED, study_folders
from gear_studio.training import queue

Model = TypeVar("Model", bound=nn.Module)
LIMIT = 8 * 2**30  # bytes of models


class RunsOnOffer:
    """The Runs of the page by name, those that ship first. A model is read on first use and kept; where all
    take more than LIMIT bytes, those of the Run used longest ago leave.

    names: of all. tokenizers: of the Runs that hold a tokenizer. generators: of those with a generator of
    classes. captioned: of those with a generator of captions. lacking: why Runs cannot be offered, damaged
    ones too, by name. folder: where Runs that are opened in the page are put. device: where all models are;
    device_asked: how that was said, if it was. kept: what has been seen of pictures."""

    def __init__(self, folder: Path | None, device: str | None = None):
        """folder: where more Runs lie, beside the shipped ones. Raises ValueError when it holds none, and as
        `choose_device`."""
        self.device, self.device_asked = choose_device(device), device
        shipped = dict(runs.list_runs())
        shipped |= {study_name(name): run for name, run in runs.list_runs(SHIPPED / "runs").items()}
        more: list[Run] = []
        damaged: dict[str, str] = {}
        for place in [] if folder is None else [folder, *study_folders(folder)]:
            found, wrong = runs.find_runs(place)
            more += found.values()
            damaged |= wrong
        if folder is not None and not more and not queue.list_trainings(folder):
            raise InputError(
                f"{folder} holds no finished run; expected sub-folders such as gear-studio train writes "
                "(config.json, tokenizer/ or generator/), a generator's beside its tokenizer's"
            )
        self.folder = folder or Path("runs")
        self.names: list[str] = []
        self.tokenizers: list[str] = []
        self.generators: list[str] = []
        self.captioned: list[str] = []
        self._runs: dict[str, Run] = {}
        self._adding = Lock()
        self._used: dict[str, None] = {}  # with models in memory, the last used is last
        for name, run in shipped.items():
            self._offer(name, run)
        for run in more:
            if _lack_of(run) is None:
                self.add(run)
        if not self.tokenizers or not self.generators:
            raise InputError(
                "there are no trained runs to explore: train some (gear-studio reproduce) "
                "and name their folder with --runs FOLDER"
            )
        self.lacking = {} if folder is None else damaged | _find_lacking(folder)
        self.kept = Kept()
        # Two visitors who come at once read a model once; a teacher that is downloaded stops no tab.
        self._reading: dict[tuple[str, str], Lock] = defaultdict(Lock)

    def __getitem__(self, name: str) -> Run:
        if name not in self._runs:
            raise InputError(f"There is no run {name!r} in the list; choose one that is.")
        return self._runs[name]

    def add(self, run: Run) -> str:
        """Offer one more Run; returns its name in the lists. Raises ValueError for one without weights, and
        where its tokenizer is missing."""
        if not run.has("tokenizer") and not (run.has("generator") and _lack_of(run) is None):
            raise InputError(f"{run.folder} cannot be looked at: {_lack_of(run)}")
        with self._adding:
            for name, there in self._runs.items():
                if there.folder.resolve() == run.folder.resolve():
                    return name
            name = self.name_of(run)
            name = name if name not in self._runs else f"{run.folder.parent}/{run.name}"
            self._offer(name, run)
        return name

    def name_of(self, run: Run) -> str:
        """The name in the lists of a Run in the page's folder, or of one of its studies."""
        place = run.folder.parent
        of_study = place.resolve() in [folder.resolve() for folder in study_folders(self.folder)]
        return study_name(run.name, place.parent.name) if of_study else run.name

    def _offer(self, name: str, run: Run) -> None:
        self._runs[name] = run
        self.names.append(name)
        if run.has("tokenizer"):
            self.tokenizers.append(name)
        if run.has("generator"):
            captioned = run.config["recipe"].get("text_encoder")
            (self.captioned if captioned else self.generators).append(name)

    def default(self, names: list[str], stage: str, arm: str) -> str:
        """The first of `names` whose Run is of this stage and arm, else the last of them."""
        for name in names:
            if (self[name].config["stage"], self[name].config["arm"]) == (stage, arm):
                return name
        return names[-1]

    def tokenizer(self, name: str) -> Tokenizer:
        return self._use(name, "tokenizer", lambda run: run.tokenizer)

    def generator(self, name: str) -> Generator:
        return self._use(name, "generator", lambda run: run.generator)

    def projector(self, name: str) -> Projector:
        return self._use(name, "projector", lambda run: run.projector)

    def teacher(self, name: str) -> Teacher:
        self.tokenizer(name)  # whose grid it needs
        return self._use(name, "teacher", lambda run: run.teacher)

    def text_encoder(self, name: str) -> TextEncoder | None:
        self.generator(name)  # on whose device it is
        with self._reading[name, "text encoder"]:
            return self[name].text_encoder

    def _use(self, name: str, part: str, read: Callable[[Run], Model]) -> Model:
        """A model of the Run `name`, on the device."""
        with self._reading[name, part]:
            model = read(self[name]).to(self.device)
            if isinstance(model, Tokenizer) and model.config.image_size > SMALL:
                model.to(memory_format=torch.channels_last)  # the faster order of its convolutions
        with self._adding:
            self._used.pop(name, None)
            self._used[name] = None  # last
            sizes = {used: _count_bytes(self[used]) for used in self._used}
            for oldest in list(self._used)[:-1]:
                if sum(sizes.values()) <= LIMIT:
                    break
                del self._used[oldest], sizes[oldest]
                self._runs[oldest] = Run(self[oldest].folder)  # who still computes with the old one keeps it
        return model

    def view(self, name: str, picture: Picture) -> View:
        """A picture through the Run `name`, whose tokenizer is read first."""
        self.tokenizer(name)
        return View(self.kept, self[name], picture)

    def largest_picture(self) -> int:
        """Pixels a side of the largest picture that a tokenizer here takes."""
        return max(
            read_json(self[name].folder / "tokenizer" / "config.json", "a Tokenizer")["image_size"]
            for name in self.tokenizers
        )


def _count_bytes(run: Run) -> int:
    """Bytes of the models that a Run has read."""
    models = [part for part in vars(run).values() if isinstance(part, nn.Module)]
    return sum(tensor.nbytes for model in models for tensor in model.state_dict().values())


def _find_lacking(folder: Path) -> dict[str, str]:
    """What the generators' Runs in a folder lack whose tokenizer is not there, by name."""
    lacking = {}
    for path in sorted(folder.glob("*/config.json")):
        try:
            run = Run(path.parent)
        except (ValueError, OSError):  # `find_runs` says what is wrong
            continue
        lack = _lack_of(run) if run.has("generator") else None
        if lack:
            lacking[run.name] = lack
    return lacking


def _lack_of(run: Run) -> str | None:
    """What keeps a Run from being looked at; None where nothing does."""
    parent = run.config.get("parent")
    if run.has("tokenizer"):
        return None
    if not run.has("generator"):
        return "it holds no finished tokenizer and no generator"
    if parent is None:
        return "its config.json names no run of its tokenizer (parent)"
    folder = find_parent(parent, run.folder)
    if not (folder / "tokenizer").is_dir():
        where = "does not ship" if is_shipped(folder) else "does not lie beside it"
        return f"the run of its tokenizer, {parent}, {where}"
    return None


def check_name(name: str) -> str:
    """A name of a single folder. Raises ValueError for any other."""
    if not re.fullmatch(r"[\w+][\w+ .-]*", name):
        raise InputError(f"The name {name!r} cannot be a folder's; use letters, digits, - and _.")
    return name


def study_name(name: str, studies: str = "studies") -> str:
    """The name in the lists of a study's Run: without the settings of its captions, which do not fit.
    studies: which; those that ship unless said."""
    return name.replace("+" + "-".join(CAPTIONS), "+captions") + f" ({studies})"
