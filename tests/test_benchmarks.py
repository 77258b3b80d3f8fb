"""Benchmarks run to their end: of the paper's size on toy models, of similarity on few rows."""

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tiny

from gear_studio.files import write_json

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def performance(monkeypatch) -> ModuleType:
    """benchmarks/performance.py; its folder is where benchmarks find each other."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("performance")


def test_the_page_shows_what_is_stored_and_says_what_is_not(performance):
    text, made = performance.PAGE.read_text(), performance.printed()
    assert performance.put_in(text, made) == text
    places = {name: held for _, name, held, _ in performance.PLACE.findall(text)}
    assert places.keys() == {*performance.TABLES, "gpu"}
    assert all("stored" in held for name, held in places.items() if name not in made)


def test_rates_are_printed_once_all_of_them_are_stored(performance, monkeypatch, capsys, tmp_path):
    for repeats in ("1", "2"):  # of other settings the last result stays
        asked = ["world.py", "--repeats", repeats, "--store", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", asked)
        runpy.run_path(str(BENCHMARKS / "world.py"), run_name="__main__")
    world = json.loads((tmp_path / "world.json").read_text())
    assert world["rows"][0]["seconds"]["of"] == 2 and "one thread: " in capsys.readouterr().out
    assert performance.printed(tmp_path).keys() == {"gpu"}
    rows = [{"what": "a step", "images": 32, "seconds": {"median": 0.5, "least": 0.25, "most": 1, "of": 3}}]
    write_json(tmp_path / "training.json", world | {"rows": rows, "machine": "another"})
    write_json(tmp_path / "sampling.json", world | {"rows": []})
    made = performance.printed(tmp_path)["rates"]
    assert made.endswith("| a step | 64 | 500 (250 to 1,000) |\n")
    assert "another, " in made and f"{world['machine']}, " in made
    write_json(tmp_path / "explorer.json", world | {"rows": rows})
    assert performance.printed(tmp_path)["explorer"].endswith("| a step | 0.5 | 1.0 |\n")
    page = "before\n<!-- printed: rates -->\n\nold\n\n<!-- end -->\nafter"
    once = performance.put_in(page, {"rates": made})
    assert once == page.replace("old\n", made) and performance.put_in(once, {}) == once


def test_the_toy_is_timed_and_its_step_is_the_plain_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["paper_scale.py", "--toy", "--batch", "2", "--steps", "1"])
    runpy.run_path(str(BENCHMARKS / "paper_scale.py"), run_name="__main__")
    head, *rows, _ = capsys.readouterr().out.splitlines()[3:]
    assert head.split() == ["s/step", "images/s", "GiB", "speed", "memory", "differ"]
    assert [row[:30].strip() for row in rows] == ["plain", "studio", "studio, --recompute"]
    for row in rows:
        seconds, rate, _, *compared = row[30:].split()
        assert float(seconds) > 0 and float(rate) > 0
        if compared:
            speed, _, differ = compared
            assert float(speed.removesuffix("x")) > 0 and float(differ) < 1e-5


def test_similarity_is_timed_and_its_values_are_those_of_the_formulas(
    monkeypatch, capsys, tmp_path, performance
):
    asked = ["similarity.py", "--rows", "200", "--dim", "8", "--memory-rows", "300", "--store", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", asked)
    runpy.run_path(str(BENCHMARKS / "similarity.py"), run_name="__main__")
    _, _, dim, *lines, wrote = capsys.readouterr().out.splitlines()
    assert dim == "8 numbers a row" and wrote == f"wrote {tmp_path / 'similarity.json'}"
    said = dict(line.split(": ", 1) for line in lines)
    of_rows = [f"{name} of {count} rows" for count in (200, 300) for name in ("cknna", "cka")]
    dense = [f"{name}, {kind}" for name in ("cknna", "cka") for kind in ("dense, by sums", "dense")]
    assert list(said) == [
        *of_rows[:2],
        "cknna with interval (50 halves) and chance (20 permutations)",
        *of_rows[2:],
        *dense,
    ]
    assert all("GB beyond the input" in said[name] for name in of_rows[2:])
    for name in dense:
        assert float(said[name].rpartition("differ ")[2]) < 1e-5
    stored = json.loads((tmp_path / "similarity.json").read_text())
    assert stored["command"] == f"python benchmarks/{' '.join(asked)}" and stored["versions"]["torch"]
    made = performance.printed(tmp_path)
    assert made.keys() == {"similarity", "gpu"} and "Nothing has been measured" in made["gpu"]
    where, _, _, _, *table = made["similarity"].splitlines()
    assert stored["machine"] in where and stored["date"] in where and "--dim 8" in where
    measured = [row.split(" | ")[0] for row in table]
    assert measured == ["| cknna", "| cka", f"| {lines[2].partition(':')[0]}"]


@tiny.minutes
def test_the_small_world_is_timed_with_kept_pictures_and_without(monkeypatch, tmp_path, performance):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # put back afterwards
    asked = ["--steps", "1", "--rounds", "1", "--pictures", "32", "--store", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["small_world.py", *asked])
    runpy.run_path(str(BENCHMARKS / "small_world.py"), run_name="__main__")
    _, _, *table = performance.printed(tmp_path)["kept"].splitlines()
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    assert [row[0] for row in rows[2:]] == [
        "generator, tiny",
        "generator, efficientnet-lite0",
        "joint, tiny",
        "joint, efficientnet-lite0",
        "generator, validation",
    ]
    assert all(len(row) == len(rows[0]) and float(row[3]) > 0 for row in rows[2:])


@pytest.mark.slow
@tiny.minutes
def test_what_a_gpu_has_to_show_runs_small_keeps_what_it_has_and_goes_on(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--smoke", "--out", str(tmp_path)]
    nothing = subprocess.run([*command, "--print"], check=True, capture_output=True, text=True).stdout
    assert nothing.startswith("## On a GPU") and "Nothing has been measured on a GPU yet" in nothing
    assert nothing in (BENCHMARKS.parent / "docs" / "performance.md").read_text()
    cut = subprocess.run([*command, "--minutes", "0"], check=True, capture_output=True, text=True).stdout
    assert "0 minutes are over" in cut
    subprocess.run(command, check=True, capture_output=True)
    (file,) = tmp_path.glob("*.json")
    parts = json.loads(file.read_text())["parts"]
    assert not [part for part, row in parts.items() if "error" in row or not row.get("right", True)]
    kept, part = dict(parts), "similarity: CKNNA, N = 200"
    del parts[part]
    file.write_text(json.dumps({"parts": parts}))
    again = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert again.startswith(part) and len(again.splitlines()) == 2
    assert json.loads(file.read_text())["parts"].keys() == kept.keys()
    printed = subprocess.run([*command, "--print"], check=True, capture_output=True, text=True).stdout
    assert all(part.partition(": ")[2] in printed for part in parts)
