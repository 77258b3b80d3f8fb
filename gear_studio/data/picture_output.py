"""Writing pictures: a grid of images as one PNG, and long series as a folder of PNGs or as one array."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from gear_studio.data.images import to_uint8
from gear_studio.files import atomic


def write_grid(images: Tensor, path: str | Path, columns: int = 8, padding: int = 2) -> None:
    """Write images (n, 3, H, W) in [-1, 1] as one PNG, `columns` a row, `padding` pixels between them,
    replacing the file atomically."""
    from torchvision.utils import make_grid  # here: torchvision takes seconds to import

    grid = make_grid(images.float().cpu(), nrow=columns, padding=padding, pad_value=-1.0)
    write_png(to_uint8(grid), Path(path))


def write_above(pairs: Sequence[tuple[Tensor, Tensor]], path: str | Path, padding: int = 2) -> None:
    """Write pairs of images (3, H, W) in [-1, 1] as one PNG, the first of each above the second, pairs of any
    sizes side by side, replacing the file atomically."""
    tall = max(first.shape[1] for first, _ in pairs)
    columns = []
    for pair in pairs:
        gap = tall - pair[0].shape[1]  # black, as between the images of `write_grid`
        columns += [
            torch.cat(
                [F.pad(image.cpu().float(), (padding, 0, padding, gap), value=-1.0) for image in pair], 1
            )
        ]
    whole = F.pad(torch.cat(columns, 2), (0, padding, 0, padding), value=-1.0)
    write_png(to_uint8(whole), Path(path))


def write_png(picture: Tensor, path: Path) -> None:
    """Write a picture, uint8 (3, H, W), replacing the file atomically."""
    with atomic(path) as temporary:
        Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(temporary, format="png")


class Series:
    """Writes `count` pictures of size x size px, from all processes at once.

    A path that ends in .npz becomes one file with `arr_0`, uint8 (count, size, size, 3), which the ADM
    evaluator reads. Any other becomes a folder with 000000.png, 000001.png, ... All processes must see one
    file system, make the Series together, and `close` it together."""

    def __init__(self, path: str | Path, count: int, size: int, accelerator: Accelerator):
        self.path, self.accelerator = Path(path), accelerator
        self.array = None
        if self.path.suffix == ".npz":
            self.draft = self.path.with_suffix(".npy.part")
            if accelerator.is_main_process:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                np.lib.format.open_memmap(self.draft, "w+", np.uint8, (count, size, size, 3)).flush()
            accelerator.wait_for_everyone()
            self.array = np.load(self.draft, mmap_mode="r+")
        else:
            self.path.mkdir(parents=True, exist_ok=True)

    def add(self, start: int, pictures: Tensor) -> None:
        """Write pictures, uint8 (B, 3, H, W); the first is number `start` of the series."""
        if self.array is not None:
            self.array[start : start + len(pictures)] = pictures.permute(0, 2, 3, 1).cpu().numpy()
            return
        for number, picture in enumerate(pictures, start):
            write_png(picture, self.path / f"{number:06d}.png")

    def close(self) -> None:
        """Complete the series; an .npz appears only now."""
        if self.array is None:
            return
        self.array.flush()
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with atomic(self.path) as temporary, zipfile.ZipFile(temporary, "w") as file:
                file.write(self.draft, "arr_0.npy")
            self.draft.unlink()
