"""The convolutional encoder and decoder of the VQGAN family, from the small preset up to VQ-16.

Notable: GroupNorm (eps 1e-6) + SiLU residual blocks, one self-attention after each block of the lowest
resolution, stride-2 convolutions padded right and bottom by one, nearest upsampling + convolution. `patch` >
1 folds pixels into channels at the door (pixel unshuffle / shuffle), which makes the small preset four times
cheaper at the resolution that costs most.
"""

import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.body = nn.Sequential(
            norm(inputs),
            nn.SiLU(),
            nn.Conv2d(inputs, outputs, 3, padding=1),
            norm(outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class Attention(nn.Module):
    """Single-head self-attention over positions, residual."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, c, h * w).transpose(2, 3).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(b, c, h, w))


class Downsample(nn.Conv2d):
    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def middle(channels: int) -> list[nn.Module]:
    return [ResBlock(channels, channels), Attention(channels), ResBlock(channels, channels)]


class Encoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> latent (B, z, H/f, W/f), f = patch * 2^(levels - 1)."""

    def __init__(
        self, channels: int, multipliers: tuple[int, ...], res_blocks: int, z: int, patch: int, mid: bool
    ):
        super().__init__()
        widths = [channels * m for m in multipliers]
        blocks: list[nn.Module] = [nn.PixelUnshuffle(patch), nn.Conv2d(3 * patch**2, channels, 3, padding=1)]
        width = channels
        for level, level_width in enumerate(widths):
            lowest = level == len(widths) - 1
            for _ in range(res_blocks):
                blocks.append(ResBlock(width, level_width))
                width = level_width
                if lowest:
                    blocks.append(Attention(width))
            if not lowest:
                blocks.append(Downsample(width))
        if mid:
            blocks += middle(width)
        blocks += [norm(width), nn.SiLU(), nn.Conv2d(width, z, 3, padding=1)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(images)


class Decoder(nn.Module):
    """Latent (B, z, h, w) -> images (B, 3, f h, f w), not clamped. One more residual block a level than the
    encoder."""

    def __init__(
        self, channels: int, multipliers: tuple[int, ...], res_blocks: int, z: int, patch: int, mid: bool
    ):
        super().__init__()
        widths = [channels * m for m in reversed(multipliers)]
        width = widths[0]
        blocks: list[nn.Module] = [nn.Conv2d(z, width, 3, padding=1)]
        if mid:
            blocks += middle(width)
        for level, level_width in enumerate(widths):
            for _ in range(res_blocks + 1):
                blocks.append(ResBlock(width, level_width))
                width = level_width
                if level == 0:
                    blocks.append(Attention(width))
            if level < len(widths) - 1:
                blocks.append(Upsample(width))
        blocks += [
            norm(width),
            nn.SiLU(),
            nn.Conv2d(width, 3 * patch**2, 3, padding=1),
            nn.PixelShuffle(patch),
        ]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, latent: Tensor) -> Tensor:
        return self.blocks(latent)
