"""Quantizers: latent (B, N, D) -> Assignment, code vectors, quantizer loss.

Every quantizer answers the same questions (`scores`, `indices`, `assign`, `codes`, `forward`) and has a
`codebook` (K, D), so that the read-outs, the objectives and the probes never ask which one they hold.

                scores A_k       codebook             decoder is fed
    VQ          -||z - c_k||^2   learned, on sphere   z + sg(c - z)
    LFQ         2 <z, c_k>       {-1, +1}^D, fixed    z + sg(c - z)
    IBQ         <z, c_k>         learned              (o + s - sg s) @ C; s = softmax(A), o one-hot argmax A
    Euclidean   -||z - c_k||^2   learned              z + sg(c - z)

Everything is computed in float32, also under autocast: near-ties decide the index. Adding a quantizer is a
class here and its line in `QUANTIZERS`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_studio.devices import without_autocast
from gear_studio.errors import InputError
from gear_studio.readout import Assignment, rows_at_once, straight_through


@dataclass(frozen=True)
class Quantized:
    """assignment; latent (B, N, D), z as it is compared with the codes (VQ: on the sphere); decoder_input
    (B, N, D), what the decoder is fed in training; loss, scalar quantizer loss."""

    assignment: Assignment
    latent: Tensor
    decoder_input: Tensor
    loss: Tensor


class Quantizer(nn.Module):
    """What all quantizers share. A quantizer defines `scores`, `forward` and `small_code_dim`.

    formula: A_k as figures write it, for matplotlib. compared: whether the study `quantizers` has it."""

    formula: str
    compared = True
    codebook: Tensor

    def __init__(self, codes: int, dim: int):
        super().__init__()

    @staticmethod
    def small_code_dim(codes: int) -> int:
        """D, dimensions of a code, in the presets small and mini with so many codes."""
        raise NotImplementedError

    def scores(self, z: Tensor) -> Tensor:
        """z: (B, N, D). Returns A, (B, N, K) float32, larger is closer."""
        raise NotImplementedError

    def pieces(self, z: Tensor) -> Iterator[Tensor]:
        """z (B, N, D), a few of its rows at a time, (1, R, D) in order: as many as `readout.AT_ONCE` scores
        leave room for."""
        for rows in z.flatten(0, 1).split(rows_at_once(self.codebook.T)):
            yield rows[None]

    def indices(self, z: Tensor) -> Tensor:
        """z: (B, N, D). The chosen codes, (B, N) int64 in [0, K); of `assign`, but its scores are never held
        whole."""
        with torch.no_grad():
            chosen = [self.scores(rows).argmax(-1)[0] for rows in self.pieces(z)]
        return torch.cat(chosen).view(z.shape[:2])

    def assign(self, z: Tensor) -> Assignment:
        """z: (B, N, D)."""
        scores = self.scores(z)
        return Assignment(scores, scores.argmax(-1))

    def codes(self, indices: Tensor) -> Tensor:
        """indices: (B, N) int64 in [0, K). Returns code vectors (B, N, D)."""
        return F.embedding(indices, self.codebook)


class VectorQuantizer(Quantizer):
    """L2-normalised vector quantization (LlamaGen VQ-16): A_k = -||z - c_k||^2 = -(2 - 2 z.c_k) on the unit
    sphere, in [-4, 0]."""

    formula = "−‖z − c$_k$‖²"

    def __init__(self, codes: int, dim: int):
        super().__init__(codes, dim)
        self.codebook = nn.Parameter(F.normalize(torch.randn(codes, dim), dim=-1))

    @staticmethod
    def small_code_dim(codes: int) -> int:
        return 8

    def scores(self, z: Tensor) -> Tensor:
        with without_autocast(z.device):
            return 2 * F.normalize(z.float(), dim=-1) @ F.normalize(self.codebook.float(), dim=-1).T - 2

    def codes(self, indices: Tensor) -> Tensor:
        """indices: (B, N) int64 in [0, K). Returns unit vectors (B, N, D)."""
        return F.normalize(super().codes(indices), dim=-1)

    def forward(self, z: Tensor) -> Quantized:
        """Loss: mean (c_q - sg z)^2 + 0.25 mean (sg c_q - z)^2; the decoder is fed z + sg(c_q - z)."""
        assignment = self.assign(z)
        z, code = F.normalize(z.float(), dim=-1), self.codes(assignment.indices)
        loss = F.mse_loss(code, z.detach()) + 0.25 * F.mse_loss(z, code.detach())
        return Quantized(assignment, z, z + (code - z).detach(), loss)


class LookupFreeQuantizer(Quantizer):
    """Lookup-free quantization (MAGVIT-v2, arXiv 2310.05737): the code is the sign of each channel.

    Bit d of the index is set when z_d > 0 (so 0 counts as -1), with weight 2^d; `A_k = 2 <z, c_k>`. The
    indices are read off the signs, which needs no scores."""

    formula = "2 ⟨z, c$_k$⟩"

    def __init__(self, codes: int, dim: int):
        super().__init__(codes, dim)
        if codes != 2**dim:
            raise InputError(
                f"LFQ with {dim} channels has 2^{dim} = {2**dim} codes, not {codes}; set one of them"
            )
        bits = torch.arange(codes)[:, None] >> torch.arange(dim) & 1
        self.register_buffer("codebook", 2.0 * bits - 1, persistent=False)

    @staticmethod
    def small_code_dim(codes: int) -> int:
        return codes.bit_length() - 1

    def scores(self, z: Tensor) -> Tensor:
        with without_autocast(z.device):
            return 2 * z.float() @ self.codebook.float().T

    def indices(self, z: Tensor) -> Tensor:
        return ((z > 0).long() << torch.arange(z.shape[-1], device=z.device)).sum(-1)

    def assign(self, z: Tensor) -> Assignment:
        return Assignment(self.scores(z), self.indices(z))

    def forward(self, z: Tensor) -> Quantized:
        """Loss: 0.25 mean (z - sg sign z)^2; the decoder is fed z + sg(sign z - z)."""
        assignment = self.assign(z)
        z, code = z.float(), self.codes(assignment.indices)
        return Quantized(assignment, z, z + (code - z).detach(), 0.25 * F.mse_loss(z, code))


class IndexBackpropagationQuantizer(Quantizer):
    """Index backpropagation (IBQ, arXiv 2412.02692): `A_k = <z, c_k>`, and the decoder's gradient reaches
    every code through a straight-through one-hot."""

    formula = "⟨z, c$_k$⟩"

    def __init__(self, codes: int, dim: int):
        super().__init__(codes, dim)
        self.codebook = nn.Parameter(torch.randn(codes, dim))

    @staticmethod
    def small_code_dim(codes: int) -> int:
        return 64

    def scores(self, z: Tensor) -> Tensor:
        with without_autocast(z.device):
            return z.float() @ self.codebook.float().T

    def forward(self, z: Tensor) -> Quantized:
        """With s = softmax(A), o = one-hot(argmax A), ste = o + s - sg s, and C the codebook, the loss is
        mean (ste@C - z)^2 + mean (sg(o@C) - z)^2 + 0.25 mean (o@C - sg z)^2; the decoder is fed ste@C."""
        assignment = self.assign(z)
        with without_autocast(z.device):
            z, code = z.float(), self.codes(assignment.indices)
            # ste@C: its gradient to C is that of o@C, to s that of s@C.
            fed = straight_through(assignment, self.codebook)
        loss = F.mse_loss(fed, z) + F.mse_loss(z, code.detach()) + 0.25 * F.mse_loss(code, z.detach())
        return Quantized(assignment, z, fed, loss)


class EuclideanQuantizer(Quantizer):
    """Vector quantization as it was first (van den Oord et al. 2017; VQGAN of taming-transformers, VQ of
    latent-diffusion): A_k = -||z - c_k||^2, and lengths count."""

    formula = "−‖z − c$_k$‖²"
    compared = False  # the paper has none

    def __init__(self, codes: int, dim: int):
        super().__init__(codes, dim)
        self.codebook = nn.Parameter(torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes))  # as taming's

    @staticmethod
    def small_code_dim(codes: int) -> int:
        return 8

    def scores(self, z: Tensor) -> Tensor:
        with without_autocast(z.device):
            z, codes = z.float(), self.codebook.float()
            return 2 * z @ codes.T - z.square().sum(-1, keepdim=True) - codes.square().sum(-1)

    def forward(self, z: Tensor) -> Quantized:
        """Loss: mean (c_q - sg z)^2 + 0.25 mean (sg c_q - z)^2; the decoder is fed z + sg(c_q - z)."""
        assignment = self.assign(z)
        z, code = z.float(), self.codes(assignment.indices)
        loss = F.mse_loss(code, z.detach()) + 0.25 * F.mse_loss(z, code.detach())
        return Quantized(assignment, z, z + (code - z).detach(), loss)


QUANTIZERS: dict[str, type[Quantizer]] = {
    "vq": VectorQuantizer,
    "lfq": LookupFreeQuantizer,
    "ibq": IndexBackpropagationQuantizer,
    "euclidean": EuclideanQuantizer,
}
