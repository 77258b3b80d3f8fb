"""What a tab shows, in numbers: a file to take away.

Arrays become an .npz, rows of values a .csv."""

import csv
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from components import QUIET, polite
from gradio.utils import get_upload_folder
from torch import Tensor

from gear_studio.errors import InputError
from gear_studio.files import atomic

Numbers = Mapping[str, Tensor] | Sequence[Mapping[str, Any]]


def lay_out(numbers: Callable[..., Numbers], inputs: Sequence, prefix: str) -> None:
    """A button that offers a file. numbers: makes them of the values of `inputs`. prefix: of the ids in the
    page, and the file's name."""

    def save(*values: object) -> gr.File:
        with polite():
            return gr.File(str(write(numbers(*values), prefix)), visible=True)

    ask = gr.Button("Save the numbers", size="sm", elem_id=f"{prefix}-numbers-go")
    file = gr.File(
        label="As they stood when the button was pressed", visible=False, interactive=False,
        elem_id=f"{prefix}-numbers",
    )  # fmt: skip
    ask.click(save, list(inputs), file, **QUIET)


def write(numbers: Numbers, name: str) -> Path:
    """The file of numbers, where Gradio serves files and deletes them by age. Raises ValueError where there
    are none."""
    if not numbers:
        raise InputError("There are no numbers here yet; wait until they are shown.")
    if isinstance(numbers, Mapping):
        file = io.BytesIO()
        arrays: dict[str, Any] = {key: value.cpu().numpy() for key, value in numbers.items()}
        np.savez_compressed(file, **arrays)
        content, kind = file.getvalue(), "npz"
    else:
        text = io.StringIO()
        rows = csv.DictWriter(text, list(dict.fromkeys(key for row in numbers for key in row)))
        rows.writeheader()
        rows.writerows(numbers)
        content, kind = text.getvalue().encode(), "csv"
    path = Path(get_upload_folder()).resolve() / hashlib.sha256(content).hexdigest() / f"{name}.{kind}"
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return path
