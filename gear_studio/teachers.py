"""Teachers: frozen patch encoders whose features the tokenizer and the generator are aligned with.

Notable here:
- A teacher never learns: its parameters require no gradient, and it stays in eval mode also inside a module
  that is put in train mode. Gradients do pass through it to the images, so the same object serves as
  alignment target and as perceptual loss.
- Images go in as the rest of the package has them, in [-1, 1]; the teacher owns its resize and its
  normalisation, both read from its config. A pretrained timm encoder therefore only needs a new `arch`.
- The shipped "tiny" one stands in for DINOv2 where nothing can be downloaded. It learnt from the labels of
  the embedded world, and its `note` says so: show the note wherever its features appear.
- On disk a teacher is a folder, config.json + model.safetensors in half precision; the config names its
  kind, so that another model's folder is refused by name.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from gear_studio.pretrained import atomic, load_weights, read_json, write_json

ZOO = Path(__file__).parent / "zoo"
SHIPPED = {"tiny": ZOO / "teacher"}


@dataclass
class TeacherConfig:
    """What is needed to rebuild a teacher. `mean` and `std` are those of RGB in [0, 1]."""

    arch: str = "vit"
    image_size: int = 64
    patch_size: int = 8
    dim: int = 128
    depth: int = 5
    heads: int = 4
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    note: str = "A tiny ViT with random weights: an untrained control."


def build_encoder(config: TeacherConfig) -> nn.Module:
    """A trainable patch encoder, without head or class token; raises ValueError for an unknown `arch`."""
    if config.arch != "vit":
        raise ValueError(f"Teacher arch {config.arch!r} is not known; this version builds 'vit' only.")
    from timm.models.vision_transformer import VisionTransformer  # here: it takes seconds to import

    return VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        num_classes=0,
        class_token=False,
        global_pool="",
    )


def to_size(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize (B,3,H,W) to (B,3,size,size), bicubic with antialiasing; images of that size pass untouched."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"Images of shape {tuple(images.shape)}; expected (B,3,H,W) RGB in [-1, 1].")
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True)


class Teacher(nn.Module):
    """A frozen patch encoder: images (B,3,H,W) in [-1,1] -> patch features (B,N,dim), raster order.

    Images of another size than the config's are resized (bicubic), so N = grid * grid always holds.
    """

    def __init__(self, config: TeacherConfig, encoder: nn.Module):
        super().__init__()
        self.config = config
        self.encoder = encoder.requires_grad_(False).eval()
        self.dim, self.depth, self.note = config.dim, config.depth, config.note
        self.grid = config.image_size // config.patch_size
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path) -> "Teacher":
        """Load "tiny" (shipped) or a folder written by `save_pretrained`.

        Raises FileNotFoundError when the folder or a file in it is missing, ValueError when what is there
        is damaged or is no teacher. Weights are stored in half precision and returned in float32.
        """
        folder = SHIPPED.get(str(name_or_folder), Path(name_or_folder))
        if not folder.is_dir():
            raise FileNotFoundError(
                f"teacher {str(name_or_folder)!r} is neither shipped ({', '.join(SHIPPED)}) nor a folder; "
                "train one with gear_studio.training.teacher.train_teacher(folder)."
            )
        config = TeacherConfig(
            **read_config(folder, "teacher", [field.name for field in fields(TeacherConfig)])
        )
        encoder = build_encoder(config)
        load_weights(encoder, folder / "model.safetensors")
        return cls(config, encoder)

    @classmethod
    def random(cls, seed: int = 0) -> "Teacher":
        """The control: the tiny architecture with random weights, a pure function of `seed`."""
        config = TeacherConfig()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, build_encoder(config))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors (float16) into `folder`; each file appears whole or not."""
        write_half(folder, "teacher", asdict(self.config), self.encoder)

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode: a teacher is frozen, also inside a module that is being trained."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B,3,H,W) in [-1,1] -> (B,N,dim): the last block's patches after the final norm."""
        return self.features(images, [self.depth])[0]

    def features(self, images: torch.Tensor, blocks: Sequence[int]) -> list[torch.Tensor]:
        """Patch features (B,N,dim) after each of `blocks` (1-based, any order), all through the final norm.

        The norm puts blocks on one scale, so that their distances can be added in a perceptual loss, and
        makes `features(x, [depth])[0]` equal `teacher(x)`. Raises ValueError for a block that is not there.
        """
        wrong = [block for block in blocks if not 1 <= block <= self.depth]
        if wrong or not blocks:
            raise ValueError(f"Blocks {list(blocks)} asked for; this teacher has blocks 1 to {self.depth}.")
        images = to_size(images, self.config.image_size)
        images = ((images + 1) / 2 - self.mean) / self.std
        order = sorted(set(blocks))
        found = self.encoder.forward_intermediates(
            images,
            indices=[block - 1 for block in order],
            norm=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        by_block = dict(zip(order, found, strict=True))
        return [by_block[block] for block in blocks]


def write_half(folder: str | Path, kind: str, config: dict, module: nn.Module) -> None:
    """Write folder/config.json (with its kind) and model.safetensors, floats as float16, each atomically."""
    folder = Path(folder)
    state = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in module.state_dict().items()
    }
    with atomic(folder / "model.safetensors") as temporary:
        save_file(state, temporary)
    write_json(folder / "config.json", {"kind": kind, **config})


def read_config(folder: str | Path, kind: str, settings: Sequence[str]) -> dict:
    """The settings in folder/config.json, without its kind.

    Raises FileNotFoundError when there is none, ValueError when it is another kind's or its settings differ.
    """
    path = Path(folder) / "config.json"
    config = read_json(path, f"a {kind}")
    found = config.pop("kind", None) if isinstance(config, dict) else None
    if found != kind:
        raise ValueError(f"{path} describes a {found!r}, expected a {kind!r}; give the folder of a {kind}")
    if odd := sorted(set(config) ^ set(settings)):
        raise ValueError(f"{path}: settings {odd} are missing or unknown; a {kind} has {sorted(settings)}")
    return config
