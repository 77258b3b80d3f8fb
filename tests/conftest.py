"""One thread, in child processes too: the fastest for models this small where several workers share a
machine, and sums are the same everywhere."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import tiny
import torch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random teacher, for recipes to name."""
    folder = tmp_path_factory.mktemp("teacher")
    tiny.teacher().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    import browsing  # here: most tests need none

    with browsing.chromium() as running:
        yield running


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The explorer on the shipped runs."""
    import browsing

    folder = os.environ.get("GEAR_EXPLORER_RUNS")
    with browsing.serving(tmp_path_factory.mktemp("explorer"), folder) as url:
        yield url


@pytest.fixture
def page(browser: "Browser", address: str) -> "Iterator[Page]":
    import browsing

    with browsing.visiting(browser, address) as opened:
        yield opened


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "apps"))
    import app

    return app


@pytest.fixture
def explorer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "apps"))
    import explorer

    return explorer


# What starts a browser, a notebook or processes, compiles, or trains for more than seconds: whole files
# here, single tests by the mark.
SLOW = {
    "benchmarks",
    "cli",
    "endpoints",
    "explorer",
    "explorer_app",
    "explorer_runs",
    "inspection",
    "loop",
    "notebooks",
}
SLOW |= {"endpoints", "notebook_controls", "official", "processes", "prompt_tab", "readme", "site", "slurm"}
SLOW |= {"studies", "supervised", "wheel"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files that are slow as a whole are not even read where slow tests are left out: that alone takes a
    while. None: as pytest decides."""
    left_out = config.option.markexpr == "not slow"
    return True if left_out and collection_path.stem.removeprefix("test_") in SLOW else None


# Minutes each: they begin, so that no worker is left with one of them while the others have nothing to do.
LONGEST = ("notebooks", "explorer_runs", "explorer", "explorer_app", "notebook_controls", "architecture")
LONGEST += ("processes", "benchmarks", "studies", "cli")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rooms = {item: item.path.stem.removeprefix("test_") for item in items}
    for item, room in rooms.items():
        if room in SLOW:
            item.add_marker(pytest.mark.slow)
    # Needs --no-loadscope-reorder; the order within a file stays.
    items.sort(key=lambda item: LONGEST.index(rooms[item]) if rooms[item] in LONGEST else len(LONGEST))
