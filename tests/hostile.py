"""Files and folders that nobody makes in good faith, built anew where a test wants them."""

import io
import os
from pathlib import Path

from PIL import Image


def jpeg_of_scans(path: Path, scans: int, kind: str = "jpeg") -> Path:
    """A progressive JPEG of small scans, each of which takes a decoder as long as the picture.

    kind: jpeg, or mpo, of which there are two pictures in the file."""
    encoded, picture = io.BytesIO(), Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    more = {"save_all": True, "append_images": [picture]} if kind == "mpo" else {}
    picture.save(encoded, kind, progressive=True, **more)
    content = encoded.getvalue()
    last = content.rindex(b"\xff\xda")
    scan, end = content[last:-2], content[-2:]
    there = content.count(b"\xff\xda")
    path.write_bytes(content[:last] + scan * (scans - there + 1) + end)
    return path


def folder_in_itself(folder: Path, depth: int = 2) -> Path:
    """`folder`, with a link to itself some folders down."""
    inside = folder.joinpath(*["inside"] * depth)
    inside.mkdir(parents=True)
    (inside / "up").symlink_to(folder)
    return folder


def pipe(path: Path) -> Path:
    """A pipe: who reads it waits for a writer that never comes."""
    os.mkfifo(path)
    return path
