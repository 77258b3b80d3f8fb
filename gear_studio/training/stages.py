"""The stages of GEAR, one training step each: up to three disjoint updates on one tokenizer forward (paper,
"joint step").

    stage       1. tokenizer                   2. discriminator   3. generator and projector
    warmup      L_VQ                           hinge
    joint       L_VQ + lambda L_align(soft)    hinge              L_NTP + lambda L_align(hard)
    generator   (frozen)                                          L_NTP + lambda L_align(hard)

Who may be updated by what is visible where the step is written: update 1 runs the generator `frozen`, update
2 sees a detached reconstruction, update 3 a detached assignment. The joint stage's arms differ in update 1
only:

    gear               lambda L_align through the soft read-out
    straight-through   L_NTP + lambda L_align through the straight-through read-out: this one collapses
    continued          neither, and no generator: the tokenizer trained as long, unguided
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from gear_studio import readout
from gear_studio.alignment import Projector, ProjectorConfig, alignment_loss
from gear_studio.analysis.codebook import assignment_statistics, usage_statistics
from gear_studio.discriminator import Discriminator, hinge_loss
from gear_studio.generator import Generator
from gear_studio.objectives import (
    entropy_loss,
    next_token_loss,
    perceptual_loss,
    straight_through_next_token_loss,
)
from gear_studio.readout import Assignment
from gear_studio.teachers import Teacher
from gear_studio.tokenizer import Tokenizer
from gear_studio.training.recipes import Recipe


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Eval mode (no dropout, no label drop) and no gradient to parameters; gradients still pass through to
    the inputs."""
    was_training = [module.training for module in modules]
    for module in modules:
        module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in zip(modules, was_training, strict=True):
            module.train(mode).requires_grad_(True)


class AlignedGenerator(nn.Module):
    """Generator and projector, trained together (and wrapped together when several processes train)."""

    def __init__(self, generator: Generator, projector: Projector):
        super().__init__()
        self.generator = generator
        self.projector = projector

    def embed(self, assignment: Assignment, read=readout.hard) -> Tensor:
        """What the generator sees of the first N-1 tokens: (B, N-1, d)."""
        return read(assignment, self.generator.token_table)[:, :-1]

    def forward(self, assignment: Assignment, labels: Tensor, read=readout.hard) -> tuple[Tensor, Tensor]:
        """Next-token logits (B, N, K) and projected tap states (B, N, d_f)."""
        logits, hidden = self.generator(self.embed(assignment, read), labels, tap=self.generator.config.tap)
        return logits, self.projector(hidden)

    def project_tap(self, assignment: Assignment, labels: Tensor, read) -> Tensor:
        """Projected tap states alone: only the blocks up to the tap run."""
        tap = self.generator.config.tap
        return self.projector(self.generator.hidden(self.embed(assignment, read), labels, [tap])[0])


class Stage:
    """Models, optimizers and EMA of one training; `step` does the updates that the stage and arm ask for.

    modules: what is trained, by name (tokenizer, discriminator, aligned). A tokenizer that is not among them
    is frozen. discriminator: the one to start from, where the recipe has a GAN term; None starts afresh."""

    def __init__(
        self,
        stage: str,
        arm: str,
        recipe: Recipe,
        teacher: Teacher,
        accelerator: Accelerator,
        tokenizer: Tokenizer,
        discriminator: Discriminator | None = None,
    ):
        self.recipe, self.arm, self.accelerator = recipe, arm, accelerator
        self.teacher = teacher.to(accelerator.device)
        modules: dict[str, nn.Module] = {}
        if stage != "generator":
            modules["tokenizer"] = tokenizer
            if recipe.gan_weight > 0:
                discriminator = discriminator or Discriminator()
                if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
                    discriminator = nn.SyncBatchNorm.convert_sync_batchnorm(discriminator)
                modules["discriminator"] = discriminator
        if stage == "generator" or (stage == "joint" and arm != "continued"):
            projector = Projector(ProjectorConfig(recipe.generator.dim, teacher.dim, recipe.projector_hidden))
            modules["aligned"] = AlignedGenerator(Generator(recipe.generator), projector)
        rates = {
            "tokenizer": recipe.tokenizer_lr,
            "discriminator": recipe.tokenizer_lr,
            "aligned": recipe.generator_lr,
        }
        self.modules = {name: module.to(accelerator.device).train() for name, module in modules.items()}
        self.ema = {
            name: ModelEmaV3(module, recipe.ema, use_warmup=True, warmup_power=1.0)
            for name, module in self.modules.items()
            if name != "discriminator"
        }
        self.optimizers = {
            name: torch.optim.AdamW(
                module.parameters(),
                lr=rates[name],
                betas=recipe.betas,
                weight_decay=0.0,
                fused=accelerator.device.type == "cuda",
            )
            for name, module in self.modules.items()
        }
        # What the forward passes go through: the same modules, wrapped for several processes.
        self.wrapped = {name: accelerator.prepare(module) for name, module in self.modules.items()}
        self.tokenizer = tokenizer.to(accelerator.device)
        if "tokenizer" not in self.modules:
            self.tokenizer.eval().requires_grad_(False)
        self.code_counts = torch.zeros(recipe.tokenizer.codes, device=accelerator.device)
        self.last_scores: Tensor | None = None

    def step(
        self, number: int, images: Tensor | None, labels: Tensor, indices: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One training step. images: (B, 3, H, W) in [-1, 1]; labels: (B,). Returns its losses as scalars on
        the device.

        indices: (B, N), where the frozen tokenizer's are known; images may then be None, and nothing is
        aligned."""
        target = None
        with self.accelerator.autocast():
            if images is not None:
                with torch.no_grad():
                    *seen, target = self.teacher.features(
                        images, (*self.recipe.perceptual_blocks, self.teacher.depth)
                    )
            losses: dict[str, Tensor] = {}
            if "tokenizer" in self.modules:
                reconstruction, assignment = self.update_tokenizer(images, labels, seen, target, losses)
                if "discriminator" in self.modules:
                    self.update_discriminator(images, reconstruction.detach(), losses)
            elif indices is None:
                with torch.no_grad():
                    assignment = self.tokenizer.assign(images)
            else:
                assignment = Assignment(indices.new_empty((*indices.shape, 0), dtype=torch.float), indices)
            assignment = Assignment(assignment.scores.detach(), assignment.indices)
            if "aligned" in self.modules:
                self.update_generator(assignment, labels, target, losses)
        for name, ema in self.ema.items():
            ema.update(self.modules[name], number)
        chosen = assignment.indices.flatten()
        self.code_counts.index_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float))
        self.last_scores = assignment.scores
        return losses

    def update_tokenizer(
        self, images: Tensor, labels: Tensor, seen: list[Tensor], target: Tensor, losses: dict[str, Tensor]
    ) -> tuple[Tensor, Assignment]:
        recipe = self.recipe
        reconstruction, quantized = self.wrapped["tokenizer"](images)
        assignment = quantized.assignment
        losses["l1"] = F.l1_loss(reconstruction, images)
        losses["quantizer"] = quantized.loss
        losses["code_entropy"] = entropy_loss(assignment.scores)
        objective = losses["l1"] + losses["quantizer"] + recipe.entropy_weight * losses["code_entropy"]
        if recipe.perceptual_weight > 0:
            ours = self.teacher.features(reconstruction, recipe.perceptual_blocks)
            losses["perceptual"] = perceptual_loss(ours, seen)
            objective = objective + recipe.perceptual_weight * losses["perceptual"]
        if "discriminator" in self.modules:
            with frozen(self.modules["discriminator"]):
                losses["gan"] = -self.modules["discriminator"](reconstruction).mean()
            objective = objective + recipe.gan_weight * losses["gan"]
        if "aligned" in self.modules:
            objective = objective + self.guidance(assignment, labels, target, losses)
        losses["tokenizer"] = objective
        self._update("tokenizer", objective, losses)
        return reconstruction, assignment

    def guidance(
        self, assignment: Assignment, labels: Tensor, target: Tensor, losses: dict[str, Tensor]
    ) -> Tensor:
        """What the generator tells the tokenizer, through a generator that does not move."""
        aligned = self.modules["aligned"]
        with frozen(aligned):
            if self.arm == "gear":
                tau = self.recipe.tau
                projected = aligned.project_tap(
                    assignment, labels, lambda a, table: readout.soft(a, table, tau)
                )
                losses["alignment_soft"] = alignment_loss(projected, target)
                return self.recipe.alignment_weight * losses["alignment_soft"]
            logits, projected = aligned(assignment, labels, readout.straight_through)
            losses["ntp_straight_through"] = straight_through_next_token_loss(logits, assignment)
            losses["alignment_straight_through"] = alignment_loss(projected, target)
            return (
                losses["ntp_straight_through"]
                + self.recipe.alignment_weight * losses["alignment_straight_through"]
            )

    def update_discriminator(self, images: Tensor, reconstruction: Tensor, losses: dict[str, Tensor]) -> None:
        discriminator = self.wrapped["discriminator"]
        losses["discriminator"] = hinge_loss(discriminator(images), discriminator(reconstruction))
        self._update("discriminator", losses["discriminator"], losses)

    def update_generator(
        self, assignment: Assignment, labels: Tensor, target: Tensor | None, losses: dict[str, Tensor]
    ) -> None:
        logits, projected = self.wrapped["aligned"](assignment, labels)
        losses["ntp"] = next_token_loss(logits, assignment.indices)
        if target is None:  # the projector is still part of the graph: every process waits for its gradient
            losses["generator"] = losses["ntp"] + 0.0 * projected.sum()
        else:
            losses["alignment_hard"] = alignment_loss(projected, target)
            losses["generator"] = losses["ntp"] + self.recipe.alignment_weight * losses["alignment_hard"]
        self._update("aligned", losses["generator"], losses)

    def _update(self, name: str, objective: Tensor, losses: dict[str, Tensor]) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(objective)
        norm = nn.utils.clip_grad_norm_(self.modules[name].parameters(), self.recipe.clip)
        losses["grad_norm_" + ("generator" if name == "aligned" else name)] = norm
        optimizer.step()

    @torch.no_grad()
    def codebook_metrics(self) -> dict[str, Tensor]:
        """Usage and perplexity since the last call (over all processes), concentration on the last batch."""
        counts = self.accelerator.reduce(self.code_counts, "sum")
        self.code_counts = torch.zeros_like(counts)
        statistics = usage_statistics(counts)
        if self.last_scores.numel():  # known tokens come without scores
            statistics |= assignment_statistics(self.last_scores, self.recipe.tau)
        return statistics

    @torch.no_grad()
    def validate(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """EMA models on held-out images, sums over images of each measure; divide by the number of images."""
        results = {}
        tokenizer = self.ema["tokenizer"].module.eval() if "tokenizer" in self.ema else self.tokenizer
        assignment = tokenizer.assign(images)
        if "tokenizer" in self.ema:
            squared = (tokenizer.decode(assignment.indices) - images).square().flatten(1).mean(1)
            results["psnr"] = (10 * torch.log10(4 / squared)).sum()
        if "aligned" in self.ema:
            logits, projected = self.ema["aligned"].module.eval()(assignment, labels)
            results["ntp"] = next_token_loss(logits, assignment.indices) * len(images)
            results["alignment"] = alignment_loss(projected, self.teacher(images)) * len(images)
        return results

    def parts(self) -> dict[str, nn.Module]:
        """What to save with the Run: EMA weights, and the discriminator that the next stage starts from."""
        parts: dict[str, nn.Module] = {}
        if "tokenizer" in self.ema:
            parts["tokenizer"] = self.ema["tokenizer"].module
        if "aligned" in self.ema:
            aligned = self.ema["aligned"].module
            parts |= {"generator": aligned.generator, "projector": aligned.projector}
        if "discriminator" in self.modules:
            parts["discriminator"] = self.modules["discriminator"]
        return parts

    def state_dict(self) -> dict:
        return {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "ema": {name: ema.module.state_dict() for name, ema in self.ema.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        for name, ema in self.ema.items():
            ema.module.load_state_dict(state["ema"][name])
