"""The Dockerfile, without Docker: what it copies is there, and what the image runs is a command of ours."""

import json
import re
import sys
from pathlib import Path

import tyro

HERE = Path(__file__).parents[1]
LINES = (HERE / "Dockerfile").read_text().replace("\\\n", " ").splitlines()


def said(instruction: str) -> list[str]:
    return [line.removeprefix(instruction).strip() for line in LINES if line.startswith(f"{instruction} ")]


def test_what_is_copied_is_there_and_is_not_ignored():
    copied = [source for line in said("COPY") for source in line.split()[:-1]]
    ignored, *kept = (HERE / ".dockerignore").read_text().split()
    assert ignored == "*" and {line[1:] for line in kept if line[0] == "!"} == set(copied)
    assert all((HERE / source).exists() for source in copied) and "apps" in copied


def test_the_image_runs_the_explorer_for_all_who_can_reach_it(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE / "apps"))
    import explorer

    (command,) = map(json.loads, said("CMD"))
    assert command[:2] == ["gear-studio", "explorer"]
    options = tyro.cli(explorer.Options, args=command[2:])
    assert options.read_only and options.host == "0.0.0.0" and [str(options.port)] == said("EXPOSE")
    (version,) = re.findall(r"python:(3\.\d+)", said("FROM")[0])
    assert f"Python :: {version}" in (HERE / "pyproject.toml").read_text() and sys.version_info >= (3, 11)
