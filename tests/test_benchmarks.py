"""Benchmarks run to their end: of the paper's size on toy models, of similarity on few rows."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


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


def test_similarity_is_timed_and_its_values_are_those_of_the_formulas(monkeypatch, capsys):
    asked = ["similarity.py", "--rows", "200", "--dim", "8", "--memory-rows", "300"]
    monkeypatch.setattr(sys, "argv", asked)
    runpy.run_path(str(BENCHMARKS / "similarity.py"), run_name="__main__")
    _, versions, *lines = capsys.readouterr().out.splitlines()
    assert versions.endswith("8 numbers a row")
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


@tiny.minutes
def test_the_small_world_is_timed_with_kept_pictures_and_without(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # put back afterwards
    monkeypatch.setattr(sys, "argv", ["small_world.py", "--steps", "1", "--rounds", "1", "--pictures", "32"])
    runpy.run_path(str(BENCHMARKS / "small_world.py"), run_name="__main__")
    _, _, head, _, *rows = capsys.readouterr().out.splitlines()
    table = [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]
    assert [row[0] for row in table[1:]] == [
        "generator, tiny",
        "generator, efficientnet-lite0",
        "joint, tiny",
        "joint, efficientnet-lite0",
        "generator, validation",
    ]
    assert all(len(row) == len(table[0]) and float(row[3]) > 0 for row in table[1:])


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
