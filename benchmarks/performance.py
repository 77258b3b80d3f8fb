"""The tables of docs/performance.md, from what benchmarks have stored: `python benchmarks/performance.py`.

In the page they stand between `<!-- printed: NAME -->` and `<!-- end -->`. `--write` puts them there. Where
not all results of a table are stored, the page keeps what it says.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import gpu
import stored
from stored import RESULTS, Row

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
PLACE = re.compile(r"(<!-- printed: (\w+) -->\n\n)(.*?)(\n<!-- end -->)", re.DOTALL)


def describe(results: Sequence[Row]) -> str:
    """Where, when and by which commands it was measured."""
    said: dict[str, list[str]] = {}
    for each in results:
        python, torch = (each["versions"][name] for name in ("python", "torch"))
        place = f"{each['machine']}, Python {python}, torch {torch}, {each['date']}"
        said.setdefault(place, []).append(f"`{each['command']}`")
    return (
        "Medians. " + "; ".join(f"{', '.join(commands)}: {place}" for place, commands in said.items()) + "."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rates(results: Sequence[Row]) -> str:
    rows = []
    for row in (row for each in results for row in each["rows"]):
        count, taken = row["images"], row["seconds"]
        fastest, slowest = (f"{1000 * taken[which]:,.0f}" for which in ("least", "most"))
        middle = taken["median"]
        rows.append([row["what"], f"{count / middle:,.0f}", f"{1000 * middle:,.0f} ({fastest} to {slowest})"])
    return table(["what", "images/s", "ms a step or batch"], rows)


def waits(results: Sequence[Row]) -> str:
    rows = []
    for row in results[0]["rows"]:
        taken = row["seconds"]
        slowest = f"{taken['most']:.1f}" if taken["of"] > 1 else ""
        rows.append([row["what"], f"{taken['median']:.1f}", slowest])
    return table(["in the explorer", "seconds", "slowest"], rows)


def visitors(results: Sequence[Row]) -> str:
    rows = []
    for row in results[0]["rows"]:
        worst, fastest, memory = (row.get(key) for key in ("95th percentile", "fastest", "megabytes"))
        rows.append(
            [
                row["what"],
                f"{row['seconds']['median']:.1f}",
                f"{worst:.1f}" if worst else "",
                f"{fastest:.1f} to {row['slowest']:.1f}" if fastest else "",
                f"{memory:,.0f}" if memory else "",
            ]
        )
    head = ["in the tab Codebook", "s a picture", "95th percentile, s", "a visitor's mean, s", "app's MiB"]
    return table(head, rows)


def similarity(results: Sequence[Row]) -> str:
    rows, of = [], results[0]["rows"]
    for row in of:
        taken, cells = row["seconds"]["median"], []
        for kind in ("dense", "dense, by sums"):
            times = row[kind]["seconds"] if kind in row else None
            cells.append(f"{times:.1f} ({times / taken:.0f}x)" if times else "")
        many = row.get("of many")
        cells.append(f"{many['seconds']:.1f}; {many['gigabytes']:.2f} GB" if many else "")
        rows.append([row["what"], f"{taken:.2f}", *cells])
    many = of[0]["of many"]["rows"]
    first = f"s, {of[0]['rows']:,} rows of {of[0]['dim']}"
    last = f"s, {many:,} rows; memory beyond them"
    return table(["measure", first, "dense, s", "dense, by sums, s", last], rows)


def kept(results: Sequence[Row]) -> str:
    rows = []
    for row in results[0]["rows"]:
        faster = row["times faster"]
        times = [f"{1000 * row[way]['median']:.0f}" for way in ("asking", "kept")]
        range_ = f"{faster['least']:.2f} to {faster['most']:.2f}"
        rows.append([row["what"], *times, f"{faster['median']:.2f}", range_])
    return table(["step", "asking each time, ms", "kept, ms", "times faster", "range"], rows)


TABLES: dict[str, tuple[Callable[[Sequence[Row]], str], tuple[str, ...]]] = {  # and the results it is made of
    "rates": (rates, ("world", "training", "sampling")),
    "explorer": (waits, ("explorer",)),
    "visitors": (visitors, ("visitors",)),
    "similarity": (similarity, ("similarity",)),
    "kept": (kept, ("small_world",)),
}


def printed(folder: Path = RESULTS) -> dict[str, str]:
    """What the page has at its places, by name, as far as results are stored."""
    made = {}
    for name, (draw, of) in TABLES.items():
        results = [each for each in (stored.read(result, folder) for result in of) if each]
        if len(results) == len(of):
            made[name] = f"{describe(results)}\n\n{draw(results)}\n"
    return made | {"gpu": gpu.page(folder)}


def put_in(text: str, made: dict[str, str]) -> str:
    """The page with these in their places."""
    return PLACE.sub(lambda at: f"{at[1]}{made.get(at[2], at[3])}{at[4]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    options = parser.parse_args()
    made = printed(options.results)
    if options.write:
        PAGE.write_text(put_in(PAGE.read_text(), made))
        print(f"wrote {PAGE}: {', '.join(made)}")
        return
    for name, (_, of) in TABLES.items():
        print(made.get(name, f"{name}: not all of {', '.join(of)} are stored\n"))
    print(made["gpu"], end="")


if __name__ == "__main__":
    main()
