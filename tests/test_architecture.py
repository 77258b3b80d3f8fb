"""The house stands as docs/architecture.md draws it: floors, no circles, additions that touch one room."""

import re
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
