"""Work beside the app, each piece made once and kept for all visitors: surveys and layouts of codebooks,
teachers, likenesses.

The page shows what it has until a piece is done. A layout takes many seconds, most of them to compile UMAP:
one process of low priority makes them, and they are kept in the user's cache.
"""

import hashlib
import math
import os
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Generic, TypeVar

import numpy as np
from pictures import OWN, PicturesOnOffer
from runs_on_offer import RunsOnOffer

from gear_studio.analysis import codes
from gear_studio.analysis.features import umap_layout
from gear_studio.errors import UserError
from gear_studio.files import atomic
from gear_studio.looking.by_block import ByBlock, Patches, grow_by_block
from gear_studio.looking.likeness import Likeness, compare
from gear_studio.looking.pictures import SMALL, SourcePictures
from gear_studio.models.teachers import Teacher
from gear_studio.places import cache_folder
from gear_studio.runs import Run
from gear_studio.training.queue import Queue, is_finished

SURVEY, LARGE_SURVEY = 512, 32  # pictures of a survey; of those above SMALL px
LIKE, LARGE_LIKE = 32, 10  # of a likeness
MEASURED, LARGE_MEASURED = 256, 16  # of the measures by block
AT_ONCE = 2  # trainings; more would only share the same cores
TURN = 1.0  # seconds from one look at what waits to be trained to the next
LIMIT = 200  # pieces of work that are kept; a survey takes up to some 10 MB
AGAIN = 30.0  # seconds after which what has failed is tried again
OWN_TEACHER = "the run's own"
TEACHERS = (OWN_TEACHER, "tiny", "efficientnet-lite0", "dinov2-s", "dinov2-b", "dinov2-l")  # on offer
Found = TypeVar("Found")


@dataclass(frozen=True)
class Grown(Generic[Found]):
    """What has been found in the first `count` of `total` pictures, after some seconds."""

    found: Found
    count: int
    total: int
    seconds: float

    @property
    def seconds_left(self) -> float:
        return self.seconds / self.count * (self.total - self.count)


@dataclass(frozen=True, eq=False)
class PatchMap:
    """Patches laid out in two dimensions, (m, 2)."""

    patches: Patches
    layout: np.ndarray


class Background:
    """weights: files of published teachers, by name, instead of a download."""

    def __init__(
        self,
        runs: RunsOnOffer,
        pictures: PicturesOnOffer | None = None,
        weights: Mapping[str, Path] | None = None,
    ):
        self.runs = runs
        self.weights = weights or {}
        self.pictures = pictures or PicturesOnOffer()
        self._work: dict[Hashable, Future] = {}
        self._failed: dict[Hashable, float] = {}  # when; the page asks every second while it waits
        self._ordering = Lock()  # held for looking up, never while working
        self._grown: dict[Hashable, Grown] = {}
        self._process = _start_pool()
        self.trainings = Queue(runs.folder, AT_ONCE, runs.device_asked)

    def keep_training(self) -> None:
        """From now on start the trainings whose turn it is, and offer what they have made."""

        def work() -> None:
            offered: set[Path] = set()
            while True:
                with suppress(UserError, OSError):  # the tab Train says what is wrong
                    self.trainings.advance()
                    for folder in self.trainings.makes():
                        if folder not in offered and is_finished(folder):
                            offered.add(folder)
                            self.runs.add(Run(folder))
                time.sleep(TURN)

        Thread(target=work, daemon=True).start()

    def survey(self, name: str, pictures: SourcePictures) -> Future[codes.Survey]:
        """What the tokenizer of Run `name` does with some of the pictures, done or under way."""
        key = "survey", name, pictures.key

        def work() -> codes.Survey:
            tokenizer = self.runs.tokenizer(name)
            size = tokenizer.config.image_size
            some = pictures.some(size, SURVEY if size <= SMALL else LARGE_SURVEY)
            begun = time.monotonic()
            for survey in codes.grow_survey(tokenizer, some, len(some)):
                seconds = time.monotonic() - begun
                self._grown[key] = Grown(survey, len(survey.images), len(some), seconds)
            return survey

        return self._begin(key, work)

    def survey_so_far(self, name: str, pictures: SourcePictures) -> Grown[codes.Survey] | None:
        """How far a survey is; None before its first pictures."""
        return self._grown.get(("survey", name, pictures.key))

    def known_survey(self, name: str, pictures: SourcePictures) -> Future[codes.Survey] | None:
        """The survey if it has been begun, maybe failed."""
        return self._work.get(("survey", name, pictures.key))

    def teacher(self, name: str, asked: str) -> Future[Teacher]:
        """A teacher with a vector for each token of Run `name`, being read or there. asked: OWN_TEACHER, or
        as in `Teacher.from_pretrained`."""
        if asked == OWN_TEACHER:
            return self._begin(("teacher", name), lambda: self.runs.teacher(name))
        grid = self.runs.tokenizer(name).grid
        weights = self.weights.get(asked)
        return self._begin(
            ("teacher", asked, grid),
            lambda: Teacher.from_pretrained(asked, grid, weights).to(self.runs.device),
        )

    def likeness(self, name: str, pictures: SourcePictures, asked: str, teacher: Teacher) -> Future[Likeness]:
        """How alike z and c_q of Run `name` are to a teacher, over some of the pictures."""

        def work() -> Likeness:
            tokenizer = self.runs.tokenizer(name)
            size = tokenizer.config.image_size
            some = pictures.some(size, LIKE if size <= SMALL else LARGE_LIKE)
            return compare(tokenizer, teacher, some, pictures.name)

        return self._begin(("likeness", name, pictures.key, asked), work)

    def by_block(
        self, name: str, pictures: SourcePictures, asked: str, teacher: Teacher | None
    ) -> Future[ByBlock]:
        """Measures at every place of Run `name` over some of the pictures, done or under way. teacher: what
        was `asked` for, None where it cannot be had."""
        key = _by_block_key(name, pictures, asked, teacher)

        def work() -> ByBlock:
            tokenizer, run = self.runs.tokenizer(name), self.runs[name]
            generator = self.runs.generator(name) if run.has("generator") else None
            size = tokenizer.config.image_size
            total = len(pictures.numbers(pictures_measured(size)))
            begun = time.monotonic()
            for read, found in grow_by_block(tokenizer, generator, teacher, pictures, total):
                self._grown[key] = Grown(found, read, total, time.monotonic() - begun)
            return found

        return self._begin(key, work)

    def by_block_so_far(
        self, name: str, pictures: SourcePictures, asked: str, teacher: Teacher | None
    ) -> Grown[ByBlock] | None:
        """How far the measures are; None before the first."""
        return self._grown.get(_by_block_key(name, pictures, asked, teacher))

    def layout(self, name: str, pictures: SourcePictures, survey: codes.Survey) -> Future[np.ndarray]:
        """UMAP of the codes of Run `name` that a whole survey of the pictures has found in use, as
        `codes.code_layout` gives it, done or under way; tried again where its process has died."""
        key = "layout", name, pictures.key

        def find() -> Future | None:
            future = self._work.get(key)
            died = future and future.done() and isinstance(future.exception(), BrokenProcessPool)
            return None if died else future

        with self._ordering:
            if future := find():
                return future
        codebook = self.runs.tokenizer(name).quantizer.codebook.detach().float().cpu().numpy()
        with self._ordering:  # meanwhile another visitor may have begun it
            if not (future := find()):
                future = self._work[key] = self._lay_out(codes.code_layout, codebook, survey.counts.numpy())
            return future

    def patch_map(
        self, name: str, pictures: SourcePictures, asked: str, teacher: Teacher | None, place: str
    ) -> Future[PatchMap]:
        """UMAP of patches by their features at a place of Run `name`, done or under way once `by_block` has
        read them."""

        def work() -> PatchMap:
            patches = self.by_block(name, pictures, asked, teacher).result().patches
            assert patches is not None  # measures over all pictures have them
            with self._ordering:
                layout = self._lay_out(umap_layout, patches.features[place].numpy())
            return PatchMap(patches, layout.result())

        return self._begin(("patch map", place, *_by_block_key(name, pictures, asked, teacher)), work)

    def warm_up(self, name: str) -> None:
        """Begin what the first visitor will ask for, in a thread."""

        def begin() -> None:
            pictures = self.pictures.collection(OWN, self.runs[name])
            survey = self.survey(name, pictures)
            if not survey.exception():
                self.layout(name, pictures, survey.result())

        Thread(target=begin, daemon=True).start()

    def _begin(self, key: Hashable, work: Callable[[], Any]) -> Future:
        """`work` in a thread of its own, done or under way; tried again where it failed some time ago."""
        with self._ordering:
            if key in self._work and time.monotonic() < self._failed.get(key, math.inf) + AGAIN:
                return self._work[key]
            self._failed.pop(key, None)
            self._forget()
            future = self._work[key] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except Exception as error:  # it reaches the page, which says what is missing
                self._failed[key] = time.monotonic()
                future.set_exception(error)

        Thread(target=run, daemon=True).start()
        return future

    def _lay_out(self, function: Callable[..., np.ndarray], *given: np.ndarray) -> "Future[np.ndarray]":
        """What a function lays out, as it was kept, or made and kept."""
        file = _kept_at(function, *given)
        layout: Future[np.ndarray] = Future()
        with suppress(OSError, EOFError, ValueError):  # not there, or damaged: it is made
            layout.set_result(np.load(file))
            return layout
        layout = self._submit(function, *given)

        def keep(made: "Future[np.ndarray]") -> None:
            with suppress(OSError):  # a full disk keeps nothing
                if not made.exception():
                    with atomic(file) as temporary, temporary.open("wb") as opened:
                        np.save(opened, made.result())

        layout.add_done_callback(keep)
        return layout

    def _submit(self, function: Callable[..., Any], *given: Any) -> Future:
        """Have the process of low priority do it; another one where that has died."""
        try:
            return self._process.submit(function, *given)
        except BrokenProcessPool:
            self._process = _start_pool()
            return self._process.submit(function, *given)

    def _forget(self) -> None:
        """Let go of what was begun longest ago and has ended, where there is too much."""
        for key in list(self._work)[: max(0, len(self._work) - LIMIT)]:
            if self._work[key].done():
                del self._work[key]
                self._grown.pop(key, None)


def pictures_measured(image_size: int) -> int:
    """Of how many pictures of so many pixels a side the measures by block are at most."""
    return MEASURED if image_size <= SMALL else LARGE_MEASURED


def _by_block_key(name: str, pictures: SourcePictures, asked: str, teacher: Teacher | None) -> tuple:
    return "by block", name, pictures.key, asked, teacher is None


def _kept_at(function: Callable, *given: np.ndarray) -> Path:
    """The file of what this function lays out of these, by this release of UMAP."""
    digest = hashlib.sha256(f"{function.__name__} {version('umap-learn')}".encode())
    for array in given:
        digest.update(f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return cache_folder("layouts") / f"{digest.hexdigest()}.npy"


def _start_pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), _start_process)


def _start_process() -> None:
    """Make the process of the layouts yield to the app, and end when the app ends."""
    if hasattr(os, "nice"):  # not on Windows
        os.nice(10)
    app = parent_process()
    assert app is not None  # it is the pool that calls this, in its process

    def end_with_app() -> None:
        app.join()
        os._exit(0)

    Thread(target=end_with_app, daemon=True).start()
