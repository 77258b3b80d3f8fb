"""IBQ's released files: the IBQ-16 tokenizer, under the names of taming-transformers' VQGAN."""

from gear_studio.models.families.base import VqganFamily, has_key


class Ibq16(VqganFamily):
    name, quantizer = "IBQ-16", "ibq"
    level, block, middle = "down", "block", ("mid.block_1", "mid.attn_1", "mid.block_2")

    def holds(self, state: dict) -> bool:
        """Any encoder: the names are the plain ones, so this family is asked last."""
        return has_key(state, "encoder.")

    def decoder_level(self, level: int, levels: int) -> str:
        return f"up.{level}"
