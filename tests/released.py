"""The released networks, computed a second time: numpy-like float64 functions of their own state dicts.

Written from the description of the files alone (names, padding, order of channels), with no module of the
package, so that agreement means that names and arithmetic are both right."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


class Net:
    """Layers looked up by their released names."""

    def __init__(self, state: dict[str, Tensor]):
        self.state = {key: value.double() for key, value in state.items()}

    def has(self, name: str) -> bool:
        return any(key.startswith(name + ".") for key in self.state)

    def conv(self, name: str, x: Tensor, stride: int = 1, pad: tuple[int, ...] | None = None) -> Tensor:
        weight = self.state[f"{name}.weight"]
        around = weight.shape[-1] // 2
        x = F.pad(x, pad or (around,) * 4)
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride)

    def normed(self, x: Tensor) -> Tensor:
        groups = x.unflatten(1, (32, -1)).flatten(2)
        mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, keepdim=True, unbiased=False)
        return ((groups - mean) / (variance + 1e-6).sqrt()).view(x.shape)

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = (self.state[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return self.normed(x) * weight + bias

    def res(self, name: str, x: Tensor) -> Tensor:
        h = self.conv(f"{name}.conv1", silu(self.norm(f"{name}.norm1", x)))
        h = self.conv(f"{name}.conv2", silu(self.norm(f"{name}.norm2", h)))
        return h + (self.conv(f"{name}.nin_shortcut", x) if self.has(f"{name}.nin_shortcut") else x)

    def attn(self, name: str, x: Tensor) -> Tensor:
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).flatten(2) for part in "qkv")
        weights = torch.einsum("bci,bcj->bij", q, k).div(math.sqrt(q.shape[1])).softmax(-1)
        return x + self.conv(f"{name}.proj_out", torch.einsum("bij,bcj->bci", weights, v).view_as(x))

    def level(self, name: str, block: str, x: Tensor) -> Tensor:
        number = 0
        while self.has(f"{name}.{block}.{number}"):
            x = self.res(f"{name}.{block}.{number}", x)
            if self.has(f"{name}.attn.{number}"):
                x = self.attn(f"{name}.attn.{number}", x)
            number += 1
        return x

    def middle(self, part: str, x: Tensor) -> Tensor:
        for name in ("mid.0", "mid.1", "mid.2", "mid.block_1", "mid.attn_1", "mid.block_2"):
            if self.has(f"{part}.{name}"):
                x = getattr(self, "attn" if self.has(f"{part}.{name}.q") else "res")(f"{part}.{name}", x)
        return self.level(part, "mid_block", x)

    def encode(self, x: Tensor) -> Tensor:
        """Images -> latent before quantization, (B, D, h, w)."""
        x = self.conv("encoder.conv_in", x.double())
        level, block = ("conv_blocks", "res") if self.has("encoder.conv_blocks") else ("down", "block")
        number = 0
        while self.has(name := f"encoder.{level}.{number}"):
            x = self.level(name, block, x)
            if self.has(f"{name}.downsample.conv"):
                x = self.conv(f"{name}.downsample.conv", x, stride=2, pad=(0, 1, 0, 1))
            elif self.has(f"{name}.downsample"):
                x = self.conv(f"{name}.downsample", x, stride=2)
            number += 1
        x = self.middle("encoder", x)
        x = self.conv("encoder.conv_out", silu(self.norm("encoder.norm_out", x)))
        return self.conv("quant_conv", x) if self.has("quant_conv") else x

    def decode(self, code: Tensor) -> Tensor:
        """Code vectors (B, D, h, w) -> images."""
        latent = self.conv("post_quant_conv", code) if self.has("post_quant_conv") else code
        x = self.middle("decoder", self.conv("decoder.conv_in", latent))
        if self.has("decoder.conv_blocks"):
            levels = [f"decoder.conv_blocks.{i}" for i in range(9) if self.has(f"decoder.conv_blocks.{i}")]
        else:
            levels = [f"decoder.up.{i}" for i in reversed(range(9)) if self.has(f"decoder.up.{i}")]
        for name in levels:
            adaptive = name.replace(".up.", ".adaptive.")
            if ".adaptive." in adaptive and self.has(adaptive):
                flat = latent.flatten(2)
                n, mean = flat.shape[-1], flat.mean(-1)
                deviation = ((flat - mean[..., None]).square().sum(-1) / (n - 1) + 1e-6).sqrt()
                scale = (
                    deviation @ self.state[f"{adaptive}.gamma.weight"].T
                    + self.state[f"{adaptive}.gamma.bias"]
                )
                shift = mean @ self.state[f"{adaptive}.beta.weight"].T + self.state[f"{adaptive}.beta.bias"]
                x = scale[..., None, None] * self.normed(x) + shift[..., None, None]
            x = self.level(name, "res" if "conv_blocks" in name else "block", x)
            if self.has(f"{name}.upsample.conv1"):
                wide = self.conv(f"{name}.upsample.conv1", x)
                x = x.new_empty(len(x), x.shape[1], 2 * x.shape[2], 2 * x.shape[3])
                for i in range(2):
                    for j in range(2):
                        x[:, :, i::2, j::2] = wide[:, (2 * i + j) * x.shape[1] :][:, : x.shape[1]]
            elif self.has(f"{name}.upsample"):
                x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
                x = self.conv(f"{name}.upsample.conv", x)
        return self.conv("decoder.conv_out", silu(self.norm("decoder.norm_out", x)))

    def logits(self, tokens: Tensor, labels: Tensor, heads: int, grid: int) -> Tensor:
        """LlamaGen: tokens (B, N-1) and labels (B,) -> logits (B, N, K)."""
        condition = self.state["cls_embedding.embedding_table.weight"][labels][:, None]
        return self.transformer(condition, tokens, heads, grid, None)

    def caption_logits(
        self,
        tokens: Tensor,
        features: Tensor,
        lengths: list[int],
        heads: int,
        grid: int,
        prefix: bool = False,
    ) -> Tensor:
        """LlamaGen, text-to-image: tokens (B, N-1) and text features (B, T, d_t), of which each row's first
        `lengths` are words and the others padding -> logits (B, N, K). prefix: words see later words."""
        x = features.double() @ self.state["cls_embedding.cap_proj.fc1.weight"].T
        x = 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())
        x = x @ self.state["cls_embedding.cap_proj.fc2.weight"].T
        return self.transformer(x, tokens, heads, grid, lengths, prefix)

    def transformer(
        self,
        condition: Tensor,
        tokens: Tensor,
        heads: int,
        grid: int,
        lengths: list[int] | None,
        prefix: bool = False,
    ) -> Tensor:
        x = torch.cat([condition, self.state["tok_embeddings.weight"][tokens]], 1)
        length, width, words = x.shape[1], x.shape[2] // heads, condition.shape[1]
        hidden = torch.ones(length, length).triu(1).bool().repeat(len(x), 1, 1)
        if prefix:
            hidden[:, :words, :words] = False
        for row, count in enumerate(lengths or []):
            hidden[row, :, count:words] = True
        hidden[:, range(length), range(length)] = False
        number = 0
        while self.has(name := f"layers.{number}"):
            h = self.two(f"{name}.attention_norm", x, words, self.rms)
            qkv = self.two(f"{name}.attention.wqkv", h, words, self.linear)
            q, k, v = (part.unflatten(-1, (heads, width)) for part in qkv.split(heads * width, -1))
            q, k = self.rotated(q, grid, words), self.rotated(k, grid, words)
            scores = torch.einsum("bihc,bjhc->bhij", q, k) / math.sqrt(width)
            weights = scores.masked_fill(hidden[:, None], -math.inf).softmax(-1)
            mixed = torch.einsum("bhij,bjhc->bihc", weights, v).flatten(2)
            x = x + self.two(f"{name}.attention.wo", mixed, words, self.linear)
            h = self.rms(f"{name}.ffn_norm", x)
            gate, up = (h @ self.state[f"{name}.feed_forward.{w}.weight"].T for w in ("w1", "w3"))
            x = x + (silu(gate) * up) @ self.state[f"{name}.feed_forward.w2.weight"].T
            number += 1
        return (self.rms("norm", x) @ self.state["output.weight"].T)[:, words - 1 :]

    def two(self, name: str, x: Tensor, words: int, layer) -> Tensor:
        """The layer called `name`, and for the condition's positions the one of the text, if there is one."""
        if not self.has(f"{name}_text"):
            return layer(name, x)
        return torch.cat([layer(f"{name}_text", x[:, :words]), layer(name, x[:, words:])], 1)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T

    def rms(self, name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.state[f"{name}.weight"]

    @staticmethod
    def rotated(x: Tensor, grid: int, words: int = 1) -> Tensor:
        """(B, T, heads, width): pairs of neighbours turned, the first half by row, the rest by column; the
        condition, in front, is multiplied by nothing but zeros."""
        out = torch.zeros_like(x)
        pairs = x.shape[-1] // 2
        for position in range(words, x.shape[1]):
            row, column = divmod(position - words, grid)
            for pair in range(pairs):
                place, j = (row, pair) if pair < pairs // 2 else (column, pair - pairs // 2)
                angle = place * 10000.0 ** (-2 * j / pairs)
                even, odd = x[:, position, :, 2 * pair], x[:, position, :, 2 * pair + 1]
                out[:, position, :, 2 * pair] = even * math.cos(angle) - odd * math.sin(angle)
                out[:, position, :, 2 * pair + 1] = odd * math.cos(angle) + even * math.sin(angle)
        return out
