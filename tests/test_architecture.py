"""The house stands as docs/architecture.md draws it: floors, no circles, additions that touch one room."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import networkx
import pytest

HERE = Path(__file__).parents[1]
PAGE = (HERE / "docs" / "architecture.md").read_text()


def fenced(name: str) -> str:
    """The block of the page that is fenced as ```text name."""
    return re.search(rf"```text {name}\n(.*?)```", PAGE, flags=re.DOTALL)[1]


@pytest.fixture(scope="module")
def imports() -> networkx.DiGraph:
    """Which module imports which, lazily or not."""
    graph = grimp.build_graph("gear_studio", cache_dir=None)
    edges = [
        (module, imported)
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    ]
    return networkx.DiGraph(edges)


def floors() -> list[list[str]]:
    """The rooms of each floor, from the top down."""
    return [re.findall(r"\w+(?=/|\.py)", line.split("  ")[0]) for line in fenced("floors").splitlines()]


def test_every_room_stands_on_one_floor():
    there = {path.stem for path in (HERE / "gear_studio").iterdir() if (path / "__init__.py").is_file()}
    there |= {path.stem for path in (HERE / "gear_studio").glob("*.py")} - {"__init__", "__main__"}
    drawn = [room for rooms in floors() for room in rooms]
    assert sorted(drawn) == sorted(there)


def test_imports_point_down(imports):
    height = {room: -number for number, rooms in enumerate(floors()) for room in rooms}
    height |= {"__main__": 1}

    def room(module: str) -> str:
        return module.split(".")[1] if "." in module else ""

    wrong = [
        (above, below)
        for above, below in imports.edges
        if room(above)
        and room(below)
        and room(above) != room(below)
        and height[room(above)] <= height[room(below)]
    ]
    assert len(imports) > 40 and not wrong


def test_there_are_no_circles(imports):
    assert [circle for circle in networkx.strongly_connected_components(imports) if len(circle) > 1] == []


def test_a_test_s_name_says_what_it_tests():
    """A module or a room of gear_studio, a file of apps/, a part of one (explorer_runs), or one of what
    crosses all rooms."""
    files = [*(HERE / "gear_studio").rglob("*.py"), *(HERE / "apps").glob("*.py")]
    names = {path.stem for path in files} | {path.parent.name for path in files}
    across = {"architecture", "benchmarks", "docker", "notebooks", "processes", "readme", "site", "wheel"}
    tested = {path.stem.removeprefix("test_") for path in (HERE / "tests").glob("test_*.py")}
    assert {name for name in tested - names if name.rpartition("_")[0] not in names} == across


# Additions: the page's examples, made in a copy of the code

EXAMPLES = dict(re.findall(r"^### (.*?)\n(.*?)(?=^##)", PAGE, flags=re.DOTALL | re.MULTILINE))
EDIT = re.compile(
    r"^`(\S+)`, (new|(before|after|instead of) `([^`]+)`):\n\n```python\n(.*?)```", re.DOTALL | re.M
)
ROOMS = {
    "A quantizer": "gear_studio/models/quantizers.py",
    "A teacher": "gear_studio/models/teachers.py",
    "A family of released files": "gear_studio/models/families/",
    "A source of pictures": "gear_studio/data/",
    "A study": "gear_studio/studies/catalogue.py",
    "A tab of the explorer": "apps/",
}


def edit(root: Path, example: str) -> set[str]:
    """Make an example's changes in a copy of the code; returns the files that are touched."""
    touched = set()
    for file, how, where, anchor, text in EDIT.findall(example):
        path = root / file
        if how == "new":
            assert not path.exists()
            path.write_text(text)
        else:
            lines = path.read_text().splitlines(keepends=True)
            (at,) = [number for number, line in enumerate(lines) if anchor in line]
            if where == "instead of":
                lines[at] = lines[at].replace(anchor, text.strip())
            else:
                lines.insert(at + (where == "after"), text)
            path.write_text("".join(lines))
        touched.add(file)
    return touched


def test_the_page_shows_every_kind_of_addition():
    assert EXAMPLES.keys() == ROOMS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ROOMS)
def test_an_addition_touches_one_room_and_works_everywhere(name, tmp_path):
    for folder in ("gear_studio", "apps"):
        shutil.copytree(HERE / folder, tmp_path / folder, ignore=shutil.ignore_patterns("zoo", "__pycache__"))
    (tmp_path / "gear_studio" / "zoo").symlink_to(HERE / "gear_studio" / "zoo")
    touched = edit(tmp_path, EXAMPLES[name])
    assert touched and all(file.startswith(ROOMS[name]) for file in touched)
    program = f'python() {{ "{sys.executable}" "$@"; }}; gear-studio() {{ python -m gear_studio "$@"; }}\n'
    (script,) = re.findall(r"```bash\n(.*?)```", EXAMPLES[name], flags=re.DOTALL)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-euc", program + script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
