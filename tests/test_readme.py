"""The README's Python runs as it stands there, and its tables of results are what the commands print. The
commands of docs/paper_scale.md reach the program as they are meant."""

import functools
import re
import subprocess
from pathlib import Path

import pytest

from gear_studio import cli, commands, studies
from gear_studio.places import ZOO
from gear_studio.studies import report

HERE = Path(__file__).parents[1]
README = (HERE / "README.md").read_text()
# Stand-ins for the programs: one word a line, and an empty line behind each command.
STAND_INS = """
accelerate() { printf '%s\\n' "$@" ""; }
gear-studio() { printf '%s\\n' -m gear_studio "$@" ""; }
RANK=1 FIRST_NODE=node
"""


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
    study = studies.study_of(name)
    shown = rows(section(name.replace("-", " ").capitalize()))
    printed = rows(studies.summarize(study, studies.shipped_runs(name)))
    assert len(shown) >= 1 + len(study.arms) and not [row for row in shown if row not in printed]


def test_the_commands_of_the_page_on_paper_scale_are_ones_that_the_program_takes(monkeypatch):
    page = (HERE / "docs" / "paper_scale.md").read_text()
    script = STAND_INS + "".join(re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL))
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    lines = [command.split("\n") for command in done.stdout.removesuffix("\n\n").split("\n\n")]
    assert len(lines) > 10 and "'" not in done.stdout and '"' not in done.stdout
    understood = []
    for name, command in commands.COMMANDS.items():

        def takes(*given, _name=name, **more):
            understood.append((_name, [*given, *more.values()]))

        monkeypatch.setitem(commands.COMMANDS, name, functools.wraps(command)(takes))
    for words in lines:
        cli.run(words[words.index("gear_studio") + 1 :])
    assert [name for name, _ in understood] == [w[w.index("gear_studio") + 1] for w in lines]
    folders = [getattr(value, "folder", None) for _, values in understood for value in values]
    assert Path("/data/gpic/{00000..00999}.tar") in folders
