"""One thread, in child processes too: the fastest for models this small where several workers share a
machine, and sums are the same everywhere."""

import os
from pathlib import Path

import pytest
import tiny
import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random teacher, for recipes to name."""
    folder = tmp_path_factory.mktemp("teacher")
    tiny.teacher().save_pretrained(folder)
    return folder


# What starts a browser, a notebook or processes, compiles, or trains for more than seconds: whole files
# here, single tests by the mark.
SLOW = {"benchmarks", "cli", "explorer", "inspection", "loop", "notebooks"}
SLOW |= {"processes", "prompt_tab", "readme", "site", "studies", "supervised", "wheel"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW:
            item.add_marker(pytest.mark.slow)
