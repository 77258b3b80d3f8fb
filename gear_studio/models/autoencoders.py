"""The two families of convolutional encoders and decoders, side by side: VQGAN and MAGVIT2.

                     VQGAN (small presets, VQ-16, IBQ-16)         MAGVIT2 (LFQ-16)
    residual blocks  GroupNorm (eps 1e-6), SiLU, 3x3 convolution  the same, convolutions without biases
    decoder blocks   one more a level than the encoder            as many as the encoder
    lowest level     self-attention after each block              -
    middle           block, attention, block                      as many blocks as a level has
    stride 2         padded right and bottom by one               padded by one all round
    upsampling       nearest + convolution                        convolution + depth to space
    each level       -                                            the decoder's begins with a GroupNorm whose
                                                                  scale and shift come from the whole latent

Both list their layers in the order of computation. `patch` > 1 (VQGAN only) folds pixels into channels at
the door (pixel unshuffle / shuffle), which makes the small presets four times cheaper at the resolution that
costs most.
"""

import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32  # of every norm: channels are a multiple


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.body = nn.Sequential(
            norm(inputs),
            nn.SiLU(),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias),
            norm(outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=bias) if inputs != outputs else nn.Identity()

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


class DepthToSpace(nn.Conv2d):
    """Convolution to four times the channels, laid out as 2 x 2 pixels.

    Channel (2 i + j) C + c becomes channel c of pixel (i, j) (depth-column-row; `nn.PixelShuffle` reads c
    first)."""

    def __init__(self, channels: int):
        super().__init__(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x).unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)
        return F.pixel_shuffle(x, 2)


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm, scaled by a linear map of the latent's standard deviation over positions and shifted by a
    linear map of its mean."""

    def __init__(self, z: int, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6, affine=False)
        self.gamma = nn.Linear(z, channels)
        self.beta = nn.Linear(z, channels)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """x: (B, channels, H, W); latent: (B, z, h, w)."""
        deviation = (latent.var((2, 3)) + 1e-6).sqrt()
        scale, shift = self.gamma(deviation), self.beta(latent.mean((2, 3)))
        return scale[..., None, None] * self.norm(x) + shift[..., None, None]


class Magvit2Encoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> latent (B, z, H/f, W/f), f = 2^(levels - 1 - flat). flat: how many
    steps between the lowest levels are none, so that f is smaller with the same blocks."""

    def __init__(self, channels: int, multipliers: tuple[int, ...], res_blocks: int, z: int, flat: int = 0):
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        width = channels
        for level, multiplier in enumerate(multipliers):
            for _ in range(res_blocks):
                blocks.append(ResBlock(width, channels * multiplier, bias=False))
                width = channels * multiplier
            if level < len(multipliers) - 1 - flat:
                blocks.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
        blocks += [ResBlock(width, width, bias=False) for _ in range(res_blocks)]
        blocks += [norm(width), nn.SiLU(), nn.Conv2d(width, z, 1)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(images)


class Magvit2Decoder(nn.Module):
    """Latent (B, z, h, w) -> images (B, 3, f h, f w), not clamped. flat: as of the encoder."""

    def __init__(self, channels: int, multipliers: tuple[int, ...], res_blocks: int, z: int, flat: int = 0):
        super().__init__()
        width = channels * multipliers[-1]
        blocks: list[nn.Module] = [nn.Conv2d(z, width, 3, padding=1)]
        blocks += [ResBlock(width, width, bias=False) for _ in range(res_blocks)]
        for level in reversed(range(len(multipliers))):
            blocks.append(AdaptiveGroupNorm(z, width))
            for _ in range(res_blocks):
                blocks.append(ResBlock(width, channels * multipliers[level], bias=False))
                width = channels * multipliers[level]
            if 0 < level < len(multipliers) - flat:
                blocks.append(DepthToSpace(width))
        blocks += [norm(width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, latent: Tensor) -> Tensor:
        x = latent
        for block in self.blocks:
            x = block(x, latent) if isinstance(block, AdaptiveGroupNorm) else block(x)
        return x
