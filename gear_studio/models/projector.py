"""Representation alignment: the generator's hidden states, projected, against a frozen teacher's patch
features, or what `Teacher.alignment_target` makes of them."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from gear_studio.models.pretrained import Pretrained
from gear_studio.ranges import Width, check


@dataclass(frozen=True)
class ProjectorConfig:
    dim: Width
    teacher_dim: Width
    hidden: Width = 2048

    def __post_init__(self):
        check(self)


class Projector(Pretrained):
    """g: d -> d_f, Linear-SiLU-Linear-SiLU-Linear (paper: hidden 2048)."""

    Config = ProjectorConfig
    config: ProjectorConfig

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


def patch_cosine(projected: Tensor, target: Tensor) -> Tensor:
    """Cosine of every projected hidden state with the teacher's feature of its patch: (B, N, d_f) twice ->
    (B, N) in [-1, 1]."""
    return F.cosine_similarity(projected.float(), target.float(), dim=-1)


def alignment_loss(projected: Tensor, target: Tensor) -> Tensor:
    """L_align = -mean_i cos(g(h_i), f(x)_i), a scalar in [-1, 1]."""
    return -patch_cosine(projected, target).mean()
