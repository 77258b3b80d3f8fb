"""Tokenizer = encoder + quantizer + decoder. An image becomes N = (H/f)(W/f) indices in raster order, and
back.

H and W are any multiples of f: the networks are convolutional. image_size is the size of its own data."""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from gear_studio.errors import InputError
from gear_studio.models.autoencoders import GROUPS, Decoder, Encoder, Magvit2Decoder, Magvit2Encoder
from gear_studio.models.pretrained import Pretrained
from gear_studio.models.quantizers import QUANTIZERS, Quantized, Quantizer
from gear_studio.ranges import Amount, Codes, Extent, Extents, Flag, Pixels, Width, check
from gear_studio.readout import Assignment


@dataclass(frozen=True)
class TokenizerConfig:
    """Small preset by default: f = 8, 1024 codes of 8 dimensions, 64 px -> 8 x 8 = 64 tokens. Mini presets
    are thinner, have half the codes, and make as many tokens of 32 px: each holds a quarter of the pixels.

    architecture: vqgan or magvit2 (see `autoencoders`); mid and patch are of vqgan alone, and magvit2's
    latent is the code itself, latent = code_dim, and flat_levels steps between its lowest levels keep the
    resolution (LFQ-8 has one). quantizer: vq, lfq (codes = 2^code_dim), ibq or
    euclidean. Raises ValueError for values out of range, and for a size that f does not divide."""

    image_size: Pixels = 64
    channels: Width = 32
    multipliers: Extents = (2, 3)
    res_blocks: Extent = 1
    mid: Flag = False
    patch: Pixels = 4
    latent: Width = 128
    codes: Codes = 1024
    code_dim: Width = 8
    quantizer: str = "vq"
    architecture: str = "vqgan"
    flat_levels: Amount = 0

    def __post_init__(self):
        check(self)
        if self.channels % GROUPS:
            raise InputError(
                f"channels is {self.channels}; it has to be a multiple of {GROUPS}, the groups of its norms"
            )
        steps = len(self.multipliers) - 1
        if self.flat_levels and (self.architecture != "magvit2" or self.flat_levels >= steps):
            raise InputError(
                f"flat_levels is {self.flat_levels}; it is of architecture magvit2, and fewer than its "
                f"{steps} steps between levels (this is {self.architecture})"
            )
        if self.image_size % self.factor:
            raise InputError(
                f"image_size is {self.image_size}, and a token covers f = {self.factor} px (patch x "
                f"2^(multipliers - 1)); it has to be a multiple, such as {self.factor * 8}"
            )

    @property
    def factor(self) -> int:
        """f, pixels along a side of a token."""
        return self.patch * 2 ** (len(self.multipliers) - 1 - self.flat_levels)

    @property
    def grid(self) -> int:
        """Tokens along a side of a picture of image_size."""
        return self.image_size // self.factor


def preset_name(size: str, quantizer: str) -> str:
    """The name in `PRESETS` of the tokenizer of a size, small or mini, with a quantizer of `QUANTIZERS`."""
    return size if quantizer == TokenizerConfig.quantizer else f"{size}-{quantizer}"


_PAPER = TokenizerConfig(
    image_size=256,
    channels=128,
    multipliers=(1, 1, 2, 2, 4),
    res_blocks=4,
    mid=True,
    patch=1,
    latent=256,
    codes=16384,
    code_dim=256,
)
_MINI = TokenizerConfig(image_size=32, multipliers=(1, 2), patch=2, latent=64, codes=512)
PRESETS = {
    preset_name(size, quantizer): replace(
        config, quantizer=quantizer, code_dim=kind.small_code_dim(config.codes)
    )
    for size, config in (("small", TokenizerConfig()), ("mini", _MINI))
    for quantizer, kind in QUANTIZERS.items()
} | {
    "vq-16": replace(_PAPER, res_blocks=2, code_dim=8),
    "lfq-16": replace(_PAPER, latent=14, code_dim=14, quantizer="lfq", architecture="magvit2"),
    "lfq-8": replace(
        _PAPER, latent=8, code_dim=8, codes=256, quantizer="lfq", architecture="magvit2", flat_levels=1
    ),
    "ibq-16": replace(_PAPER, quantizer="ibq"),
}


def preset(name: str) -> TokenizerConfig:
    """The tokenizer of a name in `PRESETS`; ValueError lists the names."""
    if name not in PRESETS:
        raise InputError(f"unknown tokenizer {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


class Tokenizer(Pretrained):
    Config = TokenizerConfig
    config: TokenizerConfig
    encoder: Encoder | Magvit2Encoder
    decoder: Decoder | Magvit2Decoder
    to_code: nn.Module
    from_code: nn.Module
    quantizer: Quantizer

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        if config.quantizer not in QUANTIZERS:
            raise InputError(f"unknown quantizer {config.quantizer!r}; choose one of {', '.join(QUANTIZERS)}")
        self.config = config
        shape = (config.channels, tuple(config.multipliers), config.res_blocks, config.latent)
        if config.architecture == "vqgan":
            self.encoder = Encoder(*shape, config.patch, config.mid)
            self.to_code = nn.Conv2d(config.latent, config.code_dim, 1)
            self.from_code = nn.Conv2d(config.code_dim, config.latent, 1)
            self.decoder = Decoder(*shape, config.patch, config.mid)
        elif config.architecture == "magvit2":
            if config.latent != config.code_dim or config.patch != 1:
                raise InputError(
                    f"architecture magvit2 with latent {config.latent}, code_dim {config.code_dim} and patch "
                    f"{config.patch}: it needs latent = code_dim and patch = 1"
                )
            self.encoder = Magvit2Encoder(*shape, config.flat_levels)
            self.decoder = Magvit2Decoder(*shape, config.flat_levels)
            self.to_code = self.from_code = nn.Identity()
        else:
            raise InputError(f"unknown architecture {config.architecture!r}; choose vqgan or magvit2")
        self.quantizer = QUANTIZERS[config.quantizer](config.codes, config.code_dim)

    def set_image_size(self, image_size: int) -> None:
        """Make it the tokenizer of pictures of another size; its networks are convolutional. Raises
        ValueError where f does not divide it."""
        self.config = replace(self.config, image_size=image_size)

    @property
    def grid(self) -> int:
        return self.config.grid

    def grid_of(self, images: Tensor | tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens of images (B, 3, H, W), or of a size (H, W).

        Raises ValueError where H or W is no multiple of f."""
        height, width = images.shape[-2:] if isinstance(images, Tensor) else images
        f = self.config.factor
        for name, length in (("height", height), ("width", width)):
            if length < f or length % f:
                below, above = length // f * f, (length // f + 1) * f
                near = f"{below} or {above}" if below else f"{above}"
                raise InputError(
                    f"images have {name} {length}, no multiple of f = {f}; resize, crop or pad it to {near}"
                )
        return height // f, width // f

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float in [-1, 1] -> latent before quantization (B, N, D), raster order.

        Raises ValueError where H or W is no multiple of f."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"images have shape {tuple(images.shape)}; expected (B, 3, H, W)")
        self.grid_of(images)
        return self.to_code(self.encoder(images)).flatten(2).transpose(1, 2)

    def assign(self, images: Tensor) -> Assignment:
        """Images (B, 3, H, W) float in [-1, 1] -> Assignment with scores (B, N, K) and indices (B, N)."""
        return self.quantizer.assign(self.encode(images))

    def indices(self, images: Tensor) -> Tensor:
        """`assign(images).indices`, (B, N) int64, without holding all scores, of which LFQ needs none."""
        return self.quantizer.indices(self.encode(images))

    def decode_codes(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Code vectors (B, N, D) -> images (B, 3, H, W), not clamped (what the losses see).

        grid: rows and columns of tokens; None for those of a picture of image_size. Raises ValueError where
        it has not N positions."""
        b, n, d = codes.shape
        rows, columns = grid or (self.grid, self.grid)
        if n != rows * columns:
            raise InputError(
                f"{n} tokens are not {rows} x {columns}; say how many rows and columns they are "
                "(`grid`, as `grid_of` gives them)"
            )
        return self.decoder(self.from_code(codes.transpose(1, 2).reshape(b, d, rows, columns)))

    def decode(self, indices: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Indices (B, N) int64 -> images (B, 3, H, W) in [-1, 1]. grid: as for `decode_codes`."""
        return self.decode_codes(self.quantizer.codes(indices), grid).clamp(-1, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images -> indices -> images (B, 3, H, W) in [-1, 1]."""
        return self.decode(self.indices(images), self.grid_of(images))

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """The training pass: reconstruction (B, 3, H, W) not clamped, and the quantizer's answer."""
        quantized = self.quantizer(self.encode(images))
        return self.decode_codes(quantized.decoder_input, self.grid_of(images)), quantized
