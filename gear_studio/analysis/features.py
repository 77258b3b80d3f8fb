"""Patch features of the three models, and ways to look at them: PCA as colours, similarity to one patch.

Notable here:
- All features are (N, d) or (B, N, d) in raster order, one row a patch, so maps of the three line up.
- The generator is read *teacher-forced*: it is given the true tokens before i, and its hidden state at
  position i is compared with patch i, which it has not seen. Features are taken before the projector.
- The condition is the picture's label, or the null class where there is none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gear_studio.alignment import Projector, patch_cosine
from gear_studio.generator import Generator
from gear_studio.tokenizer import Tokenizer


@torch.no_grad()
def tokenizer_features(tokenizer: Tokenizer, images: Tensor, quantized: bool = False) -> Tensor:
    """Latents z (B, N, D) of images (B, 3, H, W) in [-1, 1]; quantized: the code vectors c_q instead."""
    z = tokenizer.encode(images)
    return tokenizer.quantizer.codes(tokenizer.quantizer.assign(z).indices) if quantized else z


@torch.no_grad()
def generator_features(
    generator: Generator, indices: Tensor, blocks: list[int], labels: Tensor | None = None
) -> list[Tensor]:
    """Hidden states (B, N, d) after each of `blocks` (1-based, ascending), teacher-forced on indices (B, N).

    labels: (B,) int64, or None for the null condition. Position i has seen the condition and the tokens
    before i. The generator must be in eval mode, as `from_pretrained` returns it."""
    if labels is None:
        labels = generator.condition.nulls(len(indices), indices.device)
    return generator.hidden(generator.tokens(indices[:, :-1]), labels, blocks)


@torch.no_grad()
def alignment_map(
    generator: Generator, projector: Projector, indices: Tensor, teacher: Tensor, labels: Tensor | None = None
) -> Tensor:
    """cos(g(h_i), f(x)_i) at the tap, (B, N) in [-1, 1]: what the alignment loss averages (with a minus).

    indices: (B, N); teacher: its patch features (B, N, d_f); labels as in `generator_features`."""
    (hidden,) = generator_features(generator, indices, [generator.config.tap], labels)
    return patch_cosine(projector(hidden), teacher)


def pca_rgb(features: Tensor) -> Tensor:
    """The first three principal components of one picture's features (N, d) as colours (N, 3) in [0, 1].

    Each component is stretched from its 2 % to its 98 % quantile and turned so that its largest loading is
    positive: equal features get equal colours, but colours of two feature spaces mean nothing to each other.
    Where features have fewer than three components, the missing ones are 0.5."""
    x = features.float() - features.float().mean(0)
    _, values, axes = torch.linalg.svd(x, full_matrices=False)
    axes = axes[:3]
    signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    scores = x @ (axes * signs).T
    low, high = scores.quantile(torch.tensor([0.02, 0.98], device=x.device), dim=0)
    real = values[:3] > 1e-5 * values[0].clamp_min(1e-12)
    stretched = torch.where(real, ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1), 0.5)
    return F.pad(stretched, (0, 3 - stretched.shape[1]), value=0.5)


def similarity(features: Tensor, patch: int) -> Tensor:
    """Cosine of every patch of one picture with patch number `patch`: (N, d) -> (N,) in [-1, 1]."""
    if not 0 <= patch < len(features):
        raise ValueError(f"patch {patch} is not one of 0..{len(features) - 1}")
    return F.cosine_similarity(features.float(), features[patch].float(), dim=-1)
