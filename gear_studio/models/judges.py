"""Judges: small CNNs that classify pictures, to check whether samples show what their condition asks for.
`Judge` names a picture's class, `AttributeJudge` its shape, texture, colour and position one by one.

Notable here:
- They share nothing with the teacher: another architecture, another training range of the world ("judge"),
  whole-image labels only. A generator that learnt to please the teacher gains nothing here.
- They are trained with blur, noise and small brightness changes, so that a soft reconstruction or a sample
  without the world's fine grain is judged by its content.
"""

from pathlib import Path
from typing import Self

import torch
from torch import nn

from gear_studio.errors import MissingError
from gear_studio.models.pretrained import build_checked, load_weights, read_shapes
from gear_studio.models.teachers import read_config, to_size, write_half
from gear_studio.places import ZOO

SHIPPED = {"judge": ZOO / "judge", "attribute-judge": ZOO / "attribute-judge"}
IMAGE_SIZE = 64
ATTRIBUTES = {
    "shape": 6,
    "texture": 4,
    "color": 8,
    "position": 9,
}  # how many values `data.shapes` has of each


class _Classifier(nn.Module):
    """A CNN over (B, inputs, 64, 64) -> features (B, 8 * width), pooled over the picture."""

    kind: str
    settings: list[str]  # of its config.json
    config: dict[str, int]

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.stem = _conv(inputs, width, stride=2)
        self.body = nn.Sequential(
            _Residual(width),
            _conv(width, 2 * width, stride=2),
            _Residual(2 * width),
            _conv(2 * width, 4 * width, stride=2),
            _Residual(4 * width),
        )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(self.stem(x))
        # The mean sees the texture's share of the picture, the maximum a small object's shape.
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path = "shipped") -> Self:
        """Load "shipped" or a folder written by `save_pretrained`, in eval mode, float32.

        Raises FileNotFoundError when the folder or a file is missing, ValueError when it holds no such model.
        """
        folder = SHIPPED[cls.kind] if str(name_or_folder) == "shipped" else Path(name_or_folder)
        if not folder.is_dir():
            raise MissingError(
                f"{cls.kind} {str(name_or_folder)!r} is neither shipped (shipped) nor a folder; train one "
                f"with gear-studio supervise {cls.kind} --out FOLDER"
            )
        settings, path = read_config(folder, cls.kind, cls.settings), folder / "model.safetensors"
        judge = build_checked(lambda: cls(**settings), read_shapes(path), path)
        load_weights(judge, path)
        return judge.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors (float16) into `folder`, each in one step."""
        write_half(folder, self.kind, self.config, self)


class Judge(_Classifier):
    """Image classifier: (B,3,H,W) in [-1,1] -> logits (B,classes). Other sizes are resized to 64 px."""

    kind, settings = "judge", ["classes", "width"]

    def __init__(self, classes: int = 24, width: int = 28):
        super().__init__(3, width)
        self.config = {"classes": classes, "width": width}
        self.head = nn.Linear(2 * 4 * width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(to_size(images, IMAGE_SIZE)))


class AttributeJudge(_Classifier):
    """What a picture of `shapes` shows: (B,3,H,W) in [-1,1] -> logits by attribute, (B,6) shapes, (B,4)
    textures, (B,8) colors and (B,9) positions, in the order of `data.shapes`. It sees where a pixel lies, as
    two more channels."""

    kind, settings = "attribute-judge", ["width"]

    def __init__(self, width: int = 28):
        super().__init__(5, width)
        self.config = {"width": width}
        self.heads = nn.ModuleDict({name: nn.Linear(2 * 4 * width, n) for name, n in ATTRIBUTES.items()})

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        images = to_size(images, IMAGE_SIZE)
        at = torch.linspace(-1, 1, IMAGE_SIZE, device=images.device, dtype=images.dtype)
        at = torch.stack(torch.meshgrid(at, at, indexing="ij")).expand(len(images), -1, -1, -1)
        features = self.features(torch.cat([images, at], dim=1))
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def says(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The likeliest value of each attribute, int64 (B,)."""
        return {name: logits.argmax(1) for name, logits in self(images).items()}


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.block = nn.Sequential(_conv(width, width), _conv(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x)
