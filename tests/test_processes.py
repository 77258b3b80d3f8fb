"""However a step is computed, it is the same: by one process or two, whole or in pieces, sharded or not."""

import json
import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from gear_studio import Run
from gear_studio.devices import PATIENCE
from gear_studio.training import loop
from gear_studio.training.execution import Execution
from gear_studio.training.objectives import entropy_loss
from gear_studio.training.request import Training

STEPS = 4
WHOLE = Execution()
TOKENIZERS = {
    "vq": tiny.TOKENIZER,
    "lfq": tiny.replace(tiny.TOKENIZER, code_dim=6, quantizer="lfq"),
    "ibq": tiny.replace(tiny.TOKENIZER, code_dim=16, quantizer="ibq"),
}
STAGES = {"warmup": ("warmup", None), "joint": ("gear", "warmup"), "generator": ("gear", "joint")}
# Each process has 4 images of a batch of 8: pieces of 2 are two pieces there, pieces of 4 two of one process.
ALONE = {"": WHOLE, "-in-pieces": Execution(micro_batch=4, recompute=True)}
TOGETHER = {
    "-by-two": WHOLE,
    "-by-two-in-pieces": Execution(micro_batch=2),
    "-by-two-sharded": Execution(micro_batch=2, recompute=True, shard=True),
}
# Recomputed blocks and a sharded generator do not meet the quantizer: with VQ alone.
QUANTIZERS = {"": TOKENIZERS, "-by-two": TOKENIZERS, "-by-two-in-pieces": TOKENIZERS}
CASES = [
    (quantizer, stage, suffix)
    for suffix in (*ALONE, *TOGETHER)
    for quantizer in QUANTIZERS.get(suffix, ["vq"])
    for stage in STAGES
]
TAKEN_OVER = [  # by one process: stage, how it was begun, how it is called
    *((stage, "-by-two", "-from-two-to-one") for stage in STAGES),
    ("joint", "-by-two-sharded", "-from-shards-to-one"),
]
GAN, KEPT = {"gan_weight": 0.1}, {"kept_pictures": 64}


def train(name: str, folder: Path, teacher: Path, suffix: str, execution: Execution, **changes) -> None:
    """One stage, named quantizer/stage; on the same parent with any suffix. changes: to the recipe.

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
        **changes,
    )
    arm, parent = STAGES[stage]
    parent = folder / quantizer / parent if parent else None
    out = folder / (name + suffix)
    training = Training("digits", stage, arm, recipe, out=out, parent=parent, execution=execution)
    loop.train(training, progress=False)


def take_back(run: Path, out: Path) -> None:
    """A copy of a run as it was when a kill came after the checkpoint of step 2."""
    shutil.copytree(run, out)
    (out / "checkpoints" / f"step-{STEPS:08d}.pt").unlink()
    (out / "record.json").write_text(json.dumps(Run(out).record | {"finished": False}))


def train_together(rank: int, folder: Path, teacher: Path) -> None:
    for quantizer, stage, suffix in CASES:
        if suffix in TOGETHER:
            train(f"{quantizer}/{stage}", folder, teacher, suffix, TOGETHER[suffix])
    train("vq/joint", folder, teacher, "-gan-by-two", WHOLE, **GAN)
    train("vq/joint", folder, teacher, "-from-one-to-shards", TOGETHER["-by-two-sharded"])
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    train("vq/joint", folder, teacher, "-kept-by-two", WHOLE, **KEPT)
    assert torch.distributed.get_backend() == "gloo"
    group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    assert group.options._timeout == PATIENCE == timedelta(hours=2)
    torch.save(entropy_gradient(scores().chunk(2)[rank]), folder / f"entropy-{rank}.pt")


def train_on_nodes(rank: int, folder: Path, teacher: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = str(folder / f"cache-of-node-{rank}")
    train("vq/joint", folder, teacher, "-kept-on-nodes", WHOLE, **KEPT)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, teacher_folder) -> Path:
    """All stages trained in all ways, and runs that two processes and one took over from each other."""
    folder = tmp_path_factory.mktemp("processes")
    for quantizer, stage, suffix in CASES:
        if suffix in ALONE:
            train(f"{quantizer}/{stage}", folder, teacher_folder, suffix, ALONE[suffix])
    train("vq/joint", folder, teacher_folder, "-gan-in-pieces", Execution(micro_batch=4), **GAN)
    take_back(folder / "vq/joint", folder / "vq/joint-from-one-to-shards")
    tiny.in_two(train_together, folder, teacher_folder, seconds=900)
    for stage, begun, suffix in TAKEN_OVER:
        take_back(folder / "vq" / (stage + begun), folder / "vq" / (stage + suffix))
        train(f"vq/{stage}", folder, teacher_folder, suffix, WHOLE)
    take_back(folder / "vq/joint-kept-by-two", folder / "vq/joint-kept-on-nodes")
    tiny.in_two(train_on_nodes, folder, teacher_folder, nodes=2)
    return folder


def assert_same_training(one: Run, other: Run) -> None:
    """Equal up to the order of sums: losses, norms, validation, and the average weights that are saved."""
    losses = {"l1", "quantizer", "code_entropy", "perceptual", "tokenizer", "alignment_soft"}
    losses |= {"ntp", "alignment_hard", "generator", "gan", "discriminator"}
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
            if "running" in name or "batches" in name:  # BatchNorm's, which nothing reads
                continue
            assert (value - same[name]).abs().mean() < 1e-5, f"{file.parent.name}.{name}"


@pytest.mark.parametrize(("quantizer", "stage", "suffix"), [case for case in CASES if case[2]])
def test_all_ways_of_computing_a_step_agree(quantizer, stage, suffix, runs):
    one, other = (Run.from_pretrained(runs / quantizer / name) for name in (stage, stage + suffix))
    assert other.record["processes"] == (2 if "two" in suffix else 1)
    assert_same_training(one, other)
    # Something was learnt in these steps: the agreement is not that of runs that stand still.
    loss = {"warmup": "code_entropy", "joint": "alignment_soft", "generator": "ntp"}[stage]
    assert abs(one.metrics[-1][loss] - one.metrics[0][loss]) > 1e-4


@pytest.mark.parametrize(("stage", "begun", "suffix"), [*TAKEN_OVER, ("joint", "", "-from-one-to-shards")])
def test_a_run_goes_on_with_another_number_of_processes(stage, begun, suffix, runs):
    one, other = (Run.from_pretrained(runs / "vq" / name) for name in (stage, stage + suffix))
    begun = Run.from_pretrained(runs / "vq" / (stage + begun))
    assert {begun.record["processes"], other.record["processes"]} == {1, 2}
    assert_same_training(one, other)


def test_two_nodes_go_on_with_what_two_processes_of_one_began(runs):
    """Each with a cache of its own, in which it keeps the teacher's features; equal to the byte."""
    one, other = (runs / "vq" / f"joint-kept-{where}" for where in ("by-two", "on-nodes"))
    assert Run(other).finished and Run(other).record["processes"] == 2
    assert tiny.metric_differences(tiny.metrics(one), tiny.metrics(other)) == []
    weights = sorted(one.glob("*/model.safetensors"))
    assert weights and all(
        file.read_bytes() == (other / file.relative_to(one)).read_bytes() for file in weights
    )
    for rank in (0, 1):
        assert [*(runs / f"cache-of-node-{rank}").glob("gear-studio/kept/features-*/*.npy")]


def test_the_discriminator_trains_in_two_processes_as_in_two_pieces(runs):
    """On CPUs each process's BatchNorm normalises by its own images, as it does by a piece's: the same ones
    here."""
    one, other = (Run.from_pretrained(runs / "vq" / f"joint-gan-{way}") for way in ("in-pieces", "by-two"))
    assert (one.record["processes"], other.record["processes"]) == (1, 2)
    assert {"gan", "discriminator", "grad_norm_discriminator"} <= other.metrics[-1].keys()
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


# Accelerate's configs

CONFIG = """
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: MULTI_GPU
downcast_bf16: 'no'
enable_cpu_affinity: false
gpu_ids: all
machine_rank: 0
main_process_port: 0
main_training_function: main
mixed_precision: fp16
num_machines: 1
num_processes: 2
rdzv_backend: static
same_network: true
use_cpu: false
"""


def test_a_config_of_accelerate_says_how_many_processes_there_are(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    words = ["accelerate.commands.launch", "--config_file", "config.yaml", "-m", "gear_studio"]
    words += ["train", "digits", "--budget", "smoke", "--batch-size", "2", "--out", "run"]
    here = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, env=os.environ | here, check=True)
    run = Run(tmp_path / "run")
    assert run.finished and run.record["processes"] == 2


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "asks for FSDP.*--shard"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "asks for DEEPSPEED.*distributed_type MULTI_GPU"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo backend INDUCTOR.*--compile"),
    ],
)
def test_what_a_training_does_by_itself_no_config_may_ask_for(name, value, message, tmp_path, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        loop.train(Training("digits", budget="smoke", out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
