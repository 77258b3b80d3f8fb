"""What many tests share: models of a few thousand weights, recipes of a few steps, processes to run them in.

With these a training step takes milliseconds."""

import functools
import itertools
import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gear_studio import cli, data
from gear_studio.models.discriminator import Discriminator, DiscriminatorConfig
from gear_studio.models.generator import Generator, GeneratorConfig
from gear_studio.models.teachers import Teacher, TeacherConfig, build_encoder
from gear_studio.models.tokenizer import Tokenizer, TokenizerConfig
from gear_studio.training import stages
from gear_studio.training.execution import Execution
from gear_studio.training.loop import train
from gear_studio.training.recipes import Recipe
from gear_studio.training.request import Training
from gear_studio.training.stages import Stage

# Of what takes minutes and is tested in its parts elsewhere.
minutes = pytest.mark.skipif(
    "GEAR_ALL_TESTS" not in os.environ, reason="minutes; GEAR_ALL_TESTS=1 has it run"
)

TOKENIZER = TokenizerConfig(
    image_size=32, channels=32, multipliers=(1, 1), patch=4, latent=32, codes=64, code_dim=8
)
GENERATOR = GeneratorConfig(classes=10, codes=64, grid=4, dim=32, blocks=3, heads=2, tap=2)
CAPTION_DIM, CAPTION_LENGTH = 6, 5
CAPTIONED = replace(GENERATOR, caption_dim=CAPTION_DIM, caption_length=CAPTION_LENGTH)
TIMINGS = ("images_per_second", "seconds")  # the metrics that differ between two equal runs

# The only model whose size no recipe sets.
stages.Discriminator = functools.partial(Discriminator, DiscriminatorConfig(channels=8))

# Starting Python and importing torch costs seconds; a fork server pays it once for all tests' processes.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["gear_studio.training.loop"])


def teacher(seed: int = 0) -> Teacher:
    torch.manual_seed(seed)
    config = TeacherConfig(image_size=32, patch_size=8, dim=32, depth=2, heads=2)
    return Teacher(config, build_encoder(config))


def generator(seed: int = 0, **changes) -> Generator:
    """In eval mode, with a head that is not zero, so that logits depend on everything before them."""
    torch.manual_seed(seed)
    made = Generator(replace(GENERATOR, **changes)).eval()
    wake(made)
    return made


def captioned(seed: int = 0, length: int = CAPTION_LENGTH, **changes) -> Generator:
    """A generator like `generator`, conditioned on captions, with a null of two words."""
    made = generator(seed, caption_dim=CAPTION_DIM, caption_length=length, **changes)
    made.condition.null.copy_(captions([2], length, seed=99)[0])
    return made


def captions(lengths: list[int], positions: int = CAPTION_LENGTH, seed: int = 0) -> torch.Tensor:
    """Encoded captions of so many words, (B, positions, 1 + CAPTION_DIM), with features at padding too."""
    source = torch.Generator().manual_seed(seed)
    features = torch.randn(len(lengths), positions, CAPTION_DIM, generator=source)
    words = torch.arange(positions) < torch.tensor(lengths)[:, None]
    return torch.cat([words[..., None].float(), features], -1)


def wake(module: Generator) -> None:
    """Weights large enough that every position matters, and a head that is not zero."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=1.0 if "tokens" in name or "condition" in name else 0.2)


def recipe(teacher: str | Path = "", **changes) -> Recipe:
    made = Recipe(
        steps=12,
        batch_size=8,
        tokenizer=TOKENIZER,
        generator=GENERATOR,
        projector_hidden=32,
        teacher=str(teacher),
        tokenizer_lr=1e-3,
        generator_lr=1e-3,
        ema=0.9,
        perceptual_blocks=(1, 2),
        log_every=2,
        checkpoint_every=4,
        validation_images=8,
    )
    return replace(made, **changes)


def stage(name: str, arm: str, seed: int = 0, execution: Execution | None = None, **changes) -> Stage:
    """A Stage with random weights; its generator's head is not zero."""
    torch.manual_seed(seed)
    parts = teacher(), Accelerator(cpu=True), Tokenizer(TOKENIZER)
    made = Stage(name, arm, recipe(**changes), *parts, execution=execution or Execution())
    if "aligned" in made.modules:
        wake(made.modules["aligned"].generator)
    return made


def caption_runs(folder: Path) -> Path:
    """Runs with a generator asked in words, made as the explorer says how but at the smoke budget."""
    out = folder / "runs" / "shapes-caption-generator-gear-s0"
    asked = Training("shapes", "generator", parent=Path("gear"), condition="caption", budget="smoke", out=out)
    train(asked, progress=False)
    return out.parent


def batch(seed: int = 0, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.rand(size, 3, 32, 32, generator=source) * 2 - 1, torch.arange(size) % GENERATOR.classes


def asked(stage: Stage, seed: int = 0, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """`batch` with what the stage's generator is conditioned on: its labels, or captions."""
    images, labels = batch(seed, size)
    captioned = stage.recipe.generator.caption_dim
    return images, captions([3, 0, 5, 1][:size], seed=seed) if captioned else labels


def pngs(folder: Path, counts: dict[str, int], classes: int = 2, size: int = 32) -> None:
    """A folder of pictures by split and class: so many of each split, taken from the embedded world."""
    for split, count in counts.items():
        batch = data.load("shapes", split, size).read(range(count))
        for i, picture in enumerate(batch["image"]):
            file = folder / split / f"kind{i % classes}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file)


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def metric_differences(one: list[dict], other: list[dict]) -> list[str]:
    """Where two runs differ in their metrics, the first few. (pytest is slow to explain a failing ==.)"""
    found = [f"{len(one)} rows, {len(other)} rows"] if len(one) != len(other) else []
    for here, there in zip(one, other, strict=False):
        for key in sorted(here.keys() | there.keys()):
            if here.get(key) != there.get(key):
                found.append(f"step {here['step']}: {key} is {here.get(key)}, {there.get(key)}")
    return found[:5]


def metrics_whole_lines(folder: Path) -> list[str]:
    """The lines that are written to the end, of a file that may be growing."""
    return (folder / "metrics.jsonl").read_text().split("\n")[:-1]


def peak_bytes(function: Callable[[], None]) -> int:
    """The most memory that tensors made inside `function` took at one time, on the CPU."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        function()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held)


class Waits(TorchDispatchMode):
    """Notes every operation whose answer Python needs, and every copy to the CPU: on CUDA each would wait for
    the device."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __enter__(self):
        self._copies = pytest.MonkeyPatch()
        for name in ("cpu", "numpy", "tolist"):
            self._copies.setattr(Tensor, name, self._noting(name))
        return super().__enter__()

    def __exit__(self, *error):
        self._copies.undo()
        return super().__exit__(*error)

    def _noting(self, name: str) -> Callable:
        really = getattr(Tensor, name)
        return lambda tensor, *rest, **more: self.found.append(name) or really(tensor, *rest, **more)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"):
            self.found.append(function.name())
        return function(*args, **(kwargs or {}))


def run_apart(target: Callable, *arguments) -> int:
    """Call `target` in a process of its own. Returns its exit code, minus the signal's number if killed."""
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join(300)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{target.__name__} did not end within 300 s")
    return process.exitcode


class Forked:
    """In the place of `subprocess.Popen`: the same command in a fork, which has imported everything."""

    def __init__(
        self, words: list[str], env: dict, stdout, stderr, pass_fds, cwd=".", start_new_session=False
    ):
        def job() -> None:
            if start_new_session:
                os.setsid()
            for number in (1, 2):
                os.dup2(stdout.fileno(), number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            os.chdir(cwd)
            sys.argv = ["gear-studio", *words[3:]]
            cli.main()

        self.process = multiprocessing.get_context("fork").Process(target=job)
        self.process.start()
        self.pid = self.process.pid
        self.terminate = self.process.terminate

    def poll(self) -> int | None:
        return self.process.exitcode

    returncode = property(poll)


def in_two(target: Callable, *arguments, seconds: int = 300, nodes: int = 1) -> None:
    """Call `target(rank, *arguments)` in two processes, each told of the other as `accelerate launch` tells
    it. Both have to end well. nodes: 2 tells each that it is the only one of its node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [
        processes.Process(target=_one_of_two, args=(rank, nodes, port, target, arguments)) for rank in (0, 1)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(seconds)
        process.kill()
    assert [process.exitcode for process in both] == [0, 0]


def command(rank: int, words: list[str]) -> None:
    """For `in_two`: what a command line says, as `accelerate launch` has every process do it."""
    cli.run(words)


def _one_of_two(rank: int, nodes: int, port: int, target: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank if nodes == 1 else 0),
        "LOCAL_WORLD_SIZE": str(2 // nodes),
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }
    target(rank, *arguments)
    torch.distributed.destroy_process_group()
