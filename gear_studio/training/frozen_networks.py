"""What a stage keeps of a fixed set of pictures (`recipe.kept_pictures`): the answers of frozen networks, so
that these run once a picture instead of once a step."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from gear_studio.data.images import to_float
from gear_studio.data.kept_pictures import KeptPictures
from gear_studio.data.source import Batch, Source
from gear_studio.models.pretrained import fingerprint
from gear_studio.models.teachers import Teacher
from gear_studio.training.stages import Stage


def keep_pictures(source: Source, captions: bool, stage: Stage, progress: bool = True) -> KeptPictures:
    """The recipe's `kept_pictures` of a source, with what a stage has to know of each: the teachers' features
    where something is aligned, and in the generator stage the tokens, in which case no picture is drawn any
    more. captions: whether batches have them. Raises as `KeptPictures.keep`."""
    recipe, accelerator = stage.recipe, stage.accelerator
    generates = stage.stage == "generator"
    kept = KeptPictures(source, recipe.kept_pictures, captions, pixels=not generates)
    # On a CPU a convolution's intermediate results leave the cache where there are many pictures.
    at_once = 256 if accelerator.device.type == "cuda" else 16
    if generates:
        kept.keep("label", "", lambda batch: batch["label"].int(), 256, progress)
        network = f"{stage.tokenizer.config} {fingerprint(stage.tokenizer)} {accelerator.mixed_precision}"
        kept.keep("tokens", network, _tokens_of(stage), at_once, progress)
    if {"aligned", "latent"} & stage.modules.keys() and recipe.alignment_weight > 0:
        for number, teacher in enumerate(stage.teachers):
            teacher.to(memory_format=torch.channels_last)  # twice as fast, where it is convolutional
            network = f"{teacher.identity()} {accelerator.mixed_precision}"
            compute = _features_of(teacher, accelerator)
            kept.keep("features", network, compute, at_once, progress, name=f"features_{number}")
    return kept


def features_in(batch: Batch) -> list[Tensor]:
    """The teachers' features in a batch of `keep_pictures`, (B, N, d_f) each; [] where none were kept."""
    return [batch[f"features_{i}"].float() for i in range(len(batch)) if f"features_{i}" in batch]


def _tokens_of(stage: Stage) -> Callable[[Batch], Tensor]:
    tokenizer, accelerator = stage.tokenizer, stage.accelerator
    dtype = torch.int16 if tokenizer.config.codes <= 2**15 else torch.int32

    @torch.no_grad()
    def compute(batch: Batch) -> Tensor:
        with accelerator.autocast():
            return tokenizer.assign(to_float(batch["image"].to(accelerator.device))).indices.to(dtype)

    return compute


def _features_of(teacher: Teacher, accelerator: Accelerator) -> Callable[[Batch], Tensor]:
    @torch.no_grad()
    def compute(batch: Batch) -> Tensor:
        with accelerator.autocast():
            return teacher(to_float(batch["image"].to(accelerator.device))).half()

    return compute
