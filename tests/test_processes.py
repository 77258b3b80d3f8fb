"""However a step is computed, it is the same: by one process or two, whole or in pieces, sharded or not."""

import json
import os
import shutil
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from gear_studio import Run
from gear_studio.data import PATIENCE
from gear_studio.objectives import entropy_loss
from gear_studio.training import loop
from gear_studio.training.execution import WHOLE, Execution

STEPS = 4
TOKENIZERS = {"vq": tiny.TOKENIZER}
STAGES = {"warmup": ("warmup", None), "joint": ("gear", "warmup"), "generator": ("gear", "joint")}
# Each process has 4 images of a batch of 8: pieces of 2 are two pieces there, pieces of 4 two of one process.
ALONE = {"": WHOLE, "-in-pieces": Execution(micro_batch=4, recompute=True)}
TOGETHER = {
    "-by-two": WHOLE,
    "-by-two-in-pieces": Execution(micro_batch=2),
    "-by-two-sharded": Execution(micro_batch=2, recompute=True, shard=True),
}
SUFFIXES = [*ALONE, *TOGETHER][1:]


def train(name: str, folder: Path, teacher: Path, suffix: str, execution: Execution) -> None:
    """One stage, named quantizer/stage; on the same parent with any suffix.

    Without dropout and label drop: their dice are each process's own. At low learning rates: at higher ones
    rounding grows, through the entropy term's temperature of 0.01, to the tolerance within the steps."""
    quantizer, stage = name.split("/")
    recipe = tiny.recipe(
        teacher,
        steps=STEPS,
        tokenizer=TOKENIZERS[quantizer],
        generator=tiny.replace(tiny.GENERATOR, dropout=0.0, label_drop=0.0),
        tokenizer_lr=3e-5,
        generator_lr=1e-4,
        log_every=1,
        checkpoint_every=2,
    )
    arm, parent = STAGES[stage]
    parent = folder / quantizer / parent if parent else None
    out = folder / (name + suffix)
    loop.train("digits", stage, arm, recipe, out=out, parent=parent, progress=False, execution=execution)


def take_back(out: Path) -> None:
    """As it was when a kill came after the checkpoint of step 2."""
    (out / "checkpoints" / f"step-{STEPS:08d}.pt").unlink()
    (out / "record.json").write_text(json.dumps(Run(out).record | {"finished": False}))


def train_together(rank: int, port: int, folder: Path, teacher: Path) -> None:
    """One of two processes, told of the other as `accelerate launch` and `torchrun` tell it."""
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }
    for quantizer in TOKENIZERS:
        for stage in STAGES:
            for suffix, execution in TOGETHER.items():
                train(f"{quantizer}/{stage}", folder, teacher, suffix, execution)
    train("vq/joint", folder, teacher, "-from-one-to-two", TOGETHER["-by-two-sharded"])
    assert torch.distributed.get_backend() == "gloo"
    group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    assert group.options._timeout == PATIENCE == timedelta(hours=2)
    torch.save(entropy_gradient(scores().chunk(2)[rank]), folder / f"entropy-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, teacher_folder) -> Path:
    """All stages trained in all ways, and two runs that two processes and one took over from each other."""
    folder = tmp_path_factory.mktemp("processes")
    for suffix, execution in ALONE.items():
        for name in [f"{quantizer}/{stage}" for quantizer in TOKENIZERS for stage in STAGES]:
            train(name, folder, teacher_folder, suffix, execution)
    shutil.copytree(folder / "vq/joint", folder / "vq/joint-from-one-to-two")
    take_back(folder / "vq/joint-from-one-to-two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [
        tiny.processes.Process(target=train_together, args=(rank, port, folder, teacher_folder))
        for rank in (0, 1)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(900)
        process.kill()
    assert [process.exitcode for process in both] == [0, 0]
    shutil.copytree(folder / "vq/joint-by-two-sharded", folder / "vq/joint-from-two-to-one")
    take_back(folder / "vq/joint-from-two-to-one")
    train("vq/joint", folder, teacher_folder, "-from-two-to-one", WHOLE)
    return folder


def assert_same_training(one: Run, other: Run) -> None:
    """Equal up to the order of sums: losses, norms, validation, and the average weights that are saved."""
    losses = {"l1", "quantizer", "code_entropy", "perceptual", "tokenizer", "alignment_soft"}
    losses |= {"ntp", "alignment_hard", "generator"}
    others = {name for row in one.metrics for name in row if name.startswith(("grad_norm", "val_"))}
    others |= {"usage", "perplexity"}
    assert [row.keys() for row in one.metrics] == [row.keys() for row in other.metrics]
    for here, there in zip(one.metrics, other.metrics, strict=True):
        for names, tolerance in ((losses, {"abs": 1e-5}), (others, {"rel": 1e-3})):
            expected = {name: here[name] for name in names & here.keys()}
            assert {name: there[name] for name in expected} == pytest.approx(expected, **tolerance)
    for file in sorted(one.folder.glob("*/model.safetensors")):
        weights, same = load_file(file), load_file(other.folder / file.relative_to(one.folder))
        # Adam's first steps have the learning rate's size whatever the gradient's: rounding can turn a few.
        # The weights move by about 1e-4 in these steps: an average that stood still would be off by as much.
        for name, value in weights.items():
            assert (value - same[name]).abs().mean() < 1e-5, f"{file.parent.name}.{name}"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("quantizer", TOKENIZERS)
def test_all_ways_of_computing_a_step_agree(quantizer, stage, suffix, runs):
    one, other = (Run.from_pretrained(runs / quantizer / name) for name in (stage, stage + suffix))
    assert other.record["processes"] == (2 if "two" in suffix else 1)
    assert_same_training(one, other)
    # Something was learnt in these steps: the agreement is not that of runs that stand still.
    loss = {"warmup": "l1", "joint": "alignment_soft", "generator": "ntp"}[stage]
    assert abs(one.metrics[-1][loss] - one.metrics[0][loss]) > 1e-4


@pytest.mark.parametrize(("name", "processes"), [("joint-from-one-to-two", 2), ("joint-from-two-to-one", 1)])
def test_a_run_goes_on_with_another_number_of_processes(name, processes, runs):
    one, other = Run.from_pretrained(runs / "vq/joint"), Run.from_pretrained(runs / "vq" / name)
    assert other.record["processes"] == processes
    assert_same_training(one, other)


def test_a_checkpoint_of_shards_is_a_checkpoint_like_any_other(runs):
    def shapes(value):
        if isinstance(value, dict):
            return {key: shapes(part) for key, part in value.items() if key != "seconds"}
        return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value)

    one, sharded = (
        torch.load(runs / "vq" / name / "checkpoints" / f"step-{STEPS:08d}.pt", weights_only=True)
        for name in ("joint", "joint-by-two-sharded")
    )
    assert shapes(one) == shapes(sharded)


def scores() -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 7, generator=source, dtype=torch.float64) * 0.02


def entropy_gradient(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    part = part.clone().requires_grad_()
    loss = entropy_loss(part)
    loss.backward()
    return loss.detach(), part.grad


def test_the_entropy_term_s_gradient_is_that_of_the_average_over_both_processes(runs):
    whole = scores().requires_grad_()
    log_p = torch.log_softmax(whole / 0.01, -1).flatten(0, 1)
    mean = log_p.exp().mean(0)
    loss = (mean * (mean + 1e-5).log()).sum() - (log_p.exp() * log_p).sum(-1).mean()
    loss.backward()
    losses, gradients = zip(*(torch.load(runs / f"entropy-{rank}.pt") for rank in (0, 1)), strict=True)
    torch.testing.assert_close(sum(losses) / 2, loss.detach(), rtol=1e-12, atol=1e-14)
    # Processes average their gradients, so each one's is twice what it contributes.
    torch.testing.assert_close(torch.cat(gradients) / 2, whole.grad, rtol=1e-12, atol=1e-14)


def test_pieces_that_do_not_divide_a_process_s_images_are_refused(tmp_path, teacher_folder):
    with pytest.raises(ValueError, match="micro_batch 3 does not divide the 8 images"):
        train("vq/warmup", tmp_path, teacher_folder, "", Execution(micro_batch=3))
