"""The README's Python runs as it stands there, and its tables of results are what the commands print."""

import re
from pathlib import Path

import pytest

from gear_studio import report, studies
from gear_studio.runs import ZOO

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_examples_run_one_after_the_other(capsys):
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    assert names["hard"].shape == names["soft"].shape == (16, 64, 128)
    assert names["pictures"].shape == (4, 3, 64, 64)
    estimate, protocol = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"0\.\d+ \[-?0\.\d+, 0\.\d+\], chance -?0\.\d+", estimate)
    assert "16 images (shapes, val)" in protocol and "256 drawn" in protocol


def rows(markdown: str) -> list[str]:
    """The rows of all tables, headers among them."""
    return [line for line in markdown.splitlines() if line.startswith("| ")]


def section(title: str) -> str:
    """What stands below a heading of the README, up to the next of its level or above."""
    level, below = re.search(rf"^(#+) {re.escape(title)}\n([\s\S]*)", README, flags=re.MULTILINE).group(1, 2)
    return re.split(rf"^#{{1,{len(level)}}} ", below, flags=re.MULTILINE)[0]


def test_the_tables_of_the_shipped_runs_are_those_of_report():
    shown = rows(section("What the shipped runs show"))
    printed = rows(report.tables(ZOO))
    assert len(shown) > 15 and not [row for row in shown if row not in printed]


@pytest.mark.parametrize(
    "name", [path.name for path in sorted(studies.SHIPPED.iterdir()) if path.name != "runs"]
)
def test_the_tables_of_a_shipped_study_are_those_it_prints(name):
    study = studies.named(name)
    shown = rows(section(name.replace("-", " ").capitalize()))
    printed = rows(studies.summary(study, studies.shipped(name)))
    assert len(shown) >= 1 + len(study.arms) and not [row for row in shown if row not in printed]
