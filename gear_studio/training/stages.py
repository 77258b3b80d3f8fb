"""The stages of GEAR, one training step each: up to three disjoint updates on one tokenizer forward (paper,
"joint step").

    stage       1. tokenizer                   2. discriminator   3. generator and projector
    warmup      L_VQ                           hinge
    joint       L_VQ + lambda L_align(soft)    hinge              L_NTP + lambda L_align(hard)
    generator   (frozen)                                          L_NTP + lambda L_align(hard)

Who may be updated by what is visible where the step is written: update 1 runs the generator `frozen`, update
2 sees a detached reconstruction, update 3 a detached assignment. The joint stage's arms differ in what
update 1 adds to L_VQ:

    gear               lambda L_align through the soft read-out
    soft-ntp           L_NTP + lambda L_align through the soft read-out, the indices being the targets: the
                       next-token loss that the paper keeps from the tokenizer
    straight-through   L_NTP + lambda L_align through the straight-through read-out: this one collapses
    latent             lambda L_align of the latents themselves, -mean_i cos(g(z_i), f(x)_i), and no
                       generator: alignment where diffusion's tokenizers have it. Its projector g learns in
                       update 1 too, by an AdamW of its own at generator_lr, as every other arm's projector
    continued          nothing, and no generator: the tokenizer trained as long, unguided

No update reads what another one of the same step has changed. So a step is written as gradients first, which
the pieces of a large batch add up, and then the optimizers. Pieces, like processes, give the batch's gradient
exactly: losses are means over images, and the entropy term, which is not, is told the whole batch's average
assignment, found beforehand by a pass of the encoder. Not exact are the discriminator's BatchNorm, whose
statistics are of a piece (over all processes on GPUs), and the dice of dropout and label drop, which are
each process's and piece's own.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from gear_studio import readout
from gear_studio.analysis.codebook import assignment_statistics, usage_statistics
from gear_studio.models.discriminator import Discriminator, hinge_loss
from gear_studio.models.generator import Generator
from gear_studio.models.perceptual import LPIPS
from gear_studio.models.projector import Projector, ProjectorConfig, alignment_loss
from gear_studio.models.teachers import Teacher, teachers_of
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.readout import Assignment
from gear_studio.training.execution import (
    WHOLE,
    Execution,
    load_module,
    load_optimizer,
    prepare_blocks,
    prepare_tokenizer,
    shard,
    whole,
)
from gear_studio.training.objectives import (
    entropy_loss,
    mean_assignment,
    mean_over_processes,
    next_token_loss,
    perceptual_loss,
    straight_through_next_token_loss,
)
from gear_studio.training.recipes import WEIGHT_DECAY, WITHOUT_GENERATOR, Recipe

SCORED_TOKENS = 2048  # of the last piece, kept for the codebook's statistics


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


class Projectors(nn.ModuleList):
    """One projector a teacher."""

    def forward(self, hidden: Tensor) -> list[Tensor]:
        """Tap states or latents (B, N, d) -> one projection (B, N, d_f) a teacher."""
        return [projector(hidden) for projector in self]


class AlignedGenerator(nn.Module):
    """Generator and its projectors, trained together (and wrapped together when several processes train)."""

    def __init__(self, generator: Generator, projectors: Projectors):
        super().__init__()
        self.generator = generator
        self.projectors = projectors

    def embed(self, assignment: Assignment, read=readout.hard) -> Tensor:
        """What the generator sees of the first N-1 tokens: (B, N-1, d)."""
        return read(assignment, self.generator.token_table)[:, :-1]

    def forward(
        self, assignment: Assignment, labels: Tensor, read=readout.hard
    ) -> tuple[Tensor, list[Tensor]]:
        """Next-token logits (B, N, K) and projected tap states (B, N, d_f), one a teacher."""
        logits, hidden = self.generator(self.embed(assignment, read), labels, tap=self.generator.config.tap)
        return logits, self.projectors(hidden)

    def project_tap(self, assignment: Assignment, labels: Tensor, read) -> list[Tensor]:
        """Projected tap states alone: only the blocks up to the tap run."""
        tap = self.generator.config.tap
        return self.projectors(self.generator.hidden(self.embed(assignment, read), labels, [tap])[0])


class Stage:
    """Models, optimizers and EMA of one training; `step` does the updates that the stage and arm ask for.

    modules: what is trained, by name (tokenizer, discriminator, aligned; latent, the projectors of that arm).
    A tokenizer that is not among them is frozen. discriminator: the one to start from, where the recipe has a
    GAN term; None starts afresh. teacher: alignment target and, unless the recipe names another, perceptual
    network. more_teachers: targets only; L_align is the mean over all. execution: how its steps are
    computed. null: of captions, the encoding of the empty string; see `CaptionCondition`."""

    def __init__(
        self,
        stage: str,
        arm: str,
        recipe: Recipe,
        teacher: Teacher,
        accelerator: Accelerator,
        tokenizer: Tokenizer,
        discriminator: Discriminator | None = None,
        more_teachers: Sequence[Teacher] = (),
        execution: Execution = WHOLE,
        null: Tensor | None = None,
    ):
        self.recipe, self.arm, self.accelerator, self.execution = recipe, arm, accelerator, execution
        self.null = null
        self.teachers = [each.to(accelerator.device) for each in (teacher, *more_teachers)]
        self.teacher = self.teachers[0]
        self.lpips: LPIPS | None = None
        self.perceiver = self.teacher
        if stage != "generator" and recipe.perceptual in teachers_of("shipped"):
            perceiver = Teacher.from_pretrained(recipe.perceptual, tokenizer.grid)
            self.perceiver = perceiver.to(accelerator.device)
        elif stage != "generator" and recipe.perceptual != "teacher" and recipe.perceptual_weight > 0:
            weights = None if recipe.perceptual == "lpips" else recipe.perceptual
            self.lpips = LPIPS(weights, "--set perceptual=FILE").to(accelerator.device)
        modules: dict[str, nn.Module] = {}
        if stage != "generator":
            modules["tokenizer"] = tokenizer
            if recipe.gan_weight > 0:
                discriminator = discriminator or Discriminator()
                if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
                    discriminator = nn.SyncBatchNorm.convert_sync_batchnorm(discriminator)
                modules["discriminator"] = discriminator
        if stage == "generator" or (stage == "joint" and arm not in WITHOUT_GENERATOR):
            modules["aligned"] = self.new_generator()
        if stage == "joint" and arm == "latent":
            modules["latent"] = self.new_projectors(recipe.tokenizer.code_dim)
        rates = {
            "tokenizer": recipe.tokenizer_lr,
            "discriminator": recipe.tokenizer_lr,
            "aligned": recipe.generator_lr,
            "latent": recipe.generator_lr,
        }
        # Channels last is what tensor cores read; uncompiled, every GroupNorm would turn the layout back.
        layout = torch.channels_last if execution.compile else torch.preserve_format
        self.modules = {
            name: module.to(accelerator.device, memory_format=layout).train()
            for name, module in modules.items()
        }
        self.ema = {
            name: ModelEmaV3(module, recipe.ema, use_warmup=True, warmup_power=1.0)
            for name, module in self.modules.items()
            if name != "discriminator"
        }
        self.tokenizer = tokenizer.to(accelerator.device, memory_format=layout)
        if "tokenizer" not in self.modules:
            self.tokenizer.eval().requires_grad_(False)
        prepare_tokenizer(self.tokenizer, execution)
        for each in self.teachers:  # not recomputed: a third of its work, for little
            prepare_blocks(each.encoder, replace(execution, recompute=False))
        if "aligned" in self.modules:
            prepare_blocks(self.modules["aligned"].generator, execution)
            if execution.shard:
                shard(self.modules["aligned"])
                shard(self.ema["aligned"].module)
        self.optimizers = {
            name: torch.optim.AdamW(
                module.parameters(),
                lr=rates[name],
                betas=recipe.betas,
                weight_decay=WEIGHT_DECAY,
                fused=accelerator.device.type == "cuda",
            )
            for name, module in self.modules.items()
        }
        # What the forward passes go through: the same modules, wrapped for several processes.
        self.wrapped = {
            name: module if execution.shard and name == "aligned" else accelerator.prepare(module)
            for name, module in self.modules.items()
        }
        self.code_counts = torch.zeros(recipe.tokenizer.codes, device=accelerator.device)
        self.last_scores: Tensor | None = None

    def new_projectors(self, dim: int) -> Projectors:
        hidden = self.recipe.projector_hidden
        return Projectors([Projector(ProjectorConfig(dim, each.dim, hidden)) for each in self.teachers])

    def new_generator(self) -> AlignedGenerator:
        config = self.recipe.generator
        projectors = self.new_projectors(config.dim)  # drawn first: a seed has always given these weights
        generator = Generator(config)
        if self.null is not None:
            generator.condition.null.copy_(self.null)
        return AlignedGenerator(generator, projectors)

    def step(
        self, number: int, images: Tensor | None, labels: Tensor, indices: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One training step. images: (B, 3, H, W) in [-1, 1]; labels: what the generator is conditioned on,
        class labels (B,) or encoded captions; this process's share of the batch. Returns its losses as
        scalars on the device.

        indices: (B, N), where the frozen tokenizer's are known; images may then be None, and nothing is
        aligned."""
        count = self.pieces = self.execution.pieces(len(labels))
        parts = [[None] * count if x is None else x.chunk(count) for x in (images, labels, indices)]
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        with self.accelerator.autocast():
            self.mean = self.mean_assignment(images) if count > 1 else None
            for number_of_piece, piece in enumerate(zip(*parts, strict=True), start=1):
                with ExitStack() as alone:
                    if number_of_piece < count:  # processes exchange what has added up, once
                        for module in self.wrapped.values():
                            alone.enter_context(self.accelerator.no_sync(module))
                    found = self.gradients(*piece)
                for name, value in found.items():
                    losses[name] = losses.get(name, 0) + value.detach() / count
        for name, optimizer in self.optimizers.items():
            norm = nn.utils.clip_grad_norm_(self.modules[name].parameters(), self.recipe.clip)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            losses["grad_norm_" + ("generator" if name == "aligned" else name)] = norm
            optimizer.step()
        for name, ema in self.ema.items():
            ema.update(self.modules[name], number)
        return losses

    @torch.no_grad()
    def mean_assignment(self, images: Tensor) -> Tensor | None:
        """The average assignment (K,) of the images of all pieces and processes, for the entropy term."""
        if "tokenizer" not in self.modules:
            return None
        means = [mean_assignment(self.tokenizer.assign(piece).scores) for piece in images.chunk(self.pieces)]
        # Older torch uses the weights that autocast has cast here again, and no gradient passes through them.
        torch.clear_autocast_cache()
        return mean_over_processes(torch.stack(means).mean(0))

    def gradients(
        self, images: Tensor | None, labels: Tensor, indices: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Add the gradients of a piece of the batch; returns its losses. Arguments as in `step`."""
        seen, targets = ([], []) if images is None else self.look(images)
        losses: dict[str, Tensor] = {}
        if "tokenizer" in self.modules:
            reconstruction, assignment = self.update_tokenizer(images, labels, seen, targets, losses)
            if "discriminator" in self.modules:
                self.update_discriminator(images, reconstruction.detach(), losses)
        elif indices is None:
            with torch.no_grad():
                assignment = self.tokenizer.assign(images)
        else:
            assignment = Assignment(indices.new_empty((*indices.shape, 0), dtype=torch.float), indices)
        assignment = Assignment(assignment.scores.detach(), assignment.indices)
        if "aligned" in self.modules:
            self.update_generator(assignment, labels, targets, losses)
        chosen = assignment.indices.flatten()
        self.code_counts.index_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float))
        self.last_scores = assignment.scores.flatten(0, 1)[None, :SCORED_TOKENS].clone()
        return losses

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What the teachers see: features for the perceptual loss, (B, N, d_f) a block, and the targets of
        alignment, one a teacher. Either is empty where this training does not ask for it."""
        perceives = "tokenizer" in self.modules and not self.lpips and self.recipe.perceptual_weight > 0
        blocks = self.recipe.perceptual_blocks if perceives else ()
        depth = (self.teacher.depth,) if {"aligned", "latent"} & self.modules.keys() else ()
        if self.perceiver is self.teacher:  # one pass for both
            found = self.teacher.features(images, (*blocks, *depth)) if blocks or depth else []
            seen, last = found[: len(blocks)], found[len(blocks) :]
        else:
            seen = self.perceiver.features(images, blocks) if blocks else []
            last = [self.teacher(images)] if depth else []
        return seen, self.targets(images, *last) if last else []

    def targets(self, images: Tensor, last: Tensor) -> list[Tensor]:
        """What the projections are aligned with, (B, N, d_f) a teacher. last: the first one's features."""
        features = [last, *(teacher(images) for teacher in self.teachers[1:])]
        norm = self.recipe.spatial_norm, self.recipe.spatial_norm_alpha
        return [
            teacher.alignment_target(z, *norm) for z, teacher in zip(features, self.teachers, strict=True)
        ]

    def align(
        self, name: str, projected: list[Tensor], targets: list[Tensor], losses: dict[str, Tensor]
    ) -> Tensor:
        """L_align, the mean over teachers, entered in `losses` as `name`; of several teachers also each
        one's."""
        each = [alignment_loss(ours, theirs) for ours, theirs in zip(projected, targets, strict=True)]
        if len(each) > 1:
            for teacher, loss in zip(self.teachers, each, strict=True):
                losses[f"{name}_{teacher.name}"] = loss
        losses[name] = torch.stack(each).mean()
        return losses[name]

    def update_tokenizer(
        self,
        images: Tensor,
        labels: Tensor,
        seen: list[Tensor],
        targets: list[Tensor],
        losses: dict[str, Tensor],
    ) -> tuple[Tensor, Assignment]:
        recipe = self.recipe
        reconstruction, quantized = self.wrapped["tokenizer"](images)
        assignment = quantized.assignment
        losses["l1"] = F.l1_loss(reconstruction, images)
        losses["quantizer"] = quantized.loss
        losses["code_entropy"] = entropy_loss(assignment.scores, self.mean)
        objective = losses["l1"] + losses["quantizer"] + recipe.entropy_weight * losses["code_entropy"]
        if recipe.perceptual_weight > 0:
            if self.lpips:
                losses["perceptual"] = self.lpips(reconstruction, images).mean()
            else:
                ours = self.perceiver.features(reconstruction, recipe.perceptual_blocks)
                losses["perceptual"] = perceptual_loss(ours, seen)
            objective = objective + recipe.perceptual_weight * losses["perceptual"]
        if "discriminator" in self.modules:
            # Frozen, but in train mode: with running statistics, an average over real images and
            # reconstructions, it would not be the function that update 2 trains.
            discriminator = self.modules["discriminator"].requires_grad_(False)
            losses["gan"] = -discriminator(reconstruction).mean()
            discriminator.requires_grad_(True)
            objective = objective + recipe.gan_weight * losses["gan"]
        # Frozen until the gradient has passed: blocks that recompute must find the generator as it was.
        with frozen(*[module for name, module in self.modules.items() if name == "aligned"]):
            if "aligned" in self.modules:
                objective = objective + self.guidance(assignment, labels, targets, losses)
            if "latent" in self.modules:
                projected = self.wrapped["latent"](quantized.latent)
                alignment = self.align("alignment_latent", projected, targets, losses)
                objective = objective + recipe.alignment_weight * alignment
            losses["tokenizer"] = objective
            self._backward("tokenizer", losses)
        return reconstruction, assignment

    def guidance(
        self, assignment: Assignment, labels: Tensor, targets: list[Tensor], losses: dict[str, Tensor]
    ) -> Tensor:
        """What the generator tells the tokenizer; to be called with the generator frozen."""
        aligned, weight = self.modules["aligned"], self.recipe.alignment_weight
        soft = partial(readout.soft, tau=self.recipe.tau)
        if self.arm == "gear":
            projected = aligned.project_tap(assignment, labels, soft)
            return weight * self.align("alignment_soft", projected, targets, losses)
        if self.arm == "soft-ntp":
            logits, projected = aligned(assignment, labels, soft)
            losses["ntp_soft"] = next_token_loss(logits, assignment.indices)
            return losses["ntp_soft"] + weight * self.align("alignment_soft", projected, targets, losses)
        logits, projected = aligned(assignment, labels, readout.straight_through)
        losses["ntp_straight_through"] = straight_through_next_token_loss(logits, assignment)
        alignment = self.align("alignment_straight_through", projected, targets, losses)
        return losses["ntp_straight_through"] + weight * alignment

    def update_discriminator(self, images: Tensor, reconstruction: Tensor, losses: dict[str, Tensor]) -> None:
        discriminator = self.wrapped["discriminator"]
        losses["discriminator"] = hinge_loss(discriminator(images), discriminator(reconstruction))
        self._backward("discriminator", losses)

    def update_generator(
        self, assignment: Assignment, labels: Tensor, targets: list[Tensor], losses: dict[str, Tensor]
    ) -> None:
        logits, projected = self.wrapped["aligned"](assignment, labels)
        losses["ntp"] = next_token_loss(logits, assignment.indices)
        if targets:
            alignment = self.align("alignment_hard", projected, targets, losses)
            losses["generator"] = losses["ntp"] + self.recipe.alignment_weight * alignment
        else:  # the projectors are still part of the graph: every process waits for their gradients
            losses["generator"] = losses["ntp"] + 0.0 * sum(each.sum() for each in projected)
        self._backward("generator", losses)

    def _backward(self, objective: str, losses: dict[str, Tensor]) -> None:
        """The one place where modules get gradients."""
        self.accelerator.backward(losses[objective] / self.pieces)

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
            aligned: dict[str, Tensor] = {}
            self.align("alignment", projected, self.targets(images, self.teacher(images)), aligned)
            results |= {name: value * len(images) for name, value in aligned.items()}
        if "latent" in self.ema:
            projected = self.ema["latent"].module.eval()(tokenizer.quantizer(tokenizer.encode(images)).latent)
            found: dict[str, Tensor] = {}
            self.align("alignment_latent", projected, self.targets(images, self.teacher(images)), found)
            results |= {name: value * len(images) for name, value in found.items()}
        return results

    def average(self) -> tuple[Generator, Tokenizer]:
        """The EMA generator and the tokenizer it belongs to, EMA too where that is trained; in eval mode."""
        tokenizer = self.ema["tokenizer"].module if "tokenizer" in self.ema else self.tokenizer
        return self.ema["aligned"].module.generator.eval(), tokenizer.eval()

    def parts(self) -> dict[str, nn.Module]:
        """What to save with the Run: EMA weights, and the discriminator that the next stage starts from. The
        arm `latent` has no generator, and its projector is saved under a name of its own: latent-projector.
        Every process must call it; the generator of a sharded training is on the main process alone."""
        parts: dict[str, nn.Module] = {}
        if "tokenizer" in self.ema:
            parts["tokenizer"] = self.ema["tokenizer"].module
        if "aligned" in self.ema:
            aligned = self.ema["aligned"].module
            if self.execution.shard:
                state = whole(aligned.state_dict(), keep=self.accelerator.is_main_process)
                if not self.accelerator.is_main_process:
                    return parts
                aligned = self.new_generator().to(self.accelerator.device).eval()
                aligned.load_state_dict(state)
            parts |= {"generator": aligned.generator, "projector": aligned.projectors[0]}
            for teacher, projector in zip(self.teachers[1:], aligned.projectors[1:], strict=True):
                parts[f"projector-{teacher.name}"] = projector
        if "latent" in self.ema:
            names = ["latent-projector", *(f"latent-projector-{each.name}" for each in self.teachers[1:])]
            parts |= dict(zip(names, self.ema["latent"].module, strict=True))
        if "discriminator" in self.modules:
            parts["discriminator"] = self.modules["discriminator"]
        return parts

    def state_dict(self) -> dict:
        """All that continuing needs, as whole tensors on the CPU of the main process. Every process must call
        it."""
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "ema": {name: ema.module.state_dict() for name, ema in self.ema.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }
        return whole(state, keep=self.accelerator.is_main_process)

    def load_state_dict(self, state: dict) -> None:
        for name, module in self.modules.items():
            load_module(module, state["modules"][name])
            load_optimizer(self.optimizers[name], state["optimizers"][name])
        for name, ema in self.ema.items():
            load_module(ema.module, state["ema"][name])
