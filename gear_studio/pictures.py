"""Pictures on disk: grids of images as one PNG."""

from pathlib import Path

from torch import Tensor
from torchvision.utils import save_image

from gear_studio.pretrained import atomic


def write_grid(images: Tensor, path: str | Path, columns: int = 8) -> None:
    """Write images (n, 3, H, W) in [-1, 1] as one PNG, `columns` a row, replacing the file atomically."""
    with atomic(Path(path)) as temporary:
        save_image((images.float().cpu() + 1) / 2, temporary, nrow=columns, padding=2, format="png")
