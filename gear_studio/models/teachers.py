"""Teachers: frozen patch encoders whose features the tokenizer and the generator are aligned with.

Notable here:
- A teacher never learns: its parameters require no gradient, and it stays in eval mode also inside a module
  that is put in train mode. Gradients do pass through it to the images, so the same object serves as
  alignment target and as perceptual loss.
- Images go in as the rest of the package has them, in [-1, 1]; the teacher owns its resize and its
  normalisation. It is loaded for a `grid`: pictures are resized to grid * patch pixels and the position
  embeddings resampled, so that it sees one patch a token, whatever size it was trained at.
- What a published ViT is shown, and what is taken of it, is as in GEAR's released code: pictures resized
  without antialiasing, and CLIP's patches before its final norm.
- Published teachers (DINOv2, DINOv3, SigLIP2, CLIP, any plain ViT) come from timm by name. timm downloads
  them; where that cannot be, a weights file does.
- The shipped "tiny" one stands in for DINOv2 where nothing can be downloaded. It learnt from the labels of
  the embedded world, and its `note` says so: show the note wherever its features appear.
- Adding a teacher is a line in `TEACHERS`.
- On disk a teacher is a folder, config.json + model.safetensors in half precision; the config names its
  kind, so that another model's folder is refused by name.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from gear_studio.errors import InputError, MissingError
from gear_studio.files import atomic, one_line, read_json, write_json
from gear_studio.models.feature_maps import LITE0, FeatureMap, load_lite0_encoder
from gear_studio.models.pretrained import build_checked, fingerprint, load_weights, read_shapes
from gear_studio.models.published import explain_download
from gear_studio.places import ZOO
from gear_studio.ranges import Extent, Number, Pixels, Positive, Width, check

OPTION = "--teacher-weights FILE, or teacher_weights in a run's config.json"
SPATIAL_NORMS = ("auto", "none", "demean", "zscore")


@dataclass(frozen=True)
class KnownTeacher:
    """What is special about a teacher. timm: timm's name of a published one. folder: of a shipped one. load:
    makes the encoder of one whose weights an installed package brings. With none of these it is a control.
    spatial_norm: what "auto" means for its alignment target (see `spatial_norm`)."""

    timm: str = ""
    folder: Path | None = None
    load: Callable[[], nn.Module] | None = None
    spatial_norm: str = "none"

    @property
    def kind(self) -> str:
        """shipped, packaged, control or published."""
        if self.load:
            return "packaged"
        return "published" if self.timm else "shipped" if self.folder else "control"

    @property
    def patch_size(self) -> int | None:
        """Pixels along a side of a published one's patches, as timm's name has it; None for the others."""
        patch = re.search(r"_patch(\d+)", self.timm)
        return int(patch[1]) if patch else None


# Any other timm name works as well; `default_spatial_norm` has a rule for those.
TEACHERS = {
    "tiny": KnownTeacher(folder=ZOO / "teacher"),
    # Its channels have means of their own, in which every two patches look alike.
    "efficientnet-lite0": KnownTeacher(LITE0, load=load_lite0_encoder, spatial_norm="zscore"),
    "random": KnownTeacher(),  # tiny with random weights
    "pixels": KnownTeacher(),  # no network at all
    "dinov2-s": KnownTeacher("vit_small_patch14_dinov2.lvd142m"),
    "dinov2-b": KnownTeacher("vit_base_patch14_dinov2.lvd142m"),
    "dinov2-l": KnownTeacher("vit_large_patch14_dinov2.lvd142m"),
    "dinov2-g": KnownTeacher("vit_giant_patch14_dinov2.lvd142m"),
    "dinov2-s-reg": KnownTeacher("vit_small_patch14_reg4_dinov2.lvd142m"),
    "dinov2-b-reg": KnownTeacher("vit_base_patch14_reg4_dinov2.lvd142m"),
    "dinov2-l-reg": KnownTeacher("vit_large_patch14_reg4_dinov2.lvd142m"),
    "dinov2-g-reg": KnownTeacher("vit_giant_patch14_reg4_dinov2.lvd142m"),
    "dinov3-s": KnownTeacher("vit_small_patch16_dinov3.lvd1689m"),
    "dinov3-b": KnownTeacher("vit_base_patch16_dinov3.lvd1689m"),
    "dinov3-l": KnownTeacher("vit_large_patch16_dinov3.lvd1689m"),
    "dinov3-h": KnownTeacher("vit_huge_plus_patch16_dinov3.lvd1689m"),
    "siglip2-b": KnownTeacher("vit_base_patch16_siglip_256.v2_webli", spatial_norm="zscore"),
    "siglip2-l": KnownTeacher("vit_large_patch16_siglip_256.v2_webli", spatial_norm="zscore"),
    "siglip2-so400m": KnownTeacher("vit_so400m_patch16_siglip_256.v2_webli", spatial_norm="zscore"),
    # OpenAI trained with QuickGELU
    "clip-b": KnownTeacher("vit_base_patch16_clip_quickgelu_224.openai", spatial_norm="zscore"),
    "clip-l": KnownTeacher("vit_large_patch14_clip_quickgelu_224.openai", spatial_norm="zscore"),
}


def teachers_of(kind: str) -> list[str]:
    """Names in `TEACHERS` that are shipped, packaged, control or published."""
    return [name for name, teacher in TEACHERS.items() if teacher.kind == kind]


def default_spatial_norm(arch: str) -> str:
    """What the spatial norm "auto" is for a teacher with `TeacherConfig.arch`.

    Of a timm model that `TEACHERS` does not list: zscore for SigLIP, CLIP and V-JEPA, whose patches share a
    large mean, none for all others (paper)."""
    for teacher in TEACHERS.values():
        if teacher.timm and arch == f"timm:{teacher.timm}":
            return teacher.spatial_norm
    return "zscore" if any(family in arch for family in ("siglip", "clip", "jepa")) else "none"


def has_final_norm(arch: str) -> bool:
    """Whether what is taken of the last block of a teacher with `TeacherConfig.arch` has been through the
    encoder's final norm. Not of CLIP's, whose `ln_post` is for the class token alone."""
    return "clip" not in arch


def spatial_norm(features: torch.Tensor, kind: str, alpha: float = 0.6) -> torch.Tensor:
    """Norm a teacher's features (B, N, d_f) over the N patches of each picture, channel by channel (paper).

    Some teachers' patches of one picture have much in common, which hides where is what.
    kind: "none"; "demean", z - alpha mean_tokens z; "zscore", that divided by std_tokens z."""
    if kind == "none":
        return features
    z = features.float()
    centred = z - alpha * z.mean(1, keepdim=True)
    return centred if kind == "demean" else centred / (z.std(1, keepdim=True) + 1e-6)


@dataclass
class TeacherConfig:
    """What is needed to rebuild a teacher. `mean` and `std` are those of RGB in [0, 1].

    arch: "vit" is built from the sizes below; of "timm:NAME" timm knows the sizes, and those below only
    record them; "pixels" has no network, and patch_size decides everything."""

    arch: str = "vit"
    image_size: Pixels = 64
    patch_size: Pixels = 8
    dim: Width = 128
    depth: Extent = 5
    heads: Extent = 4
    mean: tuple[Number, Number, Number] = (0.5, 0.5, 0.5)
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)
    note: str = "A tiny ViT with random weights: an untrained control."

    def __post_init__(self):
        check(self)


def build_encoder(config: TeacherConfig) -> nn.Module:
    """A trainable patch encoder, without head; raises ValueError for an unknown `arch`."""
    if config.arch.startswith("timm:"):
        encoder: Any = timm_encoder(config.arch.removeprefix("timm:"))
        encoder.set_input_size((config.image_size, config.image_size))
        return encoder
    if config.arch == "pixels":
        return PatchPixels(config.patch_size)
    if config.arch != "vit":
        raise InputError(
            f"Teacher arch {config.arch!r} is not known; expected 'vit', 'timm:NAME' or 'pixels'."
        )
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


class PatchPixels(nn.Module):
    """An encoder without a network: a patch's feature is its normalised pixels, channel by channel."""

    def __init__(self, patch_size: int):
        super().__init__()
        self.patch_size, self.blocks = patch_size, nn.ModuleList()

    def set_input_size(self, size: tuple[int, int]) -> None:
        """Nothing to do: pictures may have any multiple of the patch size."""

    def forward_intermediates(
        self, images: torch.Tensor, indices: Sequence[int], **_: object
    ) -> list[torch.Tensor]:
        """(B, 3, H, W) -> (B, N, 3 * patch^2), once for each of `indices`, as timm's encoders answer."""
        patches = F.unfold(images, self.patch_size, stride=self.patch_size).transpose(1, 2)
        return [patches] * len(indices)


def timm_name(name: str) -> str:
    """timm's name of a teacher: a published one's short name in `TEACHERS`, "timm:NAME" or NAME itself.

    Raises FileNotFoundError where timm has no such model."""
    import timm

    known = TEACHERS.get(name)
    model = known.timm if known else name.removeprefix("timm:")
    if not timm.is_model(model) and "jepa" in model.lower():
        raise MissingError(
            f"teacher {name!r}: timm {timm.__version__} has "
            f"{', '.join(timm.list_models('*jepa*')) or 'no V-JEPA'}, and the V-JEPA 2 of transformers is an "
            "encoder of videos, not V-JEPA 2.1. Once a timm that has it is installed, name its model: "
            "timm:NAME"
        )
    if not timm.is_model(model):
        shipped, packaged, controls, published = (
            ", ".join(teachers_of(kind)) for kind in ("shipped", "packaged", "control", "published")
        )
        raise MissingError(
            f"teacher {name!r} is neither shipped ({shipped}, {packaged}) nor a control ({controls}) nor a "
            f"folder nor published ({published}, or a model of timm {timm.__version__}); check the name, or "
            "train one with gear_studio.training.supervised.train_teacher(folder)."
        )
    return model


def timm_encoder(name: str, **pretrained) -> nn.Module:
    """A model of timm as a patch encoder. A plain ViT at its own image size, head and pooling dropped, `norm`
    the last norm it has; of any other model its `FeatureMap`.

    pretrained: where weights come from, for `timm.create_model`; by default they are random. Raises
    ValueError for models that are neither a ViT nor have a feature map."""
    import timm

    return to_encoder(timm.create_model(name, num_classes=0, **pretrained), name, **pretrained)


def to_encoder(model: Any, name: str, **pretrained) -> nn.Module:
    """`timm_encoder` of a model that timm has made already."""
    needed = ("blocks", "norm", "num_prefix_tokens", "forward_intermediates", "set_input_size")
    if not all(hasattr(model, attribute) for attribute in needed):
        return FeatureMap(name, **pretrained)
    if isinstance(model.norm, nn.Identity):
        # Models that pool by averaging norm afterwards; a norm acts on each token alone.
        model.norm, model.fc_norm = model.fc_norm, nn.Identity()
    model.reset_classifier(0, "")
    return model


def published_encoder(name: str, weights: str | Path | None, option: str = OPTION) -> nn.Module:
    """The timm encoder of a published teacher: its weights from the file `weights`, or downloaded (cached).

    weights: safetensors or a torch file, as published (also by the model's authors, where timm reads that).
    option: what names such a file, for the messages. Raises FileNotFoundError when it is not there or nothing
    can be downloaded, ValueError when it does not fit."""
    import timm
    from timm.models import load_state_dict

    model = timm_name(name)
    if weights is None:
        problem = (
            f"the weights of {name!r} could not be downloaded from the Hugging Face repository timm/{model}"
        )
        way_out = (
            f"With a connection, try again. Without one, run 'hf download timm/{model}' on another machine "
            f"and bring its model.safetensors here ({option}), or its cache folder (HF_HUB_CACHE)"
        )
        with explain_download(problem, way_out):
            encoder = timm.create_model(model, num_classes=0, pretrained=True)
        return to_encoder(encoder, model, pretrained=True)
    if not Path(weights).is_file():
        raise MissingError(
            f"the weights of {name!r} should be in the file {weights}, which is not there; put it there, or "
            f"name another: {option}"
        )
    try:
        state = load_state_dict(str(weights), weights_only=True)
        state = {key: value for key, value in state.items() if not key.startswith("head.")}
        # num_classes: with as many classes as the encoder's, timm loads strictly
        return timm_encoder(
            model, pretrained=True, pretrained_cfg_overlay={"state_dict": state, "num_classes": 0}
        )
    except Exception as error:  # whatever a foreign file does to the reader or to timm's conversion
        raise InputError(
            f"{weights} does not hold the weights of {model} ({one_line(error)}); expected safetensors or "
            f"a torch file of tensors, such as model.safetensors of the Hugging Face repository timm/{model}"
        ) from error


def to_size(images: torch.Tensor, size: int, antialias: bool = True) -> torch.Tensor:
    """Resize (B,3,H,W) to (B,3,size,size), bicubic; images of that size pass untouched."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"Images of shape {tuple(images.shape)}; expected (B,3,H,W) RGB in [-1, 1].")
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=antialias)


class Teacher(nn.Module):
    """A frozen patch encoder: images (B,3,H,W) in [-1,1] -> patch features (B,N,dim), raster order.

    grid: patches along a side, N = grid * grid; None keeps the config's. Position embeddings are resampled
    to it, and images of any size are resized (bicubic; of a published ViT without antialiasing) to
    grid * patch_size pixels. encoder: a ViT of timm (`to_encoder`), `FeatureMap` or `PatchPixels`. name: for
    logs. block: an inner block, 1-based, whose patches are taken as they leave it; 0: the last one, after the
    final norm where `has_final_norm`. Raises ValueError for a block that is not there."""

    encoder: Any  # timm declares few of the attributes that its ViTs have
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        config: TeacherConfig,
        encoder: Any,
        grid: int | None = None,
        name: str = "teacher",
        block: int = 0,
    ):
        super().__init__()
        if not 0 <= block <= config.depth:
            raise InputError(
                f"teacher_block is {block}; teacher {name} has blocks 1 to {config.depth}, 0: the last"
            )
        self.grid = grid or config.image_size // config.patch_size
        size = self.grid * config.patch_size
        if size != config.image_size:
            encoder.set_input_size((size, size))
        self.config = replace(config, image_size=size)
        self.encoder = encoder.requires_grad_(False).eval()
        self.name, self.dim, self.depth, self.note = name, config.dim, config.depth, config.note
        self.block, self.normed = block or config.depth, block == 0 and has_final_norm(config.arch)
        self.antialias = not config.arch.startswith("timm:") or isinstance(encoder, FeatureMap)
        if block:
            self.note += f" Its block {block} of {config.depth}, without the final norm."
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        grid: int | None = None,
        weights: str | Path | None = None,
        block: int = 0,
    ) -> "Teacher":
        """Load "tiny" (shipped), a control ("random": tiny's sizes with the random weights of seed 0, or
        "pixels"), a published teacher ("dinov2-b", any timm name) or a folder written by `save_pretrained`;
        grid as above, the tokenizer's where features are compared with tokens; block as above.

        weights: a published teacher's file, instead of a download. Raises FileNotFoundError when a folder or
        file is missing or nothing can be downloaded, ValueError when what is there is damaged or is no
        teacher. Weights of folders are stored in half precision and returned in float32.
        """
        name = str(name_or_folder)
        known = TEACHERS.get(name)
        if known and known.load and weights is None:
            encoder = known.load()
            return cls(describe(name, encoder, "trained on ImageNet, Apache-2.0"), encoder, grid, name, block)
        if known.kind == "published" if known else not Path(name).is_dir():
            encoder = published_encoder(name, weights)
            origin = "published weights" if weights is None else f"weights of {Path(weights).name}"
            return cls(describe(name, encoder, origin), encoder, grid, name.removeprefix("timm:"), block)
        if weights is not None:
            raise InputError(f"teacher {name!r} brings its own weights; leave out the file {weights}")
        if name == "random":
            return cls(TeacherConfig(), cls.random().encoder, grid, name, block)
        if name == "pixels":
            config = TeacherConfig(arch=name, dim=3 * 8 * 8, depth=1, heads=1, note="Raw pixels, no network.")
            return cls(config, build_encoder(config), grid, name, block)
        folder = known.folder if known and known.folder else Path(name)
        config = TeacherConfig(
            **read_config(folder, "teacher", [field.name for field in fields(TeacherConfig)])
        )
        path = folder / "model.safetensors"
        encoder = build_checked(lambda: build_encoder(config), read_shapes(path), path)
        load_weights(encoder, path)
        return cls(config, encoder, grid, name if known else folder.name, block)

    @classmethod
    def random(cls, seed: int = 0, name: str = "tiny", grid: int | None = None, block: int = 0) -> "Teacher":
        """The control: "tiny" or a published architecture with random weights, a pure function of `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if name == "tiny":
                return cls(TeacherConfig(), build_encoder(TeacherConfig()), grid, block=block)
            encoder = timm_encoder(timm_name(name))
        return cls(
            describe(name, encoder, "random weights, an untrained control"),
            encoder,
            grid,
            name.removeprefix("timm:"),
            block,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors (float16) into `folder`; each file appears whole or not."""
        write_half(folder, "teacher", asdict(self.config), self.encoder)

    def fingerprint(self) -> str:
        """SHA-256 of the blocks' weights: the same for every grid, and however the tensors are named."""
        return fingerprint(self.encoder.blocks)

    def identity(self) -> str:
        """All that `forward` depends on beside the pictures, for what is kept of its answers."""
        taken = f"block {self.block} normed {self.normed} antialias {self.antialias}"
        return f"{self.config} {fingerprint(self)} {taken}"

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode: a teacher is frozen, also inside a module that is being trained."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B,3,H,W) in [-1,1] -> (B,N,dim): the patches of the last block, or of the inner one that
        the teacher was loaded for."""
        return self.features(images, [], own=True)[0]

    def features(self, images: torch.Tensor, blocks: Sequence[int], own: bool = False) -> list[torch.Tensor]:
        """Patch features (B,N,dim) after each of `blocks` (1-based, any order), all through the final norm.
        own: and what `forward` gives, in the same pass.

        The norm puts blocks on one scale, so that their distances can be added in a perceptual loss. Class
        and register tokens are dropped. Raises ValueError for a block that is not there.
        """
        wrong = [block for block in blocks if not 1 <= block <= self.depth]
        if wrong or not (blocks or own):
            raise InputError(f"Blocks {list(blocks)} asked for; this teacher has blocks 1 to {self.depth}.")
        images = to_size(images, self.config.image_size, self.antialias)
        images = ((images + 1) / 2 - self.mean) / self.std
        order = sorted({*blocks, *([self.block] if own else [])})
        features = self.encoder.forward_intermediates(
            images,
            indices=[block - 1 for block in order],
            norm=False,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        by_block = dict(zip(order, features, strict=True))
        norm = getattr(self.encoder, "norm", nn.Identity())  # encoders without blocks have none
        normed = [norm(by_block[block]) for block in blocks]
        if own:
            normed.append(norm(by_block[self.block]) if self.normed else by_block[self.block])
        return normed

    def alignment_target(
        self, features: torch.Tensor, kind: str = "auto", alpha: float = 0.6
    ) -> torch.Tensor:
        """What a projection is aligned with: this teacher's features (B, N, dim) after a spatial norm.

        kind: one of `SPATIAL_NORMS`; "auto" is the teacher's own (`default_spatial_norm`). alpha: see
        `spatial_norm`. Raises ValueError for a norm that does not exist."""
        if kind not in SPATIAL_NORMS:
            raise InputError(f"unknown spatial_norm {kind!r}; choose one of {', '.join(SPATIAL_NORMS)}")
        own = default_spatial_norm(self.config.arch)
        return spatial_norm(features, own if kind == "auto" else kind, alpha)


def describe(name: str, encoder: Any, origin: str) -> TeacherConfig:
    """The config of a published teacher, read off timm's encoder; origin: of its weights, for the note."""
    model, published = timm_name(name), encoder.pretrained_cfg
    common: dict[str, Any] = {
        "arch": f"timm:{model}",
        "mean": tuple(published["mean"]),
        "std": tuple(published["std"]),
    }
    common["note"] = f"{model} of timm, {origin}."
    if isinstance(encoder, FeatureMap):
        size = published["input_size"][-1] // encoder.patch_size * encoder.patch_size
        return TeacherConfig(
            image_size=size, patch_size=encoder.patch_size, dim=encoder.dim, depth=1, heads=1, **common
        )
    return TeacherConfig(
        image_size=encoder.patch_embed.img_size[0],
        patch_size=encoder.patch_embed.img_size[0] // encoder.patch_embed.grid_size[0],
        dim=encoder.embed_dim,
        depth=len(encoder.blocks),
        heads=encoder.blocks[0].attn.num_heads,
        **common,
    )


def teacher_names(names: str) -> list[str]:
    """The teachers that a recipe names, "dinov2-b" or several: "dinov2-b+siglip2-b"."""
    return [names] if Path(names).is_dir() else names.split("+")


def load_teachers(names: str, grid: int, weights: Sequence[str | Path] = (), block: int = 0) -> list[Teacher]:
    """Load what a recipe names (see `teacher_names`), in that order. block: of all of them, as of `Teacher`.

    weights: none, or one file for each. Raises as `Teacher.from_pretrained`, and ValueError for a teacher
    that is named twice or a number of files that does not match."""
    each = teacher_names(names)
    if weights and len(weights) != len(each):
        raise InputError(
            f"{len(weights)} weights files for {len(each)} teachers ({names}); give one for each"
        )
    files: Sequence[str | Path | None] = weights or [None] * len(each)
    teachers = [
        Teacher.from_pretrained(name, grid, file, block) for name, file in zip(each, files, strict=True)
    ]
    loaded = [teacher.name for teacher in teachers]
    if len(set(loaded)) < len(loaded):
        raise InputError(f"teachers {', '.join(loaded)}: their losses are logged by name; name each one once")
    return teachers


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
    described = config.pop("kind", None) if isinstance(config, dict) else None
    if described != kind:
        raise InputError(
            f"{path} describes a {described!r}, expected a {kind!r}; give the folder of a {kind}"
        )
    if odd := sorted(set(config) ^ set(settings)):
        raise InputError(f"{path}: settings {odd} are missing or unknown; a {kind} has {sorted(settings)}")
    return config
