"""Open-MAGVIT2's released files: the LFQ-16 tokenizer, and GEAR's LFQ-8 with one step of resolution less."""

from gear_studio.models.families.base import State, TokenizerFamily, count_matches, has_key


class Lfq16(TokenizerFamily):
    name, quantizer, architecture = "LFQ-16", "lfq", "magvit2"
    level, block = "down", "block"

    def holds(self, state: dict) -> bool:
        return has_key(state, "encoder.") and has_key(state, "decoder.adaptive.")

    def flat_levels(self, state: State, levels: int) -> int:
        return max(0, levels - 1 - count_matches(state, r"encoder\.down\.(\d+)\.downsample\."))

    def layers(self, levels: int, blocks: int, flat: int) -> tuple[list[str], list[str]]:
        middle = [f"mid_block.{i}" for i in range(blocks)]
        encoder, decoder = ["conv_in"], ["conv_in", *middle]
        for level in range(levels):
            encoder += [f"down.{level}.block.{i}" for i in range(blocks)]
            encoder += [f"down.{level}.downsample"] * (level < levels - 1 - flat)
        for level in reversed(range(levels)):
            decoder += [f"adaptive.{level}", *(f"up.{level}.block.{i}" for i in range(blocks))]
            decoder += [f"up.{level}.upsample.conv1"] * (0 < level < levels - flat)
        return [*encoder, *middle, "norm_out", "conv_out"], [*decoder, "norm_out", "conv_out"]
