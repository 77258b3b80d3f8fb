"""Two processes at half the batch each train what one process trains."""

import os
import socket
from pathlib import Path

import pytest
import tiny
import torch

from gear_studio import Run
from gear_studio.training import loop

STEPS = 5
STAGES = {"warmup": ("warmup", None), "joint": ("gear", "warmup"), "generator": ("gear", "joint")}


def train_all(folder: Path, teacher: Path, suffix: str = "") -> None:
    """The three stages, on the same parents with any suffix.

    Without dropout and label drop: their dice are each process's own. At low learning rates: at higher ones
    rounding grows, through the entropy term's temperature of 0.01, to the tolerance within the steps."""
    steady = tiny.replace(tiny.GENERATOR, dropout=0.0, label_drop=0.0)
    recipe = tiny.recipe(
        teacher,
        steps=STEPS,
        generator=steady,
        tokenizer_lr=3e-5,
        generator_lr=1e-4,
        log_every=1,
        checkpoint_every=5,
    )
    for stage, (arm, parent) in STAGES.items():
        parent = folder / parent if parent else None
        loop.train("digits", stage, arm, recipe, out=folder / (stage + suffix), parent=parent, progress=False)


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
    train_all(folder, teacher, "-by-two")
    assert torch.distributed.get_backend() == "gloo"
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, teacher_folder) -> Path:
    """The three stages trained by one process and by two."""
    folder = tmp_path_factory.mktemp("processes")
    train_all(folder, teacher_folder)
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
        process.join(300)
        process.kill()
    assert [process.exitcode for process in both] == [0, 0]
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_at_half_batch_match_one(stage, runs):
    one, two = (Run.from_pretrained(runs / name) for name in (stage, f"{stage}-by-two"))
    assert [row["step"] for row in two.metrics] == [1, 2, 3, 4, 5]
    assert (one.record["processes"], two.record["processes"]) == (1, 2)
    losses = {
        "warmup": {"l1", "quantizer", "code_entropy", "perceptual", "tokenizer"},
        "joint": {"l1", "quantizer", "code_entropy", "perceptual", "tokenizer", "alignment_soft"}
        | {"ntp", "alignment_hard", "generator"},
        "generator": {"ntp", "alignment_hard", "generator"},
    }[stage]
    norms = {name for name in one.metrics[0] if name.startswith("grad_norm")}
    exact = {name for name in one.metrics[-1] if name.startswith("val")} | {"usage", "perplexity"}
    for here, there in zip(one.metrics, two.metrics, strict=True):
        for names, tolerance in ((losses, {"abs": 1e-5}), (norms, {"rel": 1e-3}), (exact, {"rel": 1e-3})):
            expected = {name: here[name] for name in names & here.keys()}
            assert {name: there[name] for name in expected} == pytest.approx(expected, **tolerance)
    # Something was learnt in these steps: the agreement is not that of runs that stand still.
    loss = {"warmup": "l1", "joint": "alignment_soft", "generator": "ntp"}[stage]
    assert abs(one.metrics[-1][loss] - one.metrics[0][loss]) > 1e-4
