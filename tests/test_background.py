"""What the explorer computes beside the page: each piece is made once, however many ask for it at once."""

import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch

from gear_studio.models.tokenizer import Tokenizer
from gear_studio.runs import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "apps"))
from background import Background  # noqa: E402
from runs_on_offer import RunsOnOffer  # noqa: E402


def test_of_two_who_ask_for_a_layout_at_once_one_begins_it(monkeypatch: pytest.MonkeyPatch):
    both, begun = threading.Barrier(2), []

    def read(_: str) -> Tokenizer:
        both.wait(60)  # neither has begun yet
        return Tokenizer(tiny.TOKENIZER)

    background = Background(SimpleNamespace(tokenizer=read, folder=Path("runs"), device_asked=None))
    monkeypatch.setattr(background, "_submit", lambda *given: begun.append(given) or Future())
    pictures, survey = SimpleNamespace(key="some"), SimpleNamespace(counts=torch.zeros(64))
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: background.layout("run", pictures, survey), range(2))
    assert one is other and len(begun) == 1


def test_of_two_first_visitors_one_loads_the_language_model(monkeypatch: pytest.MonkeyPatch):
    runs, both, second, loaded = RunsOnOffer(None), threading.Barrier(2), threading.Event(), []

    def load(_: Run) -> SimpleNamespace:
        """As a cached property of Python 3.12 or later, which waits for nobody."""
        if not loaded:
            assert not second.wait(0.5)  # the other visitor is kept waiting
            loaded.append(SimpleNamespace())
        return loaded[-1]

    def visit(_: int) -> object:
        both.wait(60)
        encoder = runs.text_encoder(runs.captioned[0])
        second.set()
        return encoder

    monkeypatch.setattr(Run, "text_encoder", property(load))
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(visit, range(2))
    assert one is other and len(loaded) == 1
