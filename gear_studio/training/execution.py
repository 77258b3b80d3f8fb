"""How a step is computed, never what: pieces of a batch, recomputed activations, compiled and sharded models.

Nothing here belongs to a recipe. A run may be continued with another `Execution`, and on another number of
processes, from the same checkpoint: checkpoints hold whole tensors.

Processes come from Accelerate, which also wraps every trained model for data parallelism. Sharding calls
torch's FSDP2 (`fully_shard`) itself, for the generator alone: Accelerate's plugin prepares one model, and a
joint step trains three. The average weights are sharded like the trained ones, so that each process averages
the shards it holds; they are gathered only to be written.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gear_studio.models.autoencoders import ResBlock
from gear_studio.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Execution:
    """Defaults suit models and batches that fit; each field gives up something for memory or speed.

    micro_batch: images a process works on at a time, 0 for its whole share of the batch. Gradients of the
    pieces add up to the batch's. recompute: do not keep activations inside residual and transformer blocks,
    compute them again in the backward pass. compile: with torch.compile, after minutes at the start. shard:
    spread the generator's weights, gradients, averages and optimizer state over the processes."""

    micro_batch: int = 0
    recompute: bool = False
    compile: bool = False
    shard: bool = False

    def pieces(self, images: int) -> int:
        """How many pieces a process makes of its share of a batch. Raises ValueError when they are not
        equal."""
        size = self.micro_batch or images
        if size < 1 or images % size:
            raise ValueError(
                f"micro_batch {size} does not divide the {images} images that each process has of a batch"
            )
        return images // size


WHOLE = Execution()


def prepare_tokenizer(tokenizer: Tokenizer, execution: Execution) -> None:
    """Change how a tokenizer's convolutions are run; its weights and their names stay."""
    if execution.recompute:
        for module in tokenizer.modules():
            if isinstance(module, ResBlock):
                module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    if execution.compile:
        for half in (tokenizer.encoder, tokenizer.decoder):
            half.forward = torch.compile(half.forward, dynamic=False)


def prepare_blocks(model: nn.Module, execution: Execution) -> None:
    """Change how a transformer's `blocks` are run, one by one: alike, they share one compiled program."""
    for block in model.blocks:
        if execution.compile:
            block.forward = torch.compile(block.forward, dynamic=False)
        if execution.recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def shard(aligned: nn.Module) -> None:
    """Spread a generator and its projector over the processes, in place: each block is gathered for as long
    as it runs. Weights are gathered in float32, so that autocast rounds where it would in one process."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in aligned.generator.blocks:
        fully_shard(block)
    # The outermost module, too, lets go of what it gathered: the averages are updated between two uses.
    fully_shard(aligned, reshard_after_forward=True)
    register_fsdp_forward_method(aligned, "project_tap")


def whole(value: Any, keep: bool = True) -> Any:
    """A state dict with its sharded tensors gathered and all tensors on the CPU. Every process must call it;
    only those that keep the answer spend memory on it, the others get None for a tensor."""
    if isinstance(value, dict):
        return {name: whole(part, keep) for name, part in value.items()}
    if isinstance(value, list):
        return [whole(part, keep) for part in value]
    if isinstance(value, Tensor):
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        return value.cpu() if keep else None
    return value


def like(value: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor, sharded where `reference` is: this process's part of it."""
    if not hasattr(reference, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = reference.device_mesh, reference.placements
    return distribute_tensor(value.to(reference.device), mesh, placements, src_data_rank=None)


def load_module(module: nn.Module, state: dict[str, Tensor]) -> None:
    own = module.state_dict()
    module.load_state_dict({name: like(value, own.get(name, value)) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    held = {
        number: {
            # Copies: what was read may be mapped from the file, and an optimizer changes its state in place.
            k: v.clone()
            if k == "step"
            else like(v.to(parameters[number].device, copy=True), parameters[number])
            for k, v in entry.items()
        }
        for number, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": held})
