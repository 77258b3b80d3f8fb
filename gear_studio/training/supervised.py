"""Train the tiny teacher and the judges, on the truth of the embedded world.

Notable here:
- The teacher is SUPERVISED: small linear heads ask every patch for the object's shape and texture (or
  background), the fraction of the patch the object covers, and the patch's mean colour; then the heads are
  thrown away. A patch can only name the shape by attending to the rest of the object, so the features carry
  local and global meaning, as a self-supervised encoder's do. Plain self-distillation did not do that here.
- Both see fresh pictures all the time: batch s is a pure function of (seed, s), augmentation included.
  A killed run started again therefore continues exactly, and needs no more state than weights and optimizer.
- Teacher and judge learn from different ranges of the world ("train", "judge"), and are evaluated on others
  ("probe", "val").
- The loop is the one of the stages (`loop`).
- The folder becomes the model's own: config.json, model.safetensors, metrics.jsonl, record.json and, from
  `evaluate_teacher` / `evaluate_judge`, evaluation.json.
"""

import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_studio import data, locks
from gear_studio.analysis.probes import probe_patches
from gear_studio.devices import choose_device, new_accelerator
from gear_studio.errors import InputError
from gear_studio.files import read_json, write_json
from gear_studio.models.judges import AttributeJudge, Judge
from gear_studio.models.teachers import Teacher, TeacherConfig, build_encoder
from gear_studio.training.checkpoints import gather_state, load_state
from gear_studio.training.loop import Loop
from gear_studio.training.recipes import Rhythm

NOTE = (
    "A tiny ViT trained with the embedded world's own labels (per-patch shape, texture, coverage, colour): "
    "a stand-in for a self-supervised teacher such as DINOv2, which it is not."
)
SHAPES, TEXTURES = 6, 4


def train_teacher(
    folder: str | Path,
    steps: int = 3600,
    seed: int = 0,
    batch_size: int = 32,
    device: str | None = None,
    log_every: int = 50,
    checkpoint_every: int = 250,
) -> Teacher:
    """Train the tiny teacher into `folder`, or continue the run that is there; returns it frozen.

    The checkpoints are dropped at the end. device: where to train; None takes a GPU if there is one. Raises
    ValueError when `folder` holds a run with other settings, FolderInUseError where another process is at it,
    DivergedError when a loss is not finite.
    """
    world = data.Shapes("train")
    config = TeacherConfig(note=NOTE)

    def build() -> nn.ModuleDict:
        heads = {"shape": SHAPES + 1, "texture": TEXTURES + 1, "coverage": 1, "colour": 3}
        return nn.ModuleDict(
            {
                "encoder": build_encoder(config),
                "heads": nn.ModuleDict({name: nn.Linear(config.dim, n) for name, n in heads.items()}),
            }
        )

    def compute_losses(model: Any, step: int) -> dict[str, Tensor]:
        truth = to_device(world.truth(choose_batch(seed, step, batch_size)), model)
        images = augment(truth["image"], seed, step)
        coverage = F.avg_pool2d(truth["mask"].float()[:, None], config.patch_size).flatten(1)
        colour = F.avg_pool2d(images, config.patch_size).flatten(2).transpose(1, 2)
        features = model["encoder"].forward_features(images)
        said = {name: head(features) for name, head in model["heads"].items()}
        return {
            "shape": patch_loss(said["shape"], truth["patch_shape"]),
            "texture": patch_loss(said["texture"], truth["patch_texture"]),
            "coverage": F.binary_cross_entropy_with_logits(said["coverage"][..., 0], coverage),
            "colour": F.mse_loss(said["colour"], colour),
        }

    def save(model: Any) -> None:
        Teacher(config, model["encoder"]).save_pretrained(folder)

    settings = {"model": "teacher", "steps": steps, "seed": seed, "batch_size": batch_size}
    lesson = Lesson(settings, build, compute_losses, save, peak_rate=1.5e-3)
    train(lesson, Path(folder), device, log_every, checkpoint_every)
    return Teacher.from_pretrained(folder)


def train_judge(
    folder: str | Path,
    kind: type[Judge] | type[AttributeJudge] = Judge,
    steps: int = 1600,
    seed: int = 0,
    batch_size: int = 64,
    device: str | None = None,
    log_every: int = 50,
    checkpoint_every: int = 250,
) -> Judge | AttributeJudge:
    """Train a judge, of classes or of single attributes, into `folder`, or continue the run that is there;
    returns it in eval mode.

    Arguments and errors as in `train_teacher`.
    """
    world = data.Shapes("judge")

    def compute_losses(model: Any, step: int) -> dict[str, Tensor]:
        truth = to_device(world.truth(choose_batch(seed, step, batch_size)), model)
        answers = model(augment(truth["image"], seed, step))
        if kind is Judge:  # one answer, the class
            truth["class"], answers = truth["label"], {"class": answers}
        return {
            name: F.cross_entropy(logits, truth[name], label_smoothing=0.05)
            for name, logits in answers.items()
        }

    def save(model: Any) -> None:
        model.save_pretrained(folder)

    settings = {"model": kind.kind, "steps": steps, "seed": seed, "batch_size": batch_size}
    lesson = Lesson(settings, kind, compute_losses, save, peak_rate=2e-3)
    train(lesson, Path(folder), device, log_every, checkpoint_every)
    return kind.from_pretrained(folder)


@dataclass(frozen=True)
class Lesson:
    """What distinguishes one of these trainings. settings: model, steps, seed and batch_size; a folder is
    continued with the same ones only. compute_losses: of a model and a step, counted from 0; their sum is
    minimised. peak_rate: the highest learning rate."""

    settings: dict[str, Any]
    build: Callable[[], nn.Module]
    compute_losses: Callable[[Any, int], dict[str, Tensor]]
    save: Callable[[Any], None]
    peak_rate: float


class SupervisedTrainee:
    """A model under a `Lesson`, in float32 on one device: the loop's `Trainee`.

    The learning rate of AdamW warms up for a twentieth of the run, then follows a cosine down to zero."""

    digits = 6

    def __init__(self, lesson: Lesson, device: torch.device):
        self.lesson = lesson
        self.steps = lesson.settings["steps"]
        self.title, self.shown = lesson.settings["model"], list[str]()
        self.record: dict[str, Any] = {"settings": lesson.settings}
        torch.manual_seed(lesson.settings["seed"])
        self.model = lesson.build().to(device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=lesson.peak_rate, betas=(0.9, 0.99), weight_decay=0.02
        )

    def batches(self, start: int) -> Iterable[int]:
        """The pictures of a step follow from its number."""
        return range(start, self.steps)

    def step(self, number: int, batch: int) -> dict[str, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lesson.peak_rate * self.schedule(batch)
        losses = self.lesson.compute_losses(self.model, batch)
        self.optimizer.zero_grad(set_to_none=True)
        total: Any = sum(losses.values())
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.shown = list(losses)
        return losses

    def schedule(self, step: int) -> float:
        """The learning rate of a step, counted from 0, as a share of the highest."""
        warm = max(1, self.steps // 20)
        decayed = 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm) / max(1, self.steps - warm))
        return min((step + 1) / warm, decayed)

    def validate(self) -> dict[str, float]:
        return {}

    def measure(self, number: int) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, dict]:
        return gather_state({"model": self.model}, {}, {"model": self.optimizer})

    def load_state_dict(self, state: dict[str, dict]) -> None:
        load_state(state, {"model": self.model}, {}, {"model": self.optimizer})

    def save_progress(self, number: int, write_record: Callable[[Path], None]) -> None:
        pass

    def save(self) -> dict[str, Any]:
        self.lesson.save(self.model)
        return {}


def train(lesson: Lesson, folder: Path, device: str | None, log_every: int, checkpoint_every: int) -> None:
    """Train a model under a lesson into a folder, or go on there. Errors as in `train_teacher`."""
    with locks.hold(folder):
        _train(lesson, folder, device, log_every, checkpoint_every)


def _train(lesson: Lesson, folder: Path, device: str | None, log_every: int, checkpoint_every: int) -> None:
    settings = lesson.settings
    rhythm = Rhythm(settings["steps"], settings["batch_size"], log_every, checkpoint_every)
    record: dict = {"settings": settings}
    if (folder / "record.json").exists():
        record = read_json(folder / "record.json", "a training run")
    if (held := record.get("settings")) != settings:
        there = f"holds a run with {held}" if held else "holds a run of another kind"
        raise InputError(
            f"{folder} {there}, asked for {settings}; "
            "give the same settings to continue it, or another folder."
        )
    if not record.get("finished"):
        accelerator = new_accelerator(device)
        trainee = SupervisedTrainee(lesson, accelerator.device)
        loop = Loop(trainee, rhythm, settings["seed"], folder, accelerator, progress=True)
        loop.restore()
        loop.run()
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def evaluate_teacher(folder: str | Path, probe_seeds: int = 3, device: str | None = None) -> dict:
    """Linear probes of the teacher in `folder` beside random weights; written to folder/evaluation.json.

    Returns {"teacher": {task: {"mean", "spread", "values"}}, "random": the same, ...}, accuracies in [0, 1];
    spread is the standard deviation over `probe_seeds` disjoint samples of held-out pictures.
    """
    result: dict = {
        "measure": "Accuracy of probes on held-out patches: of foreground on all, of texture and shape on "
        "object patches.",
        "probe_seeds": list(range(probe_seeds)),
    }
    there = choose_device(device)

    def probe(teacher: Teacher, seed: int) -> dict[str, float]:
        return probe_patches(lambda images: teacher(images.to(there)), seed=seed)

    controls = {"teacher": lambda seed: Teacher.from_pretrained(folder), "random": Teacher.random}
    for name, make in controls.items():
        draws = [probe(make(seed).to(there), seed) for seed in range(probe_seeds)]
        result[name] = {
            task: {
                "mean": round(float(np.mean([one[task] for one in draws])), 4),
                "spread": round(float(np.std([one[task] for one in draws])), 4),
                "values": [round(one[task], 4) for one in draws],
            }
            for task in ("foreground", "texture", "shape")
        }
    write_json(Path(folder) / "evaluation.json", result)
    return result


def evaluate_judge(folder: str | Path, images: int = 4800, device: str | None = None) -> dict:
    """Accuracy of the judge in `folder` on held-out truth, split "val"; written to folder/evaluation.json.

    Returns accuracy in [0, 1], the same on softened pictures, and the worst class with its accuracy.
    """
    there, world = choose_device(device), data.Shapes("val")
    judge = Judge.from_pretrained(folder).to(there)
    hits, hits_blurred, truth = [], [], []
    with torch.inference_mode():
        for start in range(0, images, 200):
            batch = world.read(range(start, min(start + 200, images)))
            clean = data.to_float(batch["image"].to(there))
            hits.append(judge(clean).argmax(1).cpu() == batch["label"])
            hits_blurred.append(judge(blur(clean)).argmax(1).cpu() == batch["label"])
            truth.append(batch["label"])
    right, labels = torch.cat(hits).float(), torch.cat(truth)
    by_class = [right[labels == label].mean().item() for label in range(len(world.classes))]
    worst = int(np.argmin(by_class))
    result = {
        "measure": f"class accuracy on {images} images of the world's val split",
        "accuracy": round(right.mean().item(), 4),
        "accuracy_blurred": round(torch.cat(hits_blurred).float().mean().item(), 4),
        "worst_class": world.classes[worst],
        "worst_class_accuracy": round(by_class[worst], 4),
    }
    write_json(Path(folder) / "evaluation.json", result)
    return result


def evaluate_attribute_judge(folder: str | Path, images: int = 4800, device: str | None = None) -> dict:
    """Accuracy of the judge of attributes in `folder` on held-out truth, split "val", attribute by attribute
    and all at once; written to folder/evaluation.json. Values in [0, 1], also of softened pictures."""
    there, world = choose_device(device), data.Shapes("val")
    judge = AttributeJudge.from_pretrained(folder).to(there)
    right: dict[str, list[Tensor]] = {}
    for start in range(0, images, 200):
        truth = world.truth(range(start, min(start + 200, images)))
        clean = data.to_float(truth["image"].to(there))
        for suffix, shown in (("", clean), ("_blurred", blur(clean))):
            right_now = {name: said.cpu() == truth[name] for name, said in judge.says(shown).items()}
            right_now["all"] = torch.stack(list(right_now.values())).all(0)
            for name, hits in right_now.items():
                right.setdefault(name + suffix, []).append(hits)
    result: dict[str, Any] = {"measure": f"accuracy on {images} images of the world's val split"}
    result |= {name: round(torch.cat(hits).float().mean().item(), 4) for name, hits in right.items()}
    write_json(Path(folder) / "evaluation.json", result)
    return result


def blur(images: Tensor) -> Tensor:
    """A soft version of (B,3,H,W): about a gaussian of 1.2 px, as a small tokenizer would draw it."""
    for _ in range(2):
        images = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    return images


def augment(images: Tensor, seed: int, step: int) -> Tensor:
    """uint8 (B,3,H,W) -> float, about [-1,1], with changes that no label depends on; pure in (seed, step).

    Contrast and brightness move a little; half of the pictures are softened or made grainy, because features
    should depend on content and reconstructions lack the world's fine noise.
    """
    # Drawn on the CPU so that every device sees the same pictures.
    numbers = torch.Generator().manual_seed(seed * 1_000_003 + step)
    draw = torch.rand(5, len(images), 1, 1, 1, generator=numbers)
    seeds = torch.randint(2**31, (1,), generator=numbers).item()
    contrast, brightness, softness, grain, chosen = draw.to(images.device)
    x = data.to_float(images) * (0.85 + 0.3 * contrast) + 0.2 * (brightness - 0.5)
    x = x + (chosen < 0.5) * softness * (blur(x) - x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(seeds))).to(x.device)
    return x + (chosen > 0.25) * (chosen < 0.75) * grain * 0.06 * noise


def choose_batch(seed: int, step: int, batch_size: int) -> range:
    """The pictures of a step."""
    # Seeds start a million steps apart, so that two seeds never share a picture.
    start = (seed * 1_000_000 + step) * batch_size
    return range(start, start + batch_size)


def patch_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (B,N,C+1) against (B,h,w) labels, -1 being background: the last class, weight 1/4.

    Background is most of a picture and soon easy; at full weight it would drown the shapes.
    """
    background = logits.shape[-1] - 1
    labels = labels.flatten()
    weight = torch.ones(background + 1, device=logits.device)
    weight[background] = 0.25
    return F.cross_entropy(logits.flatten(0, 1), labels.where(labels >= 0, background), weight)


def to_device(batch: dict, model: nn.Module) -> dict:
    """A batch where the model is."""
    device = next(model.parameters()).device
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
