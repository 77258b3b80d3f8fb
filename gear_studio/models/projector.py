"""Representation alignment: the generator's hidden states, projected, against a frozen teacher's patch
features.

Some teachers' patches of one picture have much in common, which hides where is what. For those the target is
normed over the picture's patches first (`spatial_norm`)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from gear_studio.models.pretrained import Pretrained
from gear_studio.models.teachers import Teacher

SPATIAL_NORMS = ("auto", "none", "demean", "zscore")


@dataclass(frozen=True)
class ProjectorConfig:
    dim: int
    teacher_dim: int
    hidden: int = 2048


class Projector(Pretrained):
    """g: d -> d_f, Linear-SiLU-Linear-SiLU-Linear (paper: hidden 2048)."""

    Config = ProjectorConfig

    def __init__(self, config: ProjectorConfig):
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(
            nn.Linear(config.dim, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.teacher_dim),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, N, d) -> (B, N, d_f)."""
        return self.layers(hidden)


def spatial_norm(features: Tensor, kind: str, alpha: float = 0.6) -> Tensor:
    """Norm a teacher's features (B, N, d_f) over the N patches of each picture, channel by channel (paper).

    kind: "none"; "demean", z - alpha mean_tokens z; "zscore", that divided by std_tokens z."""
    if kind == "none":
        return features
    z = features.float()
    centred = z - alpha * z.mean(1, keepdim=True)
    return centred if kind == "demean" else centred / (z.std(1, keepdim=True) + 1e-6)


def alignment_target(features: Tensor, teacher: Teacher, kind: str = "auto", alpha: float = 0.6) -> Tensor:
    """What a projection is aligned with: the teacher's features (B, N, d_f) after the spatial norm `kind`.

    "auto" is zscore for SigLIP, CLIP and V-JEPA, whose patches share a large mean, and none for DINOv2,
    DINOv3 and the others (paper). Raises ValueError for a norm that does not exist."""
    if kind not in SPATIAL_NORMS:
        raise ValueError(f"unknown spatial_norm {kind!r}; choose one of {', '.join(SPATIAL_NORMS)}")
    if kind == "auto":
        wants_it = any(family in teacher.config.arch for family in ("siglip", "clip", "jepa"))
        kind = "zscore" if wants_it else "none"
    return spatial_norm(features, kind, alpha)


def patch_cosine(projected: Tensor, teacher: Tensor) -> Tensor:
    """Cosine of every projected hidden state with the teacher's feature of its patch: (B, N, d_f) twice ->
    (B, N) in [-1, 1]."""
    return F.cosine_similarity(projected.float(), teacher.float(), dim=-1)


def alignment_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """L_align = -mean_i cos(g(h_i), f(x)_i), a scalar in [-1, 1]."""
    return -patch_cosine(projected, teacher).mean()
