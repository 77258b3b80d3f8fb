"""The benchmark of the paper's size runs to its end, on toy models."""

import runpy
import sys
from pathlib import Path

import tiny  # noqa: F401 (its small discriminator)

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "paper_scale.py"


def test_the_toy_is_timed_and_its_step_is_the_plain_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["paper_scale.py", "--toy", "--batch", "2", "--steps", "1"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    head, *rows, _ = capsys.readouterr().out.splitlines()[3:]
    assert head.split() == ["s/step", "images/s", "GiB", "speed", "memory", "differ"]
    assert [row[:30].strip() for row in rows] == ["plain", "studio", "studio, --recompute"]
    for row in rows:
        seconds, rate, _, *compared = row[30:].split()
        assert float(seconds) > 0 and float(rate) > 0
        if compared:
            speed, _, differ = compared
            assert float(speed.removesuffix("x")) > 0 and float(differ) < 1e-5
