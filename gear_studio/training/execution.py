"""How a step is computed, never what: pieces of a batch, recomputed activations, compiled and sharded models.

Nothing here belongs to a recipe. A run may be continued with another `Execution`, on another device or number
of processes, from the same checkpoint: checkpoints hold whole tensors.

Models know nothing of it. `prepare` changes those of one training in place, in this order: recompute,
compile, shard. Names of weights stay as they are. The models must be the training's own, not a Run's.

Processes come from Accelerate, which also wraps every trained model for data parallelism. Sharding calls
torch's FSDP2 (`fully_shard`) itself, for the generator alone: Accelerate's plugin prepares one model, and a
joint step trains three. The average weights are sharded like the trained ones, so that each process averages
the shards it holds; they are gathered only to be written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from gear_studio.devices import Device
from gear_studio.errors import InputError
from gear_studio.models.autoencoders import ResBlock
from gear_studio.models.feature_maps import FeatureMap
from gear_studio.models.generator import Block
from gear_studio.models.teachers import Teacher
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.ranges import Flag, Natural
from gear_studio.training.aligned import AlignedGenerator

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3


@dataclass(frozen=True)
class Execution:
    """Defaults suit models and batches that fit; each field gives up something for memory or speed."""

    micro_batch: Natural = 0
    """Images a process works on at a time; their gradients add up to the batch's. Default: its share of the
    batch."""
    recompute: Flag = False
    """Do not keep activations inside blocks: less memory, a third more work."""
    compile: Flag = False
    """With torch.compile: faster, after some minutes at the start."""
    shard: Flag = False
    """Spread the generator over the processes (FSDP2)."""
    device: Device = None

    def pieces_of(self, images: int) -> int:
        """How many pieces a process makes of its share of a batch. Raises ValueError when they are not
        equal."""
        size = self.micro_batch or images
        if size < 1 or images % size:
            raise InputError(
                f"micro_batch {size} does not divide the {images} images that each process has of a batch"
            )
        return images // size


def copy_averages(modules: Mapping[str, nn.Module], decay: float) -> "dict[str, ModelEmaV3]":
    """An average of each module's weights, in eval mode: copies, to be made before `prepare`. Updated with
    the number of a step its decay climbs as 1 - 1/step, without one it is `decay` at once."""
    from timm.utils import ModelEmaV3  # here: it takes seconds to import

    return {
        name: ModelEmaV3(module, decay, use_warmup=True, warmup_power=1.0) for name, module in modules.items()
    }


def prepare(
    execution: Execution,
    tokenizer: Tokenizer | None,
    teachers: Sequence[Teacher],
    aligned: AlignedGenerator | None,
    average: AlignedGenerator | None,
) -> None:
    """Change in place how the models of a training are run.

    tokenizer, teachers: those that a step runs. aligned: the generator with its projectors, where one is
    trained; average: the average of its weights, which only sharding changes."""
    if execution.recompute:  # not the teachers: a third of their work, for little memory
        if tokenizer is not None:
            recompute(tokenizer)
        if aligned is not None:
            recompute(aligned)
    if execution.compile:
        compile_parts(tokenizer, teachers, aligned)
    if execution.shard and aligned is not None and average is not None:
        shard(aligned)
        shard(average)


def recompute(model: nn.Module) -> None:
    """Keep no activations inside the model's residual and transformer blocks: the backward pass computes them
    again."""
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, ResBlock | Block))


def compile_parts(
    tokenizer: Tokenizer | None, teachers: Sequence[Teacher], aligned: AlignedGenerator | None
) -> None:
    """Compile a tokenizer's two halves, and transformers block by block: alike, the blocks share one
    program. A convolutional teacher is compiled whole."""
    parts: list[nn.Module] = []
    if tokenizer is not None:
        parts += [tokenizer.encoder, tokenizer.decoder]
    for teacher in teachers:
        network = cast(nn.Module, teacher.encoder.blocks)
        parts += [network] if isinstance(teacher.encoder, FeatureMap) else network.children()
    if aligned is not None:
        parts += aligned.generator.blocks
    for part in parts:
        part.compile(dynamic=False)


def shard(aligned: AlignedGenerator) -> None:
    """Spread a generator and its projectors over the processes, in place: each block is gathered for as long
    as it runs. Weights are gathered in float32, so that autocast rounds where it would in one process."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in aligned.generator.blocks:
        fully_shard(block)
    # The outermost module, too, lets go of what it gathered: the averages are updated between two uses.
    fully_shard(aligned, reshard_after_forward=True)
    register_fsdp_forward_method(aligned, "project_tap")
