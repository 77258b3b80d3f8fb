"""What a family of released models answers about a state dict, and what released tokenizers have in common.

A family says whether a state dict is one of its own, which config that state dict has, and under which names
its files keep each of our tensors. Reading and writing files follows from these three answers.
"""

import re
from abc import ABC, abstractmethod

from torch import Tensor

from gear_studio.errors import InputError
from gear_studio.models.generator import Generator, GeneratorConfig
from gear_studio.models.tokenizer import Tokenizer, TokenizerConfig

MOST_SIGNS = 20  # of a code of LFQ: `ranges.Codes`
State = dict[str, Tensor]
Names = dict[str, list[str]]  # our key: the released keys whose tensors, put together along axis 0, it is

# What a layer of a tokenizer holds -> its name in the released files. All else is called the same.
_IN_LAYER = {
    "body.0": ["norm1"],
    "body.2": ["conv1"],
    "body.3": ["norm2"],
    "body.5": ["conv2"],
    "shortcut": ["nin_shortcut"],
    "qkv": ["q", "k", "v"],
    "out": ["proj_out"],
}
_AROUND_QUANTIZER = {
    "to_code.": "quant_conv.",
    "from_code.": "post_quant_conv.",
    "quantizer.codebook": "quantize.embedding.weight",
}


class TokenizerFamily(ABC):
    """Released tokenizers with one set of names.

    name: for messages. quantizer, architecture: of the tokenizers it has names for. level, block: how its
    encoder calls a level, and a residual block of a level."""

    name: str
    quantizer: str
    architecture: str
    level: str
    block: str

    @abstractmethod
    def holds(self, state: dict) -> bool:
        """Whether a state dict is of this family, by its keys."""

    @abstractmethod
    def layers(self, levels: int, blocks: int, flat: int) -> tuple[list[str], list[str]]:
        """Released names of the encoder's and the decoder's layers with weights, in the order of computation.

        levels: of the encoder. blocks: residual blocks of each. flat: see `TokenizerConfig.flat_levels`."""

    def flat_levels(self, state: State, levels: int) -> int:
        """How many steps between the lowest levels of a state dict keep the resolution."""
        return 0

    def quantizer_of(self, state: dict) -> str | None:
        """The quantizer that a state dict was trained with, None where nothing in it says so for sure.

        state: as the file has it, with training's own entries."""
        return self.quantizer

    def has_names_for(self, config: TokenizerConfig) -> bool:
        """Whether a tokenizer of this config can be written in the family's format."""
        mine = config.quantizer == self.quantizer and config.architecture == self.architecture
        return mine and config.patch == 1 and config.mid

    def code_sizes(self, state: State, where: str, quantizer: str) -> tuple[int, int]:
        """Codes, and dimensions of a code. LFQ stores no codebook: its codes are the channels' signs."""
        if quantizer == "lfq":
            last = "quant_conv.weight" if "quant_conv.weight" in state else "encoder.conv_out.weight"
            dim = shape_of(state, last, where)[0]
            if dim > MOST_SIGNS:
                raise InputError(
                    f"{where} has codes of {dim} signs, 2^{dim} of them, as grouped LFQ (GLFQ-16): a "
                    f"generator predicts and reads codes by a table, which has room for 2^{MOST_SIGNS}; take "
                    "LFQ-8 or LFQ-16. docs/checkpoints.md says more"
                )
            return 2**dim, dim
        codes, dim = shape_of(state, "quantize.embedding.weight", where)
        return codes, dim

    def config_of(self, state: State, image_size: int, where: str, quantizer: str) -> TokenizerConfig:
        """The config of a state dict, by its keys and shapes. image_size: of the pictures, which nothing in a
        file says. where: names the state dict in errors.

        Raises ValueError for a key that is missing, or an image size that its levels do not divide."""
        levels = count_matches(state, rf"encoder\.{self.level}\.(\d+)\.")
        channels = shape_of(state, "encoder.conv_in.weight", where)[0]
        widths = [
            shape_of(state, f"encoder.{self.level}.{i}.{self.block}.0.conv1.weight", where)[0]
            for i in range(levels)
        ]
        latent = shape_of(state, "encoder.conv_out.weight", where)[0]
        codes, dim = self.code_sizes(state, where, quantizer)
        flat = self.flat_levels(state, levels)
        if not levels or image_size % 2 ** (levels - 1 - flat):
            raise InputError(
                f"{where}: {levels} levels do not fit pictures of {image_size} px; give another size"
            )
        return TokenizerConfig(
            image_size=image_size,
            channels=channels,
            multipliers=tuple(width // channels for width in widths),
            res_blocks=count_matches(state, rf"encoder\.{self.level}\.0\.{self.block}\.(\d+)\."),
            mid=True,
            patch=1,
            latent=latent,
            codes=codes,
            code_dim=dim,
            quantizer=quantizer,
            architecture=self.architecture,
            flat_levels=flat,
        )

    def names_of(self, tokenizer: Tokenizer) -> Names:
        """The released names of every tensor of a tokenizer that the family has names for."""
        names: Names = {}
        config = tokenizer.config
        layers = self.layers(len(config.multipliers), config.res_blocks, config.flat_levels)
        for part, part_layers in zip(("encoder", "decoder"), layers, strict=True):
            blocks = getattr(tokenizer, part).blocks
            with_weights = [(n, block.state_dict()) for n, block in enumerate(blocks) if block.state_dict()]
            for (number, weights), layer in zip(with_weights, part_layers, strict=True):
                for key in weights:
                    inside, _, kind = key.rpartition(".")
                    names[f"{part}.blocks.{number}.{key}"] = [
                        ".".join(filter(None, (part, layer, name, kind)))
                        for name in _IN_LAYER.get(inside, [inside])
                    ]
        for key in tokenizer.state_dict().keys() - names.keys():
            ours = next(name for name in _AROUND_QUANTIZER if key.startswith(name))
            names[key] = [key.replace(ours, _AROUND_QUANTIZER[ours])]
        return names


class VqganFamily(TokenizerFamily):
    """The VQGAN of taming-transformers, under some names: of a level of the decoder, and of the three layers
    in the middle."""

    architecture = "vqgan"
    middle: tuple[str, str, str]

    @abstractmethod
    def decoder_level(self, level: int, levels: int) -> str:
        """The decoder's name of a level. level: 0 is the highest resolution."""

    def layers(self, levels: int, blocks: int, flat: int = 0) -> tuple[list[str], list[str]]:
        def level_layers(name: str, count: int, level: int) -> list[str]:
            kinds = [self.block, "attn"] if level == levels - 1 else [self.block]
            return [f"{name}.{kind}.{i}" for i in range(count) for kind in kinds]

        encoder, decoder = ["conv_in"], ["conv_in", *self.middle]
        for level in range(levels):
            name = f"{self.level}.{level}"
            encoder += level_layers(name, blocks, level)
            encoder += [f"{name}.downsample.conv"] * (level < levels - 1)
        for level in reversed(range(levels)):
            name = self.decoder_level(level, levels)
            decoder += level_layers(name, blocks + 1, level)
            decoder += [f"{name}.upsample.conv"] * (level > 0)
        return [*encoder, *self.middle, "norm_out", "conv_out"], [*decoder, "norm_out", "conv_out"]


class GeneratorFamily(ABC):
    """Released generators with one set of names.

    not_weights: keys that files hold beside the weights. text_encoder: of those that take captions."""

    not_weights: tuple[str, ...]
    text_encoder: str

    @abstractmethod
    def holds(self, state: dict) -> bool:
        """Whether a state dict is of this family, by its keys."""

    @abstractmethod
    def config_of(
        self, state: State, grid: int | None, where: str, heads: int | None = None
    ) -> GeneratorConfig:
        """The config of a state dict, by its keys and shapes. grid: tokens along a side, or None for what the
        file says. heads: of the attention, which no weight shows; None where the file or the size says it.
        where: names the state dict in errors. Raises ValueError for what fits no generator."""

    @abstractmethod
    def names_of(self, generator: Generator) -> Names:
        """The released names of every tensor of a generator."""


def has_key(state: dict, beginning: str) -> bool:
    """Whether some key of a state dict begins so."""
    return any(str(key).startswith(beginning) for key in state)


def shape_of(state: State, key: str, where: str) -> tuple[int, ...]:
    """The shape of one tensor; ValueError naming the key where it is missing."""
    if key not in state:
        raise InputError(f"{where} does not fit any released model: missing {key}")
    return tuple(state[key].shape)


def count_matches(state: State, pattern: str) -> int:
    """How many different values the first group of `pattern` has among the keys' beginnings."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})
