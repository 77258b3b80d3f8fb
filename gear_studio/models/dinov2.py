"""The class token of DINOv2 ViT-L/14: what FD-DINOv2 is taken in (Stein et al. 2023, arXiv 2306.04675).

Notable, as in the authors' dgm-eval, because both shift every score:
- Pictures are resized to 224 px, whatever their shape, as Pillow does it: bicubic, antialiased, rounded to 8
  bits after either axis.
- The position embeddings, of 37 x 37 patches, are resampled by DINOv2's own rule of that time: without
  antialiasing, and by a scale a little above the ratio of the sizes. timm has another, which teachers get.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_studio.models.teachers import published_encoder, to_size

MODEL = "dinov2-l"
OPTION = "--dinov2-weights FILE"
SIZE, PATCH, DIM = 224, 14, 1024
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class DINOv2(nn.Module):
    """Pictures uint8 (B, 3, H, W) of any size -> (B, 1024), the class token after the last norm, float32.

    weights: the published file, or None to download it. Raises as `teachers.published_encoder`."""

    net: Any  # a ViT of timm
    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        self.net = published_encoder(MODEL, weights, OPTION).requires_grad_(False).eval()
        positions = resample(self.net.pos_embed, SIZE // PATCH)
        self.net.set_input_size((SIZE, SIZE))
        self.net.pos_embed.copy_(positions)
        self.dim = self.net.embed_dim
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        small = to_size(pictures.cpu(), SIZE).to(pictures.device)  # of bytes on a CPU: Pillow's arithmetic
        return self.net.forward_features((small / 255 - self.mean) / self.std)[:, 0]


def resample(positions: Tensor, grid: int) -> Tensor:
    """Resample position embeddings of a class token and n x n patches to grid x grid: (1, 1 + n * n, d) ->
    (1, 1 + grid * grid, d)."""
    side = math.isqrt(positions.shape[1] - 1)
    patches = positions[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    patches = F.interpolate(patches, scale_factor=(grid + 0.1) / side, mode="bicubic")
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], 1)
