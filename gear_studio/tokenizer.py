"""Tokenizer = encoder + quantizer + decoder. An image becomes N = (H/f)(W/f) indices in raster order, and
back."""

from dataclasses import dataclass

from torch import Tensor, nn

from gear_studio.autoencoders import Decoder, Encoder
from gear_studio.pretrained import Pretrained
from gear_studio.quantizers import Quantized, VectorQuantizer
from gear_studio.readout import Assignment


@dataclass(frozen=True)
class TokenizerConfig:
    """Small preset by default: f = 8, 1024 codes of 8 dimensions, 64 px -> 8 x 8 = 64 tokens."""

    image_size: int = 64
    channels: int = 32
    multipliers: tuple[int, ...] = (2, 3)
    res_blocks: int = 1
    mid: bool = False
    patch: int = 4
    latent: int = 128
    codes: int = 1024
    code_dim: int = 8

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.image_size // (self.patch * 2 ** (len(self.multipliers) - 1))


PRESETS = {
    "small": TokenizerConfig(),
    "vq-16": TokenizerConfig(256, 128, (1, 1, 2, 2, 4), 2, True, 1, 256, 16384, 8),
}


class Tokenizer(Pretrained):
    Config = TokenizerConfig

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        shape = (
            config.channels,
            tuple(config.multipliers),
            config.res_blocks,
            config.latent,
            config.patch,
            config.mid,
        )
        self.encoder = Encoder(*shape)
        self.to_code = nn.Conv2d(config.latent, config.code_dim, 1)
        self.quantizer = VectorQuantizer(config.codes, config.code_dim)
        self.from_code = nn.Conv2d(config.code_dim, config.latent, 1)
        self.decoder = Decoder(*shape)

    @property
    def grid(self) -> int:
        return self.config.grid

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float in [-1, 1] -> latent before quantization (B, N, D), raster order.

        Raises ValueError when H or W is not the size the tokenizer was made for."""
        size = self.config.image_size
        if images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images have shape {tuple(images.shape)}; expected (B, 3, {size}, {size}), resize them first"
            )
        return self.to_code(self.encoder(images)).flatten(2).transpose(1, 2)

    def assign(self, images: Tensor) -> Assignment:
        """Images (B, 3, H, W) float in [-1, 1] -> Assignment with scores (B, N, K) and indices (B, N)."""
        return self.quantizer.assign(self.encode(images))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Code vectors (B, N, D) -> images (B, 3, H, W), not clamped (what the losses see)."""
        b, _, d = codes.shape
        return self.decoder(self.from_code(codes.transpose(1, 2).reshape(b, d, self.grid, self.grid)))

    def decode(self, indices: Tensor) -> Tensor:
        """Indices (B, N) int64 -> images (B, 3, H, W) in [-1, 1]."""
        return self.decode_codes(self.quantizer.codes(indices)).clamp(-1, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images -> indices -> images (B, 3, H, W) in [-1, 1]."""
        return self.decode(self.assign(images).indices)

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """The training pass: reconstruction (B, 3, H, W) not clamped, and the quantizer's answer."""
        quantized = self.quantizer(self.encode(images))
        return self.decode_codes(quantized.decoder_input), quantized
