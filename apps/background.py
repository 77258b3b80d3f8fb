"""Work beside the app: surveys and layouts of codebooks, each made once and kept for all visitors.

A layout takes many seconds: one process of low priority makes them, and the page shows what it has until
then.
"""

import os
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Lock, Thread

import numpy as np
from runs_on_offer import RunsOnOffer

from gear_studio import data
from gear_studio.analysis import codes


class Background:
    def __init__(self, runs: RunsOnOffer):
        self.runs = runs
        self._surveys: dict[str, codes.Survey] = {}
        self._surveying = Lock()
        self._layouts: dict[str, Future[np.ndarray]] = {}
        self._ordering = Lock()
        self._process = ProcessPoolExecutor(1, get_context("spawn"), _start_process)

    def survey(self, name: str) -> codes.Survey:
        """What the tokenizer of Run `name` does with 512 held-out pictures of the world. The first to ask
        computes it, others wait."""
        with self._surveying:
            if name not in self._surveys:
                tokenizer = self.runs.tokenizer(name)
                world = data.load("shapes", "val", tokenizer.config.image_size)
                self._surveys[name] = codes.survey(tokenizer, world)
            return self._surveys[name]

    def layout(self, name: str) -> Future[np.ndarray]:
        """UMAP of the codebook of Run `name`, (K, 2), done or under way."""
        codebook = self.runs.tokenizer(name).quantizer.codebook.detach().float().cpu().numpy()
        with self._ordering:
            if name not in self._layouts:
                self._layouts[name] = self._process.submit(codes.code_layout, codebook)
            return self._layouts[name]

    def warm_up(self, name: str) -> None:
        """Begin what the first visitor will ask for, in a thread."""

        def begin() -> None:
            self.survey(name)
            self.layout(name)

        Thread(target=begin, daemon=True).start()


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
