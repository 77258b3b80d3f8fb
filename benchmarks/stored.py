"""What a benchmark leaves behind: with `--store` results/NAME.json, of which benchmarks/performance.py makes
the tables of docs/performance.md.

A file says where and how it was measured (machine, versions, date, command, load) and has rows, each a dict:
`what`, plain numbers, and for what was repeated a dict of median, least, most and `of`, how often.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from gear_studio.files import write_json
from gear_studio.training.run_folder import versions

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of repeated measurements."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "of": len(values)}


def rate(what: str, images: int, seconds: Sequence[float]) -> Row:
    """The row of what is done with so many images at a time; it is printed, too."""
    taken = spread(seconds)
    print(
        f"{what}: {images / taken['median']:,.1f} images/s   ({taken['median']:.3f} s for {images}; "
        f"fastest {taken['least']:.3f}, slowest {taken['most']:.3f})",
        flush=True,
    )
    return {"what": what, "images": images, "seconds": taken}


def say(around: Row) -> None:
    """Print where it is measured."""
    print(around["machine"])
    print(", ".join(f"{name} {version}" for name, version in around["versions"].items()), flush=True)


def add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store",
        type=Path,
        nargs="?",
        const=RESULTS,
        metavar="FOLDER",
        help="write the result, by default among those that docs/performance.md shows",
    )


def circumstances(device: torch.device | None = None) -> Row:
    """Where, when and how it is measured. device: None means the CPU."""
    return {
        "machine": machine(device or torch.device("cpu")),
        "versions": versions(),
        "date": date.today().isoformat(),
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}".strip(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def store(name: str, rows: Sequence[Row], around: Row, folder: Path | None) -> None:
    """Write FOLDER/NAME.json; without a folder nothing. around: `circumstances`, from before it began."""
    if folder is not None:
        write_json(folder / f"{name}.json", around | {"rows": list(rows)})
        print(f"wrote {folder / f'{name}.json'}")


def read(name: str, folder: Path = RESULTS) -> Row | None:
    """What lies in FOLDER/NAME.json; None where nothing was stored."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def machine(device: torch.device) -> str:
    """The device by name, of a CPU with its cores and the threads that are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    if platform.system() == "Linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = models[0] if models else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    return f"{model}, {cores} cores, {threads} thread{'s' if threads > 1 else ''}"
