"""The Inception network of FID: features of pictures as the published scores are measured in.

The network, its resizing and its weights (those of the TensorFlow graph of 2015) are torch-fidelity's, which
reproduces the original to rounding; torchmetrics wraps the same network but resizes with antialiasing by
default, which shifts every score.
"""

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from gear_studio.errors import InputError
from gear_studio.files import one_line
from gear_studio.models.published import load_state_dict

WEIGHTS = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
OPTION = "--inception-weights FILE"
DIMS = {"fid": 2048, "sfid": 7 * 17 * 17}
CLASSES = 1008


class Inception(nn.Module):
    """Pictures uint8 (B, 3, H, W) of any size -> {"fid": (B, 2048) pooled features, "sfid": (B, 2023) spatial
    ones, "is": (B, 1008) logits without bias}, float32.

    The spatial features are the first 7 channels of the TensorFlow graph's `mixed_6/conv` (Nash et al. 2021),
    flattened as the ADM evaluator does, channels last, so that its `mu_s` and `sigma_s` fit.

    weights: the published file, or None to download it. option: what names such a file, for the messages."""

    def __init__(self, weights: str | Path | None = None, option: str = OPTION):
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        state = load_state_dict(WEIGHTS, weights, "FID's Inception network", option)
        # torch-fidelity unpickles what it is given without limits: give it what the safe reader has read.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        try:
            self.net = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], buffer)
        except RuntimeError as error:
            raise InputError(
                f"{weights or WEIGHTS} does not fit Inception ({one_line(error)}); {option}"
            ) from error
        self.spatial: Tensor | None = None
        self.net.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.spatial = output[:, :7].permute(0, 2, 3, 1).flatten(1)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        pooled, logits = self.net(pictures)
        return {"fid": pooled, "sfid": self.spatial, "is": logits}
