"""What a joint step costs at the paper's size: `python benchmarks/paper_scale.py` on a GPU of 80 GB.

One step of recipe imagenet-b-vq: VQ-16, LlamaGen-B and the discriminator at 256 px, a teacher of DINOv2-B's
shape at 224 px, batch 32, bf16. All weights are random (they cost what trained ones do) and the images are
noise that is on the device already, so that the figures are of the step and not of the data. The teacher's
blocks 4 and 8 serve as perceptual network: LPIPS's weights would be a download.

The first row is the step as one would first write it (`Plain`, below): eager, a softmax of all scores for the
soft read-out and another for the entropy term, torch's default AdamW, and every metric read each step. The
other rows are the studio's, with one thing more each; its metrics are read once, at the end, as training
reads them every `log_every` steps. All rows run in this process, one after the other, from the same weights.
`differ` is the largest difference of a loss of the first step from the plain one's, of those without dropout:
it is the same step, up to bf16.

On a CPU, `--toy` shows that it runs. `--count` runs nothing: it counts what the tokenizers keep for the
backward pass, with tensors that have shapes and no numbers; on any machine, in float32, uncompiled.
"""

import argparse
import copy
import gc
import platform
import time
from collections.abc import Callable
from dataclasses import replace

import accelerate
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from gear_studio.models.discriminator import hinge_loss
from gear_studio.models.generator import GeneratorConfig
from gear_studio.models.projector import alignment_loss
from gear_studio.models.teachers import Teacher, TeacherConfig, build_encoder
from gear_studio.models.tokenizer import PRESETS, Tokenizer, TokenizerConfig
from gear_studio.readout import Assignment
from gear_studio.training.execution import Execution, recompute
from gear_studio.training.loop import Meter
from gear_studio.training.objectives import next_token_loss, perceptual_loss
from gear_studio.training.recipes import Recipe, recipe_of
from gear_studio.training.run_folder import device_name
from gear_studio.training.stages import Stage, frozen

WARM_UP = 5  # steps that are not counted: compilation, choice of kernels, first allocations


class Plain:
    """The joint step written down from the paper, for one device."""

    def __init__(self, stage: Stage):
        """Takes over the modules of a stage that is not used any more."""
        accelerator = stage.accelerator
        self.recipe, self.teacher, self.autocast = stage.recipe, stage.teacher, accelerator.autocast
        self.modules = {
            name: accelerator.unwrap_model(module, keep_fp32_wrapper=False)
            for name, module in stage.modules.items()
        }
        self.ema = {name: copy.deepcopy(self.modules[name]) for name in stage.ema}
        self.optimizers = {
            name: torch.optim.AdamW(module.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0)
            for name, module in self.modules.items()
        }

    def step(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        recipe, teacher, losses = self.recipe, self.teacher, {}
        tokenizer, discriminator, aligned = (
            self.modules[name] for name in ("tokenizer", "discriminator", "aligned")
        )
        with self.autocast():
            with torch.no_grad():
                *seen, target = teacher.features(images, (*recipe.perceptual_blocks, teacher.depth))
            reconstruction, quantized = tokenizer(images)
            assignment = quantized.assignment
            losses["l1"] = F.l1_loss(reconstruction, images)
            losses["quantizer"] = quantized.loss
            log_p = torch.log_softmax(assignment.scores / 0.01, -1)
            p = log_p.exp()
            mean = p.mean((0, 1))
            losses["code_entropy"] = (mean * (mean + 1e-5).log()).sum() - (p * log_p).sum(-1).mean()
            ours = teacher.features(reconstruction, recipe.perceptual_blocks)
            losses["perceptual"] = perceptual_loss(ours, seen)
            discriminator.requires_grad_(False)  # in train mode, as in the studio
            losses["gan"] = -discriminator(reconstruction).mean()
            discriminator.requires_grad_(True)
            with frozen(aligned):
                (projected,) = aligned.project_tap(assignment, labels, self.soft)
            losses["alignment_soft"] = alignment_loss(projected, target)
            losses["tokenizer"] = (
                losses["l1"]
                + losses["quantizer"]
                + recipe.entropy_weight * losses["code_entropy"]
                + recipe.perceptual_weight * losses["perceptual"]
                + recipe.gan_weight * losses["gan"]
                + recipe.alignment_weight * losses["alignment_soft"]
            )
            self.update("tokenizer", losses["tokenizer"])
            losses["discriminator"] = hinge_loss(
                discriminator(images), discriminator(reconstruction.detach())
            )
            self.update("discriminator", losses["discriminator"])
            logits, (projected,) = aligned(assignment, labels)
            losses["ntp"] = next_token_loss(logits, assignment.indices)
            losses["alignment_hard"] = alignment_loss(projected, target)
            losses["generator"] = losses["ntp"] + recipe.alignment_weight * losses["alignment_hard"]
            self.update("aligned", losses["generator"])
        with torch.no_grad():
            for name, average in self.ema.items():
                for old, new in zip(average.parameters(), self.modules[name].parameters(), strict=True):
                    old.lerp_(new, 1 - recipe.ema)
        return {name: loss.item() for name, loss in losses.items()}

    def soft(self, assignment: Assignment, table: Tensor) -> Tensor:
        return torch.softmax(assignment.scores / self.recipe.tau, -1) @ table

    def update(self, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.modules[name].parameters(), self.recipe.clip)
        self.optimizers[name].step()


def paper(batch: int) -> tuple[Recipe, TeacherConfig]:
    """The recipe, and a teacher of DINOv2 ViT-B/14's shape on 224 px."""
    # LPIPS's weights would be a download; blocks of the teacher stand in for it.
    recipe = recipe_of("imagenet-b-vq", "joint")
    recipe = replace(recipe, batch_size=batch, perceptual="teacher", perceptual_blocks=(4, 8))
    return recipe, TeacherConfig(image_size=224, patch_size=14, dim=768, depth=12, heads=12)


def toy(batch: int) -> tuple[Recipe, TeacherConfig]:
    recipe, _ = paper(batch)
    tokenizer = TokenizerConfig(image_size=32, channels=32, multipliers=(1, 1), latent=32, codes=256)
    generator = GeneratorConfig(classes=10, codes=256, grid=4, dim=64, blocks=3, heads=2, tap=2)
    recipe = replace(recipe, tokenizer=tokenizer, generator=generator, projector_hidden=64)
    return recipe, TeacherConfig(image_size=32, patch_size=8, dim=64, depth=8, heads=2)


def kept(config: TokenizerConfig, batch: int, recomputed: bool) -> int:
    """Bytes that a training pass of a tokenizer keeps for the backward pass, its weights aside."""
    with FakeTensorMode():
        tokenizer = Tokenizer(config)
        if recomputed:
            recompute(tokenizer)
        weights = {value.untyped_storage() for value in tokenizer.state_dict().values()}
        storages = set()

        def note(tensor: Tensor) -> Tensor:
            storages.add(tensor.untyped_storage())
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            tokenizer(torch.zeros(batch, 3, config.image_size, config.image_size))
        return sum(storage.nbytes() for storage in storages - weights)


def count(batch: int) -> None:
    print(f"kept for the backward pass, {batch} images, float32, uncompiled (counted, not measured), GiB")
    print(f"{'':8} {'all':>6} {'--recompute':>12}")
    for name in ("vq-16", "lfq-16", "ibq-16"):
        whole, less = (kept(PRESETS[name], batch, recomputed) / 2**30 for recomputed in (False, True))
        print(f"{name:8} {whole:6.1f} {less:12.1f}")


def measure(
    build: Callable[[], Callable[[int], dict]], steps: int, device: torch.device
) -> tuple[float, float, dict[str, float]]:
    """Seconds a step, the most memory allocated in GiB (0 on a CPU), and the losses of the first step.

    build: makes the models and returns the step; memory is freed when it is forgotten."""
    step = build()
    cuda = device.type == "cuda"
    torch.manual_seed(1)
    first = {name: float(value) for name, value in step(1).items()}
    for number in range(2, WARM_UP + 1):
        step(number)
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    for number in range(WARM_UP + 1, WARM_UP + steps + 1):
        step(number)
    if cuda:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - begin) / steps
    return seconds, torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0, first


def ways(
    recipe: Recipe, teacher_config: TeacherConfig, accelerator: Accelerator, steps: int
) -> dict[str, Callable[[], Callable[[int], dict]]]:
    """What is compared, by name: for each, a function for `measure`."""
    batch, device = recipe.batch_size, accelerator.device
    size = recipe.tokenizer.image_size
    images = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    labels = torch.arange(batch, device=device) % recipe.generator.classes

    def stage(execution: Execution) -> Stage:
        torch.manual_seed(0)
        teacher = Teacher(teacher_config, build_encoder(teacher_config))
        tokenizer = Tokenizer(recipe.tokenizer)
        return Stage("joint", "gear", recipe, teacher, accelerator, tokenizer, execution=execution)

    def plain() -> Callable[[int], dict]:
        training = Plain(stage(Execution()))
        return lambda number: training.step(images, labels)

    def studio(execution: Execution) -> Callable[[int], dict]:
        training, meter = stage(execution), Meter(accelerator)

        def step(number: int) -> dict[str, Tensor]:
            losses = training.step(number, images, labels)
            meter.add(number, losses)
            if number == WARM_UP + steps:
                meter.read()
            return losses

        return step

    rows: dict[str, Callable[[], Callable[[int], dict]]] = {
        "plain": plain,
        "studio": lambda: studio(Execution()),
        "studio, --recompute": lambda: studio(Execution(recompute=True)),
    }
    if device.type == "cuda":
        rows["studio, --compile"] = lambda: studio(Execution(compile=True))
        rows["studio, --compile --recompute"] = lambda: studio(Execution(compile=True, recompute=True))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--steps", type=int, default=20, help="steps behind each row")
    parser.add_argument("--toy", action="store_true", help="models of a few thousand weights, for a CPU")
    parser.add_argument("--count", action="store_true", help="count what is kept for the backward pass")
    chosen = parser.parse_args()
    if chosen.count:
        return count(chosen.batch)
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    device = accelerator.device
    print(f"device: {device_name(device)}; precision: {accelerator.mixed_precision}")
    print(
        f"python {platform.python_version()}, torch {torch.__version__}, accelerate {accelerate.__version__}"
    )
    recipe, teacher_config = (toy if chosen.toy else paper)(chosen.batch)
    print(f"joint step, batch {chosen.batch}, {chosen.steps} steps after {WARM_UP}", end="; ")
    print("toy models" if chosen.toy else "VQ-16 + LlamaGen-B at 256 px, teacher of DINOv2-B's shape")

    rows = ways(recipe, teacher_config, accelerator, chosen.steps)
    print(f"{'':30} {'s/step':>8} {'images/s':>9} {'GiB':>6} {'speed':>6} {'memory':>7} {'differ':>8}")
    reference: tuple[float, float, dict[str, float]] | None = None
    for name, build in rows.items():
        try:
            seconds, memory, first = found = measure(build, chosen.steps, device)
        except torch.cuda.OutOfMemoryError:
            print(f"{name:30} out of memory")
            continue
        finally:
            accelerator.free_memory()
            torch.compiler.reset()
            gc.collect()
            torch.cuda.empty_cache()
        peak = f"{memory:6.1f}" if memory else f"{'-':>6}"
        line = f"{name:30} {seconds:8.4f} {chosen.batch / seconds:9.1f} {peak}"
        if name == "plain":
            reference = found
        elif reference:
            ratio = f"{memory / reference[1]:6.2f}x" if memory else "-"
            # Update 3 rolls dice for dropout, which compiled code rolls otherwise.
            same = first.keys() & reference[2].keys() - {"ntp", "alignment_hard", "generator"}
            differ = max(abs(first[k] - reference[2][k]) for k in same)
            line += f" {reference[0] / seconds:5.2f}x {ratio:>7} {differ:8.1e}"
        print(line)
    print("goal: 1.5 times the speed of the plain step in 0.75 times its memory")


if __name__ == "__main__":
    main()
