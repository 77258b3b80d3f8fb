"""Run notebooks from top to bottom, each in a fresh kernel, and save them with their outputs.

    make notebooks        or        python notebooks/execute.py [NOTEBOOK ...]

What would differ from one run or one machine to the next is left out of the file: times, the state of
widgets, the interpreter's version. So a diff shows what changed in the text or in the figures.
"""

import base64
import io
import os
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
STILL = "The figure at its first values; run the cell to move it."
CONTROLS = "Controls; run the cell to use them."
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class ThisPython(KernelSpecManager):
    """Knows one kernel, the interpreter that runs this: no kernel of that name installed elsewhere is
    taken."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells in `folder`, in place. The first cell that fails raises CellExecutionError.

    One thread: fast enough, and sums are the same everywhere."""
    paths = filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH")))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_spec_manager=ThisPython()),
        resources={"metadata": {"path": str(folder)}},
        timeout=1800,  # of a cell, on a busy machine
        coalesce_streams=True,
        record_timing=False,
        store_widget_state=False,
    )
    client.execute(env=env, cleanup_kc=True)  # a manager given is kept, with its kernel, by default
    tidy(notebook)
    for cell in notebook.cells:
        for data in [output.get("data", {}) for output in cell.get("outputs", [])]:
            if "image/png" in data:
                data["image/png"] = base64.b64encode(smaller(base64.b64decode(data["image/png"]))).decode()


def tidy(notebook: NotebookNode) -> None:
    """Keep the cells and what a reader sees of their outputs."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", []):
            if "data" in output:
                output.metadata = nbformat.from_dict({})
                if output.data.pop(WIDGET, None):
                    output.data["text/plain"] = STILL if "image/png" in output.data else CONTROLS


def smaller(png: bytes) -> bytes:
    """The same picture in fewer bytes. A chart has few colours and takes a palette of 256, which changes its
    pixels by less than 0.2 of 255 on average; pictures would change by more, and keep every colour."""
    whole = Image.open(io.BytesIO(png)).convert("RGB")
    few = whole.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    changed = np.abs(np.asarray(few.convert("RGB"), dtype=int) - np.asarray(whole, dtype=int)).mean()
    file = io.BytesIO()
    (few if changed < 0.2 else whole).save(file, "png", optimize=True)
    return file.getvalue()


def main(paths: list[Path]) -> None:
    for path in paths:
        start = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        execute(notebook, path.parent)
        nbformat.write(notebook, path)
        seconds = time.monotonic() - start
        print(f"{path.name}: {seconds:.0f} s, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")))
