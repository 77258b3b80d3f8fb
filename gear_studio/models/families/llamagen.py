"""LlamaGen's released files: the VQ-16 tokenizer, and the generators of classes and of text."""

import math
import re
from dataclasses import replace

from gear_studio.errors import InputError
from gear_studio.models.families.base import (
    GeneratorFamily,
    Names,
    State,
    VqganFamily,
    count_matches,
    has_key,
    shape_of,
)
from gear_studio.models.generator import SIZES, Generator, GeneratorConfig, paper_config

CAPTION_LENGTH = 300  # of the text-to-image generators; their files do not say it

# What a block of ours holds -> its name in the released files. All else is called the same.
_IN_GENERATOR = {
    "condition.table": "cls_embedding.embedding_table",
    "condition.up": "cls_embedding.cap_proj.fc1",
    "condition.down": "cls_embedding.cap_proj.fc2",
    "tokens": "tok_embeddings",
    "attention.qkv": "attention.wqkv",
    "attention.out": "attention.wo",
    "attention.qkv_text": "attention.wqkv_text",
    "attention.out_text": "attention.wo_text",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "feed_forward.w1",
    "feed_forward.up": "feed_forward.w3",
    "feed_forward.down": "feed_forward.w2",
    "head": "output",
}


class Vq16(VqganFamily):
    name, quantizer = "VQ-16", "vq"
    level, block, middle = "conv_blocks", "res", ("mid.0", "mid.1", "mid.2")

    def holds(self, state: dict) -> bool:
        return has_key(state, "encoder.conv_blocks.")

    def decoder_level(self, level: int, levels: int) -> str:
        """Counted from the lowest resolution up, unlike the encoder's."""
        return f"conv_blocks.{levels - 1 - level}"


class LlamaGen(GeneratorFamily):
    """The generators of LlamaGen and GEAR. Some files store the rotary table, which is computed here."""

    not_weights = ("freqs_cis",)
    text_encoder = "Qwen/Qwen3-1.7B"  # of GEAR's; the files do not say it

    def holds(self, state: dict) -> bool:
        return has_key(state, "layers.")

    def config_of(
        self, state: State, grid: int | None, where: str, heads: int | None = None
    ) -> GeneratorConfig:
        """A caption has `CAPTION_LENGTH` positions, which no weight shows, unless a rotary table is stored.
        The tap of a size that `SIZES` does not list is at a third of its blocks, as the paper's are.

        Raises ValueError for such a size where neither `heads` nor a stored rotary table says how many it
        has."""
        codes, dim = shape_of(state, "tok_embeddings.weight", where)
        blocks = count_matches(state, r"layers\.(\d+)\.")
        captioned = "cls_embedding.cap_proj.fc1.weight" in state
        if captioned:
            caption_dim, classes = shape_of(state, "cls_embedding.cap_proj.fc1.weight", where)[1], 0
        else:
            rows = shape_of(state, "cls_embedding.embedding_table.weight", where)[0]
            caption_dim, classes = 0, rows - 1  # the last is the null class
        sizes = [name for name, (b, d, _, _) in SIZES.items() if (b, d) == (blocks, dim)]
        if "freqs_cis" in state:
            stored_heads = dim // (2 * state["freqs_cis"].shape[1])  # an angle for two channels of a head
            if heads not in (None, stored_heads):
                raise InputError(f"{where} has {stored_heads} heads by its rotary table, not {heads}")
            heads = stored_heads
        if not sizes and heads is None:
            known = ", ".join(f"{name} {b} x {d}" for name, (b, d, _, _) in SIZES.items())
            raise InputError(
                f"{where} has {blocks} blocks of width {dim}, and weights do not show how many heads: say "
                f"so with --heads N (sizes that need no saying: {known})"
            )
        caption_length = CAPTION_LENGTH if captioned else 0
        streams = re.compile(r"layers\.(\d+)\..*_text\.")
        dual = max((1 + int(found[1]) for found in map(streams.match, state) if found), default=0)
        if "freqs_cis" in state:
            rows = len(state["freqs_cis"])
            if captioned:  # rows of the caption and of the grid: their sum does not show the grid
                caption_length, stored = rows - (grid or 16) ** 2, grid or 16
            else:
                stored = math.isqrt(rows - 1)
            if grid not in (None, stored):
                raise InputError(f"{where} is for {stored} x {stored} tokens, asked for {grid} x {grid}")
            if caption_length < 0:
                raise InputError(
                    f"{where} has {rows} rotary positions, too few for {stored} x {stored} tokens"
                )
            grid = stored
        config = paper_config(sizes[0] if sizes else "B", classes, codes, grid or 16)
        if not sizes:
            config = replace(config, dim=dim, blocks=blocks, tap=max(1, round(blocks / 3)))
        return replace(
            config,
            heads=heads or config.heads,
            caption_dim=caption_dim,
            caption_length=caption_length,
            dual_blocks=-1 if not captioned or dual == max(1, round(blocks / 3)) else dual,
        )

    def names_of(self, generator: Generator) -> Names:
        names: Names = {}
        for key, _ in generator.named_parameters():  # a released file holds no null caption
            block, inside = re.findall(r"^(?:blocks\.(\d+)\.)?(.+)\.weight$", key)[0]
            layer = f"layers.{block}." if block else ""
            names[key] = [f"{layer}{_IN_GENERATOR.get(inside, inside)}.weight"]
        return names
