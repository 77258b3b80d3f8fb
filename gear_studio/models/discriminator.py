"""PatchGAN discriminator with the hinge loss: one real/fake logit for each patch of an image.

Layers, norm and initialisation are those of taming-transformers and LlamaGen, on which the paper builds. As
there, it stays in train mode wherever it is used: BatchNorm always normalises by the batch at hand.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from gear_studio.devices import without_autocast
from gear_studio.models.pretrained import Pretrained
from gear_studio.ranges import Extent, Width, check


@dataclass(frozen=True)
class DiscriminatorConfig:
    channels: Width = 64
    layers: Extent = 3

    def __post_init__(self):
        check(self)


class Discriminator(Pretrained):
    """Images (B, 3, H, W) in [-1, 1] -> logits (B, 1, h, w), in float32 also under autocast, as released. Its
    BatchNorm is synchronised over GPUs."""

    Config = DiscriminatorConfig
    config: DiscriminatorConfig

    def __init__(self, config: DiscriminatorConfig = DiscriminatorConfig()):
        super().__init__()
        self.config = config
        width = config.channels
        blocks: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, config.layers + 1):
            wider = config.channels * min(2**layer, 8)
            stride = 2 if layer < config.layers else 1
            blocks += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.blocks = nn.Sequential(*blocks, nn.Conv2d(width, 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, mean=1.0, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        with without_autocast(images.device):
            return self.blocks(images.float())


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator's loss: 0.5 (mean relu(1 - D(x)) + mean relu(1 + D(x')))."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
