"""The wheel: everything that ships is in it, and its commands work from another folder."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import gear_studio

HERE = Path(__file__).parents[1]
KINDS = {".py", ".css", ".js", ".json", ".jsonl", ".safetensors", ".png", ".csv", ".md"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, where an earlier build has left a file that is there no more."""
    copy = tmp_path_factory.mktemp("copy")
    for folder in ("gear_studio", "apps"):
        shutil.copytree(HERE / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(HERE / name, copy)
    (build,) = re.findall(
        r"^wheel:.*\n\t.*\n\t\$\(BIN\)/python (-c .*)", (HERE / "Makefile").read_text(), re.M
    )

    def run(words: str, folder: Path) -> None:
        subprocess.run(
            ["bash", "-c", f'"{sys.executable}" {words}'], cwd=folder, check=True, capture_output=True
        )

    run(build.replace("build_wheel", "build_sdist"), copy)
    (sources,) = (copy / "dist").iterdir()
    with tarfile.open(sources) as file:
        file.extractall(copy, filter="data")
    copy /= sources.name.removesuffix(".tar.gz")
    stale = copy / "build" / "lib" / "gear_studio" / "zoo" / "stale.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    run(build, copy)
    (built,) = (copy / "dist").iterdir()
    return built


def test_all_of_the_package_and_the_app_is_in_it(wheel):
    def files(folder: str, where: str) -> set[str]:
        paths = (path for path in (HERE / folder).rglob("*") if path.suffix in KINDS)
        return {f"{where}/{path.relative_to(HERE / folder).as_posix()}" for path in paths}

    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
    assert held == files("gear_studio", "gear_studio") | files("apps", "gear_studio/apps")
    assert "gear_studio/apps/explorer.css" in held and len(held) > 300


def test_its_commands_work_from_another_folder(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    elsewhere.mkdir()
    (named,) = site.glob("*.dist-info/entry_points.txt")
    assert "gear-studio = gear_studio.cli:main" in named.read_text()
    zoo = site / "gear_studio" / "zoo"
    before = {path: path.stat().st_mtime_ns for path in zoo.rglob("*")}
    script = """
import sys
from gear_studio import cli
cli.run(["--version"])
cli.run(["study", "text", "--from-zoo"])
smoke = ["--budget", "smoke", "--steps", "1", "--batch-size", "2", "--set", "validation_images=2"]
cli.run(["train", "shapes", "--stage", "generator", "--parent", "gear", *smoke])
try: cli.run(["explorer", "--runs", "nowhere"])
except SystemExit as end: print(end)
print(sys.modules["gear_studio"].__file__, sys.modules["app"].CSS, sys.modules["app"].CSS.is_file())
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    version, *table, finished, refused, places = done.stdout.splitlines()
    assert version == gear_studio.__version__
    summary = HERE / "gear_studio" / "zoo" / "studies" / "text" / "summary.md"
    assert summary.read_text().strip() in "\n".join(table)
    assert finished == "finished: runs/shapes-generator-gear-smoke-s0"
    assert {path: path.stat().st_mtime_ns for path in zoo.rglob("*")} == before
    assert refused.startswith("explorer: nowhere holds no finished run")
    inside = site / "gear_studio"
    assert places == f"{inside / '__init__.py'} {inside / 'apps' / 'explorer.css'} True"


def test_the_version_is_said_once(wheel):
    assert wheel.name == f"gear_studio-{gear_studio.__version__}-py3-none-any.whl"
    cited = re.findall(r"^version: (.*)", (HERE / "CITATION.cff").read_text(), re.M)
    changed = re.findall(r"^## (\S+)", (HERE / "CHANGELOG.md").read_text(), re.M)
    assert cited == [gear_studio.__version__] == changed[:1]
