"""Files under the names of taming-transformers: its VQGAN, latent-diffusion's VQ, and the IBQ-16 tokenizer.

The three have the same keys and quantize differently: IBQ by the inner product, the others by distance. Read
as the other a file loads and gives nearly every position a wrong code, so what is not sure is asked for.
"""

from gear_studio.models.families.base import VqganFamily, count_matches, has_key
from gear_studio.models.tokenizer import TokenizerConfig


class Taming(VqganFamily):
    name, quantizer = "IBQ-16 and VQGAN", "ibq"
    level, block, middle = "down", "block", ("mid.block_1", "mid.attn_1", "mid.block_2")

    def holds(self, state: dict) -> bool:
        """Any encoder: the names are the plain ones, so this family is asked last."""
        return has_key(state, "encoder.")

    def decoder_level(self, level: int, levels: int) -> str:
        return f"up.{level}"

    def quantizer_of(self, state: dict) -> str | None:
        """Two signs have to agree. Residual blocks of a level, in the encoder and the decoder: 4 and 5 in
        IBQ-16, 2 and 3 in taming's and latent-diffusion's. Training's own entries: the files of those two
        hold the loss's networks and no EMA shadows; IBQ's hold both, and what was copied out of them neither.
        """
        encoder, decoder = (
            count_matches(state, rf"{level}\.0\.block\.(\d+)\.")
            for level in (r"encoder\.down", r"decoder\.up")
        )
        loss_alone = has_key(state, "loss.") and not has_key(state, "model_ema.")
        if (encoder, decoder) == (4, 5) and not loss_alone:
            return "ibq"
        if (encoder, decoder) == (2, 3) and loss_alone:
            return "euclidean"
        return None

    def has_names_for(self, config: TokenizerConfig) -> bool:
        theirs = config.quantizer in ("ibq", "euclidean") and config.architecture == self.architecture
        return theirs and config.patch == 1 and config.mid
