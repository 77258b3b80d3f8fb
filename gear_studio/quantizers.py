"""Quantizers: latent (B, N, D) -> Assignment, code vectors, quantizer loss.

Every quantizer answers the same four questions (`scores`, `assign`, `codes`, `forward`), so that the
read-outs, the objectives and the probes never ask which one they hold.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_studio.readout import Assignment


@dataclass(frozen=True)
class Quantized:
    """assignment; decoder_input (B, N, D), what the decoder is fed in training; loss, scalar quantizer
    loss."""

    assignment: Assignment
    decoder_input: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """L2-normalised vector quantization (LlamaGen VQ-16): A_k = -||z - c_k||^2 = -(2 - 2 z.c_k) on the unit
    sphere."""

    def __init__(self, codes: int, dim: int):
        super().__init__()
        self.codebook = nn.Parameter(F.normalize(torch.randn(codes, dim), dim=-1))

    def scores(self, z: Tensor) -> Tensor:
        """z: (B, N, D). Returns (B, N, K) in [-4, 0]; always float32, since near-ties decide the index."""
        with torch.autocast(z.device.type, enabled=False):
            return 2 * F.normalize(z.float(), dim=-1) @ F.normalize(self.codebook.float(), dim=-1).T - 2

    def assign(self, z: Tensor) -> Assignment:
        """z: (B, N, D)."""
        scores = self.scores(z)
        return Assignment(scores, scores.argmax(-1))

    def codes(self, indices: Tensor) -> Tensor:
        """indices: (B, N) int64 in [0, K). Returns unit vectors (B, N, D)."""
        return F.normalize(F.embedding(indices, self.codebook), dim=-1)

    def forward(self, z: Tensor) -> Quantized:
        """Loss: mean (c_q - sg z)^2 + 0.25 mean (sg c_q - z)^2; the decoder is fed z + sg(c_q - z)."""
        assignment = self.assign(z)
        z, code = F.normalize(z.float(), dim=-1), self.codes(assignment.indices)
        loss = F.mse_loss(code, z.detach()) + 0.25 * F.mse_loss(z, code.detach())
        return Quantized(assignment, z + (code - z).detach(), loss)
