"""Judge: a small CNN that names the class of a picture, to check whether samples show what was asked for.

Notable here:
- It shares nothing with the teacher: another architecture, another training range of the world ("judge"),
  whole-image labels only. A generator that learnt to please the teacher gains nothing here.
- It is trained with blur, noise and small brightness changes, so that a soft reconstruction or a sample
  without the world's fine grain is judged by its content.
"""

from pathlib import Path

import torch
from torch import nn

from gear_studio.pretrained import load_weights
from gear_studio.teachers import ZOO, read_config, to_size, write_half

SHIPPED = {"shipped": ZOO / "judge"}
IMAGE_SIZE = 64


class Judge(nn.Module):
    """Image classifier: (B,3,H,W) in [-1,1] -> logits (B,classes). Other sizes are resized to 64 px."""

    def __init__(self, classes: int = 24, width: int = 28):
        super().__init__()
        self.config = {"classes": classes, "width": width}
        self.stem = _conv(3, width, stride=2)
        self.body = nn.Sequential(
            _Residual(width),
            _conv(width, 2 * width, stride=2),
            _Residual(2 * width),
            _conv(2 * width, 4 * width, stride=2),
            _Residual(4 * width),
        )
        self.head = nn.Linear(2 * 4 * width, classes)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path = "shipped") -> "Judge":
        """Load "shipped" or a folder written by `save_pretrained`, in eval mode, float32.

        Raises FileNotFoundError when the folder or a file is missing, ValueError when it holds no judge.
        """
        folder = SHIPPED.get(str(name_or_folder), Path(name_or_folder))
        if not folder.is_dir():
            raise FileNotFoundError(
                f"judge {str(name_or_folder)!r} is neither shipped ({', '.join(SHIPPED)}) nor a folder; "
                "train one with gear_studio.training.teacher.train_judge(folder)."
            )
        judge = cls(**read_config(folder, "judge", ["classes", "width"]))
        load_weights(judge, folder / "model.safetensors")
        return judge.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors (float16) into `folder`, each in one step."""
        write_half(folder, "judge", self.config, self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.body(self.stem(to_size(images, IMAGE_SIZE)))
        # The mean sees the texture's share of the picture, the maximum a small object's shape.
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1))


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
