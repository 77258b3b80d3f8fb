"""The generator: a causal transformer over [condition, tokens] with the LlamaGen architecture.

Notable: RMSNorm (eps 1e-5), SwiGLU, 2-D rotary positions on the token grid with the condition position
unrotated (see `rotary_table`), no biases, an output head that starts at zero, and a *tap*: the hidden states
after block `l` (1-based) that the alignment loss reads.

The generator takes *embeddings*, not indices: the caller chooses the read-out (see `readout`). Position i
(0-based, the condition first) predicts token i + 1, so the hidden state aligned with patch i has seen only
the tokens before it.

The condition is a class or a caption (`conditions`). A caption has many positions, the last of which counts
as position 0 here: it predicts the first token. Its positions have projections and a norm of their own in
the first third of the blocks and share everything after it; all of [caption, tokens] is causal (paper,
text-to-image). The released code has both as options: how many blocks (`dual_blocks`), and a caption whose
words all see each other (`text_attention`).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_studio.errors import InputError
from gear_studio.models.conditions import CaptionCondition, ClassCondition, Condition
from gear_studio.models.pretrained import Pretrained, check_shapes
from gear_studio.ranges import Amount, Codes, Decay, Extent, Flag, Probability, Range, Width, check

TEXT_ATTENTIONS = ("causal", "prefix")


@dataclass(frozen=True)
class GeneratorConfig:
    """Small preset by default. tap: the block (1-based) whose output is aligned with the teacher.

    Raises ValueError for values out of range, and for sizes that do not fit each other."""

    classes: Amount = 24
    codes: Codes = 1024
    grid: Extent = 8
    dim: Width = 128
    blocks: Extent = 6
    heads: Extent = 4
    tap: Extent = 3
    dropout: Decay = 0.1
    label_drop: Probability = 0.1
    zero_condition_key: Flag = False  # see `rotary_table`
    caption_dim: Amount = 0  # features a word, of the text encoder; 0: conditioned on class labels
    caption_length: Amount = 0  # positions of a caption
    dual_blocks: Annotated[
        int, Range(int, ge=-1)
    ] = -1  # from the first, with weights of their own for captions; -1: a third
    text_attention: str = "causal"  # or prefix: the words of a caption see each other, earlier and later

    def __post_init__(self):
        check(self)
        if self.dim % (4 * self.heads):
            raise InputError(
                f"dim {self.dim} with {self.heads} heads: 2-D rotary needs a head width divisible by 4"
            )
        if self.tap > self.blocks:
            raise InputError(f"tap {self.tap} is not one of the blocks 1..{self.blocks}")

        if self.dual_blocks > self.blocks:
            raise InputError(
                f"dual_blocks {self.dual_blocks} are more than the {self.blocks} blocks there are"
            )
        if self.text_attention not in TEXT_ATTENTIONS:
            raise InputError(
                f"text_attention is {self.text_attention!r}; choose {' or '.join(TEXT_ATTENTIONS)}"
            )

    @property
    def text_blocks(self) -> int:
        """How many blocks, from the first, have weights of their own for the caption's positions."""
        if not self.caption_dim:
            return 0
        return max(1, round(self.blocks / 3)) if self.dual_blocks < 0 else self.dual_blocks


# name: (blocks, dim, heads, tap). The taps of B, L and XL are the paper's; the others keep the same third.
# 1B is the text-to-image generator's.
SIZES = {
    "S": (12, 384, 12, 4),
    "B": (12, 768, 12, 4),
    "L": (24, 1024, 16, 8),
    "XL": (36, 1280, 20, 12),
    "1B": (36, 1440, 20, 12),
    "XXL": (48, 1536, 24, 16),
    "XXXL": (48, 2560, 40, 16),
}


def paper_config(size: str, classes: int = 1000, codes: int = 16384, grid: int = 16) -> GeneratorConfig:
    """The paper's generator of a size in `SIZES`, with the condition's key zero as in the released code."""
    if size not in SIZES:
        raise InputError(f"unknown generator size {size!r}; choose one of {', '.join(SIZES)}")
    blocks, dim, heads, tap = SIZES[size]
    return GeneratorConfig(classes, codes, grid, dim, blocks, heads, tap, zero_condition_key=True)


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of a batch, and where the next ones go.

    buffers: (blocks, 2, B, heads, T, head_dim), of fixed size, written in place. visible:
    `Condition.visible`. positions: (new,) int64, the positions decoded next. reach: how many positions, from
    the first, are looked at; those behind the newest are masked."""

    buffers: Tensor
    visible: Tensor | None
    positions: Tensor
    reach: int

    def at(self, positions: Tensor, reach: int, rows: int | None = None) -> "KeyValueCache":
        """The same memory at other positions, of the first `rows` of the batch (None: of all)."""
        visible = None if self.visible is None else self.visible[:rows]
        return KeyValueCache(self.buffers[:, :, :rows], visible, positions, reach)

    def extend(self, block: int, k: Tensor, v: Tensor) -> list[Tensor]:
        """Write the new keys and values (B, heads, new, head_dim); returns all within reach."""
        buffers = self.buffers[block].unbind()
        for buffer, new in zip(buffers, (k, v), strict=True):
            buffer.index_copy_(2, self.positions, new)
        return [buffer[:, :, : self.reach] for buffer in buffers]


def rotary_table(
    grid: int,
    head_dim: int,
    base: float = 10000.0,
    zero_condition_key: bool = False,
    condition_positions: int = 1,
) -> Tensor:
    """2-D rotary positions as (cosine, sine) of each angle: (condition_positions + grid^2, head_dim / 2, 2),
    the condition first, then the grid, half of the angles by row, half by column.

    The condition is not rotated. With `zero_condition_key` its cosine is 0 as well, which makes its query and
    key vanish: every token then gives the condition the attention score 0, whatever both hold. The released
    LlamaGen and GEAR generators were trained so (`precompute_freqs_cis_2d` pads the table with zeros)."""
    with torch.device("cpu"):  # the same angles for every device
        frequencies = base ** -(torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
        angles = torch.outer(torch.arange(grid).float(), frequencies)
        angles = torch.cat([angles.repeat_interleave(grid, 0), angles.repeat(grid, 1)], dim=1)
        condition = torch.tensor([0.0 if zero_condition_key else 1.0, 0.0])
        condition = condition.expand(condition_positions, head_dim // 2, 2)
        table = torch.cat([condition, torch.stack([angles.cos(), angles.sin()], dim=-1)])
    return table.to(torch.get_default_device())


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate neighbouring pairs of channels. x: (..., T, head_dim); angles: (T, head_dim / 2, 2), rows of
    `rotary_table`."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # compiled kernels have no complex numbers; else those are faster
        (a, b), (cosine, sine) = pairs.unbind(-1), angles.unbind(-1)
        return torch.stack([a * cosine - b * sine, a * sine + b * cosine], -1).flatten(-2).type_as(x)
    rotated = torch.view_as_complex(pairs.contiguous()) * torch.view_as_complex(angles)
    return torch.view_as_real(rotated).flatten(-2).type_as(x)


def attention_mask(visible: Tensor | None, begin: int, end: int, prefix: bool = False) -> Tensor | None:
    """Which positions the queries begin..end-1 may look at: bool (B, 1, end - begin, end), or None where each
    may look at everything up to itself. visible: `Condition.visible`."""
    if visible is None:
        return None
    return mask_of(visible, torch.arange(begin, end, device=visible.device), end, prefix)


def mask_of(visible: Tensor | None, asking: Tensor, end: int, prefix: bool = False) -> Tensor:
    """Which of the positions 0..end-1 the positions `asking` (T,) may look at: bool (B or 1, 1, T, end).

    The mask hides the condition's padding from all but itself: padding of an empty caption sees nothing else.
    visible: `Condition.visible`, None or (B, positions) with positions <= end. prefix: the condition's
    positions also look at each other's later ones (`GeneratorConfig.text_attention`)."""
    position, asking = torch.arange(end, device=asking.device), asking[:, None]
    seen = (position <= asking)[None]
    if visible is not None:
        if prefix:
            seen = seen | (position < visible.shape[1])
        columns = F.pad(visible, (0, end - visible.shape[1]), value=True)[:, None]
        seen = (columns & seen) | (position == asking)
    return seen[:, None]


def by_stream(text: nn.Module | None, image: nn.Module, x: Tensor, words: int) -> Tensor:
    """Apply `text` to the first `words` positions of x (B, T, d) and `image` to the others; without `text`,
    `image` to all."""
    if text is None or not words:
        return image(x)
    return torch.cat([text(x[:, :words]), image(x[:, words:])], dim=1)


class RMSNorm(nn.RMSNorm):
    def __init__(self, dim: int):
        super().__init__(dim, eps=1e-5)


class Attention(nn.Module):
    """Causal self-attention. text: whether the caption's positions have projections of their own."""

    def __init__(self, config: GeneratorConfig, text: bool):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        self.qkv_text = nn.Linear(config.dim, 3 * config.dim, bias=False) if text else None
        self.out_text = nn.Linear(config.dim, config.dim, bias=False) if text else None

    def projected(self, x: Tensor, angles: Tensor, words: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated, and values of normed x (B, T, d); each (B, heads, T, head_dim)."""
        qkv = by_stream(self.qkv_text, self.qkv, x, words)
        # Unbound, not sliced: the backward pass of a slice would fill a tensor of all three with zeros.
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return rotate(q, angles), rotate(k, angles), v

    def forward(
        self,
        x: Tensor,
        angles: Tensor,
        cache: KeyValueCache | None,
        block: int,
        mask: Tensor | None,
        words: int,
    ) -> Tensor:
        q, k, v = self.projected(x, angles, words)
        if cache is not None:
            k, v = cache.extend(block, k, v)
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        return by_stream(self.out_text, self.out, y.transpose(1, 2).flatten(2), words)


class FeedForward(nn.Module):
    """SwiGLU; hidden width int(2/3 * 4 d), rounded up to a multiple of 256."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = -(-int(2 * 4 * dim / 3) // 256) * 256
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention, then feed-forward, both residual. text: whether the caption's positions have an attention
    norm and projections of their own."""

    def __init__(self, config: GeneratorConfig, text: bool):
        super().__init__()
        self.attention_norm = RMSNorm(config.dim)
        self.attention_norm_text = RMSNorm(config.dim) if text else None
        self.attention = Attention(config, text)
        self.feed_forward_norm = RMSNorm(config.dim)
        self.feed_forward = FeedForward(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def normed(self, x: Tensor, words: int) -> Tensor:
        """The attention's input: x (B, T, d) after its norm."""
        return by_stream(self.attention_norm_text, self.attention_norm, x, words)

    def forward(
        self,
        x: Tensor,
        angles: Tensor,
        cache: KeyValueCache | None = None,
        block: int = 0,
        mask: Tensor | None = None,
        words: int = 0,
    ) -> Tensor:
        """words: how many positions of x, from the first, are the condition's. mask: `attention_mask`, or
        what is added to the scores; None is causal."""
        x = x + self.dropout(self.attention(self.normed(x, words), angles, cache, block, mask, words))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Generator(Pretrained):
    Config = GeneratorConfig
    config: GeneratorConfig
    condition: Condition
    angles: Tensor

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        if bool(config.caption_dim) != bool(config.caption_length):
            raise InputError(
                f"caption_dim {config.caption_dim} with caption_length {config.caption_length}: captions "
                "need both, class labels neither"
            )
        self.config = config
        if config.caption_dim:
            sizes = config.caption_dim, config.caption_length, config.dim
            self.condition = CaptionCondition(*sizes, config.label_drop)
        else:
            self.condition = ClassCondition(config.classes, config.dim, config.label_drop)
        self.tokens = nn.Embedding(config.codes, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config, number < config.text_blocks) for number in range(config.blocks)
        )
        self.norm = RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, config.codes, bias=False)
        angles = rotary_table(
            config.grid,
            config.dim // config.heads,
            zero_condition_key=config.zero_condition_key,
            condition_positions=self.condition.positions,
        )
        self.register_buffer("angles", angles, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.head.weight)

    @property
    def token_table(self) -> Tensor:
        """E (K, d), the generator's own embedding of the codes."""
        return self.tokens.weight

    @property
    def length(self) -> int:
        """N, tokens an image."""
        return self.config.grid**2

    def mask(self, visible: Tensor | None, begin: int, end: int) -> Tensor | None:
        """`attention_mask` with this generator's attention among words."""
        return attention_mask(visible, begin, end, self.config.text_attention == "prefix")

    def hidden(self, embeddings: Tensor, condition: Tensor, blocks: list[int]) -> list[Tensor]:
        """Hidden states after each of `blocks` (1-based, ascending); only as many blocks run as the last one
        needs.

        embeddings: (B, N-1, d), a read-out of the first N-1 tokens. condition: labels (B,), or encoded
        captions (B, T, 1 + caption_dim).
        Returns tensors (B, N, d); position i is the state that predicts token i + 1.
        """
        last = blocks[-1]
        if not 1 <= blocks[0] <= last <= self.config.blocks:
            raise InputError(f"blocks {blocks} are not within 1..{self.config.blocks}")
        condition, words = self.condition.with_nulls(condition), self.condition.positions
        x = self.dropout(torch.cat([self.condition(condition), embeddings], dim=1))
        mask = self.mask(self.condition.visible(condition), 0, x.shape[1])
        states = []
        for number, block in enumerate(self.blocks[:last], start=1):
            x = block(x, self.angles[: x.shape[1]], mask=mask, words=words)
            if number in blocks:
                # A slice of all would be the same numbers, but its gradient is added in another order.
                states.append(x if words == 1 else x[:, words - 1 :])
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Last block's hidden states (B, T, d) -> next-token logits (B, T, K)."""
        return self.head(self.norm(hidden))

    def forward(self, embeddings: Tensor, condition: Tensor, tap: int | None = None):
        """Logits (B, N, K) for tokens 1..N from embeddings (B, N-1, d) of tokens 1..N-1.

        With `tap`, also the hidden states (B, N, d) after that block (1-based): returns (logits, hidden)."""
        states = self.hidden(embeddings, condition, sorted({tap or self.config.blocks, self.config.blocks}))
        logits = self.logits(states[-1])
        return (logits, states[0]) if tap else logits

    def new_cache(self, condition: Tensor) -> KeyValueCache:
        """An empty cache for decoding `condition`, whose own positions come first."""
        config, words, weights = self.config, self.condition.positions, self.token_table
        shape = (len(condition), config.heads, words - 1 + self.length, config.dim // config.heads)
        buffers = torch.zeros(config.blocks, 2, *shape, device=weights.device, dtype=weights.dtype)
        positions = torch.arange(words, device=weights.device)
        return KeyValueCache(buffers, self.condition.visible(condition), positions, words)

    def decode(self, x: Tensor, cache: KeyValueCache, words: int = 0) -> Tensor:
        """One cached step. x: (B, new, d) at the cache's positions: the condition, embedded (words: its
        positions), or the last token. Returns logits (B, K) of the next token."""
        seen = mask_of(cache.visible, cache.positions, cache.reach, self.config.text_attention == "prefix")
        mask = torch.zeros_like(seen, dtype=x.dtype).masked_fill_(~seen, -torch.inf)  # once for all blocks
        angles = self.angles[cache.positions]
        for number, block in enumerate(self.blocks):
            x = block(x, angles, cache, number, mask, words)
        return self.logits(x[:, -1])

    def start_from(self, other: "Generator") -> None:
        """Take the weights of a generator of the same size: all of them, or of a class-conditional one, where
        this one is asked by captions, all but its condition (`take_image_stream`).

        Raises ValueError naming what does not fit."""
        ours, theirs = self.config, other.config
        sizes = ["codes", "grid", "dim", "blocks", "heads", "zero_condition_key"]
        captions = bool(ours.caption_dim) and not theirs.caption_dim
        of_captions = ["caption_dim", "caption_length", "text_blocks", "text_attention"]
        sizes += [] if captions else ["classes", *of_captions]
        if different := [name for name in sizes if getattr(ours, name) != getattr(theirs, name)]:
            shown = ", ".join(
                f"{n} is {getattr(theirs, n)!r}, asked for {getattr(ours, n)!r}" for n in different
            )
            raise InputError(
                f"the generator to go on with is another than the recipe's ({shown}); choose the --recipe "
                "that fits it, or --start fresh"
            )
        if captions:
            self.take_image_stream(other)
        else:
            self.load_state_dict(other.state_dict())

    @torch.no_grad()
    def take_image_stream(self, other: "Generator") -> None:
        """Start from the weights of a class-conditional generator of the same size and codes: all but its
        condition. The caption's own projections and norms start as copies of the image's.

        Raises ValueError naming what does not fit."""
        theirs = {k: v for k, v in other.state_dict().items() if not k.startswith("condition.")}
        own = self.state_dict()
        for key in own:
            if "_text." in key:
                theirs[key] = theirs.get(key, theirs.get(key.replace("_text.", "."), own[key]))
        shapes = [
            {k: tuple(v.shape) for k, v in held.items() if not k.startswith("condition.")}
            for held in (theirs, own)
        ]
        check_shapes("the class-conditional generator", "Generator", *shapes)
        self.load_state_dict(theirs, strict=False)
