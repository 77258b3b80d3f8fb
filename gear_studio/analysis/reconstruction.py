"""How alike a picture and its reconstruction are, pixel by pixel."""

from typing import cast

import torch
from torch import Tensor

EXACT = 126.0  # dB: of equal images, whose ratio would be infinite


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, at most EXACT, for values in [-1, 1].
    (B, 3, H, W) twice -> (B,)."""
    ratio = 4 / (images - reference).square().flatten(1).mean(1)
    return (10 * torch.log10(ratio)).clamp(max=EXACT)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004; Gaussian window of 11 px, sigma 1.5), at most 1.
    (B, 3, H, W) in [-1, 1] twice -> (B,)."""
    from torchmetrics.functional.image import structural_similarity_index_measure as measure

    # As brightness from 0 to 1: the measure compares means relative to black.
    values = measure((images + 1) / 2, (reference + 1) / 2, data_range=1.0, reduction="none")
    return cast(Tensor, values)  # a pair only where the full map is asked for
