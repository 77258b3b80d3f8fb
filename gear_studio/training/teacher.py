"""Train the tiny teacher and the judge, on the truth of the embedded world.

Notable here:
- The teacher is SUPERVISED: small linear heads ask every patch for the object's shape and texture (or
  background), the fraction of the patch the object covers, and the patch's mean colour; then the heads are
  thrown away. A patch can only name the shape by attending to the rest of the object, so the features carry
  local and global meaning, as a self-supervised encoder's do. Plain self-distillation did not do that here.
- Both see fresh pictures all the time: batch s is a pure function of (seed, s), augmentation included.
  A killed run started again therefore continues exactly, and needs no more state than weights and optimizer.
- Teacher and judge learn from different ranges of the world ("train", "judge"), and are evaluated on others
  ("probe", "val").
- The folder becomes the model's own: config.json, model.safetensors, metrics.jsonl, record.json and, from
  `evaluate_teacher` / `evaluate_judge`, evaluation.json.
"""

import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
import tyro
from torch import nn
from tqdm import tqdm

from gear_studio import data
from gear_studio.analysis.probes import probe_patches
from gear_studio.files import atomic, read_json, write_json
from gear_studio.models.judges import AttributeJudge, Judge
from gear_studio.models.teachers import Teacher, TeacherConfig, build_encoder

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

    The checkpoint is dropped at the end. Raises ValueError when `folder` holds a run with other settings,
    FloatingPointError when a loss stops being finite.
    """
    world = data.load("shapes", split="train")
    config = TeacherConfig(note=NOTE)

    def build() -> nn.ModuleDict:
        heads = {"shape": SHAPES + 1, "texture": TEXTURES + 1, "coverage": 1, "colour": 3}
        return nn.ModuleDict(
            {
                "encoder": build_encoder(config),
                "heads": nn.ModuleDict({name: nn.Linear(config.dim, n) for name, n in heads.items()}),
            }
        )

    def losses(model: nn.ModuleDict, step: int) -> dict[str, torch.Tensor]:
        truth = _on(_device(model), world.truth(_batch(seed, step, batch_size)))
        images = augment(truth["image"], seed, step)
        coverage = F.avg_pool2d(truth["mask"].float()[:, None], config.patch_size).flatten(1)
        colour = F.avg_pool2d(images, config.patch_size).flatten(2).transpose(1, 2)
        features = model["encoder"].forward_features(images)
        said = {name: head(features) for name, head in model["heads"].items()}
        return {
            "shape": _patch_loss(said["shape"], truth["patch_shape"]),
            "texture": _patch_loss(said["texture"], truth["patch_texture"]),
            "coverage": F.binary_cross_entropy_with_logits(said["coverage"][..., 0], coverage),
            "colour": F.mse_loss(said["colour"], colour),
        }

    def save(model: nn.ModuleDict) -> None:
        Teacher(config, model["encoder"]).save_pretrained(folder)

    settings = {"model": "teacher", "steps": steps, "seed": seed, "batch_size": batch_size}
    _fit(folder, settings, build, losses, save, 1.5e-3, device, log_every, checkpoint_every)
    return Teacher.from_pretrained(folder)


def train_judge(
    folder: str | Path,
    steps: int = 1600,
    seed: int = 0,
    batch_size: int = 64,
    device: str | None = None,
    log_every: int = 50,
    checkpoint_every: int = 250,
) -> Judge:
    """Train the class judge into `folder`, or continue the run that is there; returns it in eval mode.

    Raises as `train_teacher` does.
    """
    world = data.load("shapes", split="judge")

    def losses(model: Judge, step: int) -> dict[str, torch.Tensor]:
        batch = _on(_device(model), world.read(_batch(seed, step, batch_size)))
        logits = model(augment(batch["image"], seed, step))
        return {"class": F.cross_entropy(logits, batch["label"], label_smoothing=0.05)}

    settings = {"model": "judge", "steps": steps, "seed": seed, "batch_size": batch_size}
    _fit(
        folder,
        settings,
        lambda: Judge(len(world.classes)),
        losses,
        lambda model: model.save_pretrained(folder),
        2e-3,
        device,
        log_every,
        checkpoint_every,
    )
    return Judge.from_pretrained(folder)


def train_attribute_judge(
    folder: str | Path,
    steps: int = 1600,
    seed: int = 0,
    batch_size: int = 64,
    device: str | None = None,
    log_every: int = 50,
    checkpoint_every: int = 250,
) -> AttributeJudge:
    """Train the judge of single attributes into `folder`, or continue the run that is there; returns it in
    eval mode.

    Raises as `train_teacher` does.
    """
    world = data.load("shapes", split="judge")

    def losses(model: AttributeJudge, step: int) -> dict[str, torch.Tensor]:
        truth = _on(_device(model), world.truth(_batch(seed, step, batch_size)))
        said = model(augment(truth["image"], seed, step))
        return {
            name: F.cross_entropy(logits, truth[name], label_smoothing=0.05) for name, logits in said.items()
        }

    settings = {"model": "attribute-judge", "steps": steps, "seed": seed, "batch_size": batch_size}
    _fit(
        folder,
        settings,
        AttributeJudge,
        losses,
        lambda model: model.save_pretrained(folder),
        2e-3,
        device,
        log_every,
        checkpoint_every,
    )
    return AttributeJudge.from_pretrained(folder)


def evaluate_teacher(folder: str | Path, probe_seeds: int = 3) -> dict:
    """Linear probes of the teacher in `folder` beside random weights; written to folder/evaluation.json.

    Returns {"teacher": {task: {"mean", "spread", "values"}}, "random": the same, ...}, accuracies in [0, 1];
    spread is the standard deviation over `probe_seeds` disjoint samples of held-out pictures.
    """
    result: dict = {"measure": probe_patches.__doc__.splitlines()[0], "probe_seeds": list(range(probe_seeds))}
    controls = {"teacher": lambda seed: Teacher.from_pretrained(folder), "random": Teacher.random}
    for name, make in controls.items():
        found = [probe_patches(make(seed), seed=seed) for seed in range(probe_seeds)]
        result[name] = {
            task: {
                "mean": round(float(np.mean([one[task] for one in found])), 4),
                "spread": round(float(np.std([one[task] for one in found])), 4),
                "values": [round(one[task], 4) for one in found],
            }
            for task in ("foreground", "texture", "shape")
        }
    write_json(Path(folder) / "evaluation.json", result)
    return result


def evaluate_judge(folder: str | Path, images: int = 4800) -> dict:
    """Accuracy of the judge in `folder` on held-out truth, split "val"; written to folder/evaluation.json.

    Returns accuracy in [0, 1], the same on softened pictures, and the worst class with its accuracy.
    """
    judge, world = Judge.from_pretrained(folder), data.load("shapes", split="val")
    right, right_soft, labels = [], [], []
    with torch.inference_mode():
        for start in range(0, images, 200):
            batch = world.read(range(start, min(start + 200, images)))
            clean = data.to_float(batch["image"])
            right.append(judge(clean).argmax(1) == batch["label"])
            right_soft.append(judge(blur(clean)).argmax(1) == batch["label"])
            labels.append(batch["label"])
    right, labels = torch.cat(right).float(), torch.cat(labels)
    by_class = [right[labels == label].mean().item() for label in range(len(world.classes))]
    worst = int(np.argmin(by_class))
    result = {
        "measure": f"class accuracy on {images} images of the world's val split",
        "accuracy": round(right.mean().item(), 4),
        "accuracy_blurred": round(torch.cat(right_soft).float().mean().item(), 4),
        "worst_class": world.classes[worst],
        "worst_class_accuracy": round(by_class[worst], 4),
    }
    write_json(Path(folder) / "evaluation.json", result)
    return result


def evaluate_attribute_judge(folder: str | Path, images: int = 4800) -> dict:
    """Accuracy of the judge of attributes in `folder` on held-out truth, split "val", attribute by attribute
    and all at once; written to folder/evaluation.json. Values in [0, 1], also of softened pictures."""
    judge, world = AttributeJudge.from_pretrained(folder), data.load("shapes", split="val")
    right: dict[str, list[torch.Tensor]] = {}
    for start in range(0, images, 200):
        truth = world.truth(range(start, min(start + 200, images)))
        clean = data.to_float(truth["image"])
        for suffix, shown in (("", clean), ("_blurred", blur(clean))):
            found = {name: said == truth[name] for name, said in judge.says(shown).items()}
            found["all"] = torch.stack(list(found.values())).all(0)
            for name, hits in found.items():
                right.setdefault(name + suffix, []).append(hits)
    result = {"measure": f"accuracy on {images} images of the world's val split"}
    result |= {name: round(torch.cat(hits).float().mean().item(), 4) for name, hits in right.items()}
    write_json(Path(folder) / "evaluation.json", result)
    return result


def blur(images: torch.Tensor) -> torch.Tensor:
    """A soft version of (B,3,H,W): about a gaussian of 1.2 px, as a small tokenizer would draw it."""
    for _ in range(2):
        images = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    return images


def augment(images: torch.Tensor, seed: int, step: int) -> torch.Tensor:
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
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seeds)).to(x.device)
    return x + (chosen > 0.25) * (chosen < 0.75) * grain * 0.06 * noise


def _batch(seed: int, step: int, batch_size: int) -> range:
    # Seeds start a million steps apart, so that two seeds never share a picture.
    start = (seed * 1_000_000 + step) * batch_size
    return range(start, start + batch_size)


def _patch_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (B,N,C+1) against (B,h,w) labels, -1 being background: the last class, weight 1/4.

    Background is most of a picture and soon easy; at full weight it would drown the shapes.
    """
    background = logits.shape[-1] - 1
    labels = labels.flatten()
    weight = torch.ones(background + 1, device=logits.device)
    weight[background] = 0.25
    return F.cross_entropy(logits.flatten(0, 1), labels.where(labels >= 0, background), weight)


def _fit(
    folder: str | Path,
    settings: dict,
    build: Callable[[], nn.Module],
    losses: Callable[[nn.Module, int], dict[str, torch.Tensor]],
    save: Callable[[nn.Module], None],
    peak_rate: float,
    device: str | None,
    log_every: int,
    checkpoint_every: int,
) -> None:
    """The loop both share: AdamW, warm-up and cosine, metrics (steps counted from 1), exact resume."""
    if checkpoint_every % log_every:
        raise ValueError(f"checkpoint_every {checkpoint_every} must be a multiple of log_every {log_every}.")
    folder, steps = Path(folder), settings["steps"]
    folder.mkdir(parents=True, exist_ok=True)
    record_path, metrics_path, checkpoint_path = (
        folder / "record.json",
        folder / "metrics.jsonl",
        folder / "state.pt",
    )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    record = {
        "settings": settings,
        "command": _command(),
        "versions": _versions(),
        "device": _device_name(device),
    }
    if record_path.exists():
        before = read_json(record_path, "a training run")
        if before["settings"] != settings:
            raise ValueError(
                f"{folder} holds a run with {before['settings']}, asked for {settings}; "
                "give the same settings to continue it, or another folder."
            )
        if before.get("finished"):
            return
    write_json(record_path, record)

    torch.manual_seed(settings["seed"])
    model = build().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.99), weight_decay=0.02)
    first, spent = 0, 0.0
    if checkpoint_path.exists():
        kept = torch.load(checkpoint_path, map_location=device, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        first, spent = kept["step"], kept["seconds"]
    _keep_lines_until(metrics_path, first)

    began = last = time.perf_counter()
    sums: dict[str, torch.Tensor] = {}
    bar = tqdm(range(first, steps), desc=settings["model"], initial=first, total=steps)
    for step in bar:
        # A twentieth of the run to warm up, then a cosine down to zero.
        warm = max(1, steps // 20)
        rate = min(
            (step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm) / max(1, steps - warm))
        )
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * rate
        parts = losses(model, step)
        optimizer.zero_grad(set_to_none=True)
        sum(parts.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for name, value in parts.items():
            sums[name] = sums.get(name, 0) + value.detach()

        done = step + 1
        if done % log_every == 0 or done == steps:
            count = done - max(first, (step // log_every) * log_every)
            means = {name: round(value.item() / count, 6) for name, value in sums.items()}
            sums = {}
            if not all(map(math.isfinite, means.values())):
                kept = max(first, step // checkpoint_every * checkpoint_every)
                raise FloatingPointError(
                    f"losses {means} at step {done} of {folder}; the last checkpoint is of step {kept}"
                )
            now = time.perf_counter()
            speed = count * settings["batch_size"] / (now - last)
            last = now
            with open(metrics_path, "a") as file:
                file.write(json.dumps({"step": done, **means, "images_per_second": round(speed, 1)}) + "\n")
            bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
        if done % checkpoint_every == 0 and done < steps:
            with atomic(checkpoint_path) as temporary:
                torch.save(
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "step": done,
                        "seconds": spent + time.perf_counter() - began,
                    },
                    temporary,
                )
    save(model)
    seconds = round(spent + time.perf_counter() - began, 1)
    write_json(record_path, {**record, "finished": True, "seconds": seconds})
    checkpoint_path.unlink(missing_ok=True)


def _keep_lines_until(path: Path, step: int) -> None:
    """Drop what was logged after the checkpoint: those steps are about to be taken again."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    with atomic(path) as temporary:
        temporary.write_text("".join(kept))


def _command() -> str:
    """The command line, without the machine's own paths."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {spec.name}" if spec else Path(sys.argv[0]).name
    return " ".join([program, shlex.join(sys.argv[1:])]).strip()


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": str(torch.__version__), "timm": timm.__version__}


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _on(device: torch.device, batch: dict) -> dict:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict(
        {"teacher": train_teacher, "judge": train_judge, "attribute-judge": train_attribute_judge}
    )
