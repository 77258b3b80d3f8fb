"""What an inspection is asked for, and what a tokenizer must be able to do to be looked at."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from gear_studio.devices import Device
from gear_studio.ranges import Count, Pixels, Positive, Seed
from gear_studio.readout import Assignment


@runtime_checkable
class Inspectable(Protocol):
    """A tokenizer that gives scores, whoever wrote it: three methods, and the size of its pictures.

    Images are (B, 3, S, S) float in [-1, 1] with S = image_size, on the device that was asked for; a
    torch.nn.Module is moved there and put in eval mode. N tokens, a square number, lie in raster order.

    What was measured is kept by a fingerprint of the weights and `config`. A tokenizer that is no Module is
    measured anew each time, unless it has a method `fingerprint` that returns a string."""

    image_size: int

    def assign(self, images: Tensor) -> Assignment:
        """Scores (B, N, K), larger is closer, and the chosen codes, int64 (B, N)."""
        ...

    def decode(self, indices: Tensor) -> Tensor:
        """Codes (B, N) -> images (B, 3, S, S) in [-1, 1]."""
        ...

    def latents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What is quantized and what it becomes: z (B, N, D) and c_q (B, N, D')."""
        ...


@dataclass(frozen=True)
class Inspection:
    """What to look at."""

    out: Path
    """Folder of the report: report.html, report.json, pictures.csv, and parts/, by which a killed inspection
    goes on."""
    pictures: str = "photos"
    """photos (ten photographs), shapes, digits, or a folder of picture files at any depth."""
    teacher: str = "efficientnet-lite0"
    """Whose features z and c_q are compared with: efficientnet-lite0, tiny, dinov2-b, any name of timm's or a
    folder."""
    teacher_weights: Path | None = None
    """The file of a published teacher's weights, instead of a download."""
    count: Count = 256
    """Pictures at most."""
    image_size: Pixels = 256
    """Pixels along a side of the pictures that a released file is for. A run knows its own."""
    tau: Positive = 0.1
    """Temperature of the soft read-out."""
    patches: Count = 4096
    """Rows at patch level, equally many of every picture."""
    metrics: tuple[Literal["lpips", "rfid"], ...] = ()
    """What needs weights of its own: lpips (VGG-16), rfid (Inception)."""
    lpips_weights: Path | None = None
    """The file of VGG-16, where it cannot be downloaded."""
    inception_weights: Path | None = None
    """The file of FID's Inception network, where it cannot be downloaded."""
    seed: Seed = 0
    """Decides which pictures of many, which patches, and what intervals draw."""
    device: Device = None

    def command(self, tokenizers: Sequence[str]) -> str:
        """The command line that asks for the same."""
        words = ["gear-studio", "inspect", *tokenizers]
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                values = value if isinstance(value, tuple) else (value,)
                words += ["--" + field.name.replace("_", "-"), *map(str, values)]
        return shlex.join(words)
