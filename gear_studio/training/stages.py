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
    straight-through-alignment    lambda L_align through a straight-through read-out with the gradient of
                       softmax(A / tau), and no next-token loss: the released code's option
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
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from gear_studio import readout
from gear_studio.analysis.codebook import assignment_statistics, usage_statistics
from gear_studio.analysis.reconstruction import psnr
from gear_studio.models.discriminator import Discriminator, hinge_loss
from gear_studio.models.generator import Generator
from gear_studio.models.perceptual import LPIPS
from gear_studio.models.pretrained import Pretrained
from gear_studio.models.projector import Projector, ProjectorConfig, alignment_loss
from gear_studio.models.teachers import Teacher, teacher_names, teachers_of
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.readout import Assignment
from gear_studio.training.aligned import AlignedGenerator, Projectors
from gear_studio.training.checkpoints import gather_state, gather_weights, load_state
from gear_studio.training.execution import Execution, copy_averages, prepare
from gear_studio.training.objectives import (
    entropy_loss,
    mean_assignment,
    mean_over_processes,
    next_token_loss,
    perceptual_loss,
    straight_through_next_token_loss,
)
from gear_studio.training.recipes import WEIGHT_DECAY, Recipe, trains_generator

FrozenAnswers = tuple[Tensor | None, list[Tensor]]  # see `Stage.ask_frozen`
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


@dataclass(frozen=True)
class Start:
    """What a stage starts from beside its tokenizer; None is new.

    average: of the tokenizer's weights, where it is not the tokenizer itself. discriminator: where the recipe
    has a GAN term. generator: becomes the stage's generator and its average. projectors: one a teacher, None
    for one that is new."""

    average: Tokenizer | None = None
    discriminator: Discriminator | None = None
    generator: Generator | None = None
    projectors: Sequence[Projector | None] = ()


def without_scores(indices: Tensor) -> Assignment:
    """The assignment of known indices (B, N), without scores."""
    return Assignment(indices.new_empty((*indices.shape, 0), dtype=torch.float), indices)


class Stage:
    """Models, optimizers and averages of one training; `step` does the updates of its stage and arm.

    modules: what is trained, by name (tokenizer, discriminator, aligned; latent, the projectors of that arm).
    A tokenizer that is not among them is frozen. The models passed in become the Stage's own and are changed;
    pass a copy of one that a Run keeps. start: what there is to start from beside the tokenizer. teacher:
    alignment target and, unless the recipe names another, perceptual network. more_teachers: targets only;
    L_align is the mean over all. execution: how its steps are computed. null: of captions, the encoding of
    the empty string; see `CaptionCondition`."""

    def __init__(
        self,
        stage: str,
        arm: str,
        recipe: Recipe,
        teacher: Teacher,
        accelerator: Accelerator,
        tokenizer: Tokenizer,
        start: Start = Start(),  # noqa: B008  (frozen)
        more_teachers: Sequence[Teacher] = (),
        execution: Execution = Execution(),  # noqa: B008  (frozen)
        null: Tensor | None = None,
    ):
        self.stage, self.arm, self.recipe = stage, arm, recipe
        self.accelerator, self.execution, self.null = accelerator, execution, null
        self.teachers = [each.to(accelerator.device) for each in (teacher, *more_teachers)]
        self.teacher = self.teachers[0]
        self.perceiver, self.lpips = self._load_perceptual_network(tokenizer.grid)
        # Channels last is what tensor cores read; uncompiled, every GroupNorm would turn the layout back.
        layout = torch.channels_last if execution.compile else torch.preserve_format
        self.tokenizer = tokenizer.to(accelerator.device).to(memory_format=layout)
        self.modules = {
            name: module.to(accelerator.device).to(memory_format=layout).train()
            for name, module in self._new_modules(start).items()
        }
        if "tokenizer" not in self.modules:
            self.tokenizer.eval().requires_grad_(False)
        averaged = {name: module for name, module in self.modules.items() if name != "discriminator"}
        self.ema = copy_averages(averaged, recipe.ema)
        if start.average is not None and "tokenizer" in self.ema:
            self.ema["tokenizer"].module.load_state_dict(start.average.state_dict())
        aligned, average = self.modules.get("aligned"), self.ema.get("aligned")
        kept = recipe.kept_pictures > 0  # then no step runs what is frozen
        prepare(
            execution,
            None if kept and stage == "generator" else self.tokenizer,
            [] if kept else self.teachers,
            cast(AlignedGenerator | None, aligned),
            average.module if average else None,
        )
        self.optimizers = {name: self._new_optimizer(name) for name in self.modules}
        # What the forward passes go through: the same modules, wrapped for several processes.
        self.wrapped = {
            name: module if execution.shard and name == "aligned" else accelerator.prepare(module)
            for name, module in self.modules.items()
        }
        self.code_counts = torch.zeros(recipe.tokenizer.codes, device=accelerator.device)
        self.last_scores: Tensor | None = None

    def _load_perceptual_network(self, grid: int) -> tuple[Teacher, LPIPS | None]:
        """The teacher that compares reconstructions with images, and LPIPS where that does instead."""
        recipe, device = self.recipe, self.accelerator.device
        if self.stage == "generator" or recipe.perceptual == "teacher":
            return self.teacher, None
        if recipe.perceptual in teachers_of("shipped"):
            if recipe.perceptual == teacher_names(recipe.teacher)[0]:
                return self.teacher, None
            return Teacher.from_pretrained(recipe.perceptual, grid).to(device), None
        if recipe.perceptual_weight > 0:
            weights = None if recipe.perceptual == "lpips" else recipe.perceptual
            return self.teacher, LPIPS(weights, "--set perceptual=FILE").to(device)
        return self.teacher, None

    def _new_modules(self, start: Start) -> dict[str, nn.Module]:
        """What this stage and arm train. The order decides which weights a seed draws."""
        modules: dict[str, nn.Module] = {}
        if self.stage != "generator":
            modules["tokenizer"] = self.tokenizer
            if self.recipe.gan_weight > 0:
                discriminator = start.discriminator or Discriminator()
                if self.accelerator.num_processes > 1 and self.accelerator.device.type == "cuda":
                    discriminator = nn.SyncBatchNorm.convert_sync_batchnorm(discriminator)
                modules["discriminator"] = discriminator
        if trains_generator(self.stage, self.arm):
            modules["aligned"] = self._new_generator(start)
        if self.stage == "joint" and self.arm == "latent":
            modules["latent"] = self._new_projectors(self.recipe.tokenizer.code_dim)
        return modules

    def _new_projectors(self, dim: int) -> Projectors:
        hidden = self.recipe.projector_hidden
        return Projectors([Projector(ProjectorConfig(dim, each.dim, hidden)) for each in self.teachers])

    def _new_generator(self, start: Start = Start()) -> AlignedGenerator:  # noqa: B008  (frozen)
        config = self.recipe.generator
        projectors = self._new_projectors(config.dim)  # drawn first: a seed has always given these weights
        generator = Generator(config)
        if start.generator is not None:
            generator.start_from(start.generator)
        for projector, given in zip(projectors, start.projectors, strict=False):
            if given is not None:
                projector.load_state_dict(given.state_dict())
        if self.null is not None:
            cast(Tensor, generator.condition.null).copy_(self.null)
        return AlignedGenerator(generator, projectors)

    def _learning_rate(self, name: str) -> float:
        """Of a module's optimizer, before `Recipe.lr_factor`."""
        convolutional = name in ("tokenizer", "discriminator")
        return self.recipe.tokenizer_lr if convolutional else self.recipe.generator_lr

    def _new_optimizer(self, name: str) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            self.modules[name].parameters(),
            lr=self._learning_rate(name),
            betas=self.recipe.betas,
            weight_decay=WEIGHT_DECAY,
            fused=self.accelerator.device.type == "cuda",
        )

    def step(
        self,
        number: int,
        images: Tensor | None,
        condition: Tensor,
        indices: Tensor | None = None,
        features: Sequence[Tensor] = (),
    ) -> dict[str, Tensor]:
        """One training step. images: (B, 3, H, W) in [-1, 1]; condition: what the generator is asked for,
        class labels (B,) or encoded captions (B, T, 1 + d); this process's share of the batch. Returns its
        losses as scalars on the device.

        indices: (B, N), where the frozen tokenizer's are known; images may then be None. features: one
        (B, N, d_f) a teacher, where they are known; with neither images nor features nothing is aligned."""
        count = self.pieces = self.execution.pieces_of(len(condition))
        columns = [
            [None] * count if x is None else x.chunk(count) for x in (images, condition, indices, *features)
        ]
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        with self.accelerator.autocast():
            self.mean = self.find_mean_assignment(images) if count > 1 else None
            for number_of_piece, piece in enumerate(zip(*columns, strict=True), start=1):
                with ExitStack() as alone:
                    if number_of_piece < count:  # processes exchange what has added up, once
                        for module in self.wrapped.values():
                            alone.enter_context(self.accelerator.no_sync(module))
                    losses_of_piece = self.add_gradients(*piece)
                for name, value in losses_of_piece.items():
                    losses[name] = losses.get(name, 0) + value.detach() / count
        for name, optimizer in self.optimizers.items():
            norm = nn.utils.clip_grad_norm_(self.modules[name].parameters(), self.recipe.clip)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            losses["grad_norm_" + ("generator" if name == "aligned" else name)] = norm
            for group in optimizer.param_groups:
                group["lr"] = self._learning_rate(name) * self.recipe.lr_factor(number)
            optimizer.step()
        for name, ema in self.ema.items():
            ema.update(self.modules[name], number if self.recipe.ema_climbs else None)
        return losses

    @torch.no_grad()
    def find_mean_assignment(self, images: Tensor | None) -> Tensor | None:
        """The average assignment (K,) of the images of all pieces and processes, for the entropy term; None
        where no tokenizer is trained."""
        if "tokenizer" not in self.modules or images is None:
            return None
        means = [mean_assignment(self.tokenizer.assign(piece).scores) for piece in images.chunk(self.pieces)]
        # Older torch uses the weights that autocast has cast here again, and no gradient passes through them.
        torch.clear_autocast_cache()
        return mean_over_processes(torch.stack(means).mean(0))

    def add_gradients(
        self, images: Tensor | None, condition: Tensor, indices: Tensor | None = None, *features: Tensor
    ) -> dict[str, Tensor]:
        """Add the gradients of a piece of the batch; returns its losses. Arguments as in `step`."""
        seen, targets = self.ask_teachers(images, features)
        losses: dict[str, Tensor] = {}
        if images is not None and "tokenizer" in self.modules:
            reconstruction, assignment = self.add_tokenizer_gradients(
                images, condition, seen, targets, losses
            )
            if "discriminator" in self.modules:
                self.add_discriminator_gradients(images, reconstruction.detach(), losses)
        elif indices is not None:
            assignment = without_scores(indices)
        else:
            with torch.no_grad():
                assignment = self.tokenizer.assign(cast(Tensor, images))
        assignment = Assignment(assignment.scores.detach(), assignment.indices)
        if "aligned" in self.modules:
            self.add_generator_gradients(assignment, condition, targets, losses)
        chosen = assignment.indices.flatten()
        self.code_counts.index_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float))
        self.last_scores = assignment.scores.flatten(0, 1)[None, :SCORED_TOKENS].clone()
        return losses

    @torch.no_grad()
    def ask_teachers(
        self, images: Tensor | None, known: Sequence[Tensor] = ()
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the perceptual loss compares with, features (B, N, d_f) a block, and the targets of alignment,
        one a teacher. Either is empty where this training does not need it. known: the teachers' features."""
        if images is None:
            return [], self.norm_targets(known)
        perceives = "tokenizer" in self.modules and not self.lpips and self.recipe.perceptual_weight > 0
        blocks = self.recipe.perceptual_blocks if perceives else ()
        aligns = bool({"aligned", "latent"} & self.modules.keys()) and not known
        if self.perceiver is self.teacher:  # one pass for both
            features = self.teacher.features(images, blocks, own=aligns) if blocks or aligns else []
            seen, last = features[: len(blocks)], features[len(blocks) :]
        else:
            seen = self.perceiver.features(images, blocks) if blocks else []
            last = [self.teacher(images)] if aligns else []
        return seen, self.compute_targets(images, *last) if last else self.norm_targets(known)

    def compute_targets(self, images: Tensor, last: Tensor) -> list[Tensor]:
        """What the projections are aligned with, (B, N, d_f) a teacher. last: the first one's features."""
        return self.norm_targets([last, *(teacher(images) for teacher in self.teachers[1:])])

    def norm_targets(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The teachers' features, one each or none at all, after the recipe's spatial norm."""
        norm = self.recipe.spatial_norm, self.recipe.spatial_norm_alpha
        return [
            teacher.alignment_target(z, *norm) for z, teacher in zip(features, self.teachers, strict=False)
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

    def add_tokenizer_gradients(
        self,
        images: Tensor,
        condition: Tensor,
        seen: list[Tensor],
        targets: list[Tensor],
        losses: dict[str, Tensor],
    ) -> tuple[Tensor, Assignment]:
        """Update 1. Returns the reconstruction and the assignment. seen: of `ask_teachers`."""
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
                objective = objective + self.compute_guidance(assignment, condition, targets, losses)
            if "latent" in self.modules:
                projected = self.wrapped["latent"](quantized.latent)
                alignment = self.align("alignment_latent", projected, targets, losses)
                objective = objective + recipe.alignment_weight * alignment
            losses["tokenizer"] = objective
            self._backward("tokenizer", losses)
        return reconstruction, assignment

    def compute_guidance(
        self, assignment: Assignment, condition: Tensor, targets: list[Tensor], losses: dict[str, Tensor]
    ) -> Tensor:
        """The generator's part of the tokenizer's objective; to be called with the generator frozen."""
        aligned, weight = cast(AlignedGenerator, self.modules["aligned"]), self.recipe.alignment_weight
        soft = partial(readout.soft, tau=self.recipe.tau)
        if self.arm == "gear":
            projected = aligned.project_tap(assignment, condition, soft)
            return weight * self.align("alignment_soft", projected, targets, losses)
        if self.arm == "straight-through-alignment":
            through = partial(readout.straight_through, tau=self.recipe.tau)
            projected = aligned.project_tap(assignment, condition, through)
            return weight * self.align("alignment_straight_through", projected, targets, losses)
        if self.arm == "soft-ntp":
            logits, projected = aligned(assignment, condition, soft)
            losses["ntp_soft"] = next_token_loss(logits, assignment.indices)
            return losses["ntp_soft"] + weight * self.align("alignment_soft", projected, targets, losses)
        logits, projected = aligned(assignment, condition, readout.straight_through)
        losses["ntp_straight_through"] = straight_through_next_token_loss(logits, assignment)
        alignment = self.align("alignment_straight_through", projected, targets, losses)
        return losses["ntp_straight_through"] + weight * alignment

    def add_discriminator_gradients(
        self, images: Tensor, reconstruction: Tensor, losses: dict[str, Tensor]
    ) -> None:
        """Update 2."""
        discriminator = self.wrapped["discriminator"]
        losses["discriminator"] = hinge_loss(discriminator(images), discriminator(reconstruction))
        self._backward("discriminator", losses)

    def add_generator_gradients(
        self, assignment: Assignment, condition: Tensor, targets: list[Tensor], losses: dict[str, Tensor]
    ) -> None:
        """Update 3."""
        logits, projected = self.wrapped["aligned"](assignment, condition)
        losses["ntp"] = next_token_loss(logits, assignment.indices)
        if targets:
            alignment = self.align("alignment_hard", projected, targets, losses)
            losses["generator"] = losses["ntp"] + self.recipe.alignment_weight * alignment
        else:  # the projectors are still part of the graph: every process waits for their gradients
            losses["generator"] = losses["ntp"] + 0.0 * sum(each.sum() for each in projected)
        self._backward("generator", losses)

    def _backward(self, objective: str, losses: dict[str, Tensor]) -> None:
        """The one place where modules get gradients: outside autocast, so that each operation's gradient has
        the precision that the operation had."""
        with torch.autocast(self.accelerator.device.type, enabled=False):
            self.accelerator.backward(losses[objective] / self.pieces)

    @torch.no_grad()
    def measure_codes(self) -> dict[str, Tensor]:
        """Usage and perplexity since the last call (over all processes), concentration on the last batch."""
        counts = self.accelerator.reduce(self.code_counts, "sum")
        self.code_counts = torch.zeros_like(counts)
        statistics = usage_statistics(counts)
        if self.last_scores is not None and self.last_scores.numel():  # known tokens come without scores
            statistics |= assignment_statistics(self.last_scores, self.recipe.tau)
        return statistics

    @torch.no_grad()
    def ask_frozen(self, images: Tensor) -> FrozenAnswers:
        """What this training never changes about images: their indices, where the tokenizer is frozen, and
        the targets of alignment, where something is aligned."""
        indices = None if "tokenizer" in self.ema else self.tokenizer.assign(images).indices
        aligns = {"aligned", "latent"} & self.ema.keys()
        return indices, self.compute_targets(images, self.teacher(images)) if aligns else []

    @torch.no_grad()
    def validate(
        self, images: Tensor, condition: Tensor, known: FrozenAnswers | None = None
    ) -> dict[str, Tensor]:
        """EMA models on held-out images, sums over images of each measure; divide by the number of images.
        known: what `ask_frozen` says of these images."""
        results: dict[str, Tensor] = {}
        alignments: dict[str, Tensor] = {}
        tokenizer = self.average_tokenizer
        indices, targets = known or self.ask_frozen(images)
        assignment = tokenizer.assign(images) if indices is None else without_scores(indices)
        if "tokenizer" in self.ema:
            results["psnr"] = psnr(tokenizer.decode(assignment.indices), images).sum()
        if "aligned" in self.ema:
            logits, projected = self.ema["aligned"].module.eval()(assignment, condition)
            results["ntp"] = next_token_loss(logits, assignment.indices) * len(images)
            self.align("alignment", projected, targets, alignments)
        if "latent" in self.ema:
            projected = self.ema["latent"].module.eval()(tokenizer.quantizer(tokenizer.encode(images)).latent)
            self.align("alignment_latent", projected, targets, alignments)
        return results | {name: value * len(images) for name, value in alignments.items()}

    @property
    def average_tokenizer(self) -> Tokenizer:
        """The EMA tokenizer, or the frozen one; in eval mode."""
        tokenizer = self.ema["tokenizer"].module if "tokenizer" in self.ema else self.tokenizer
        return cast(Tokenizer, tokenizer).eval()

    @property
    def average_generator(self) -> Generator:
        """The EMA generator, in eval mode."""
        return self.ema["aligned"].module.generator.eval()

    def gather_parts(self) -> dict[str, Pretrained]:
        """What to save with the Run: EMA weights, and what the next stage starts from: the discriminator and,
        where the recipe says so, the tokenizer's live weights. The arm `latent` has no generator, and its
        projector is saved under a name of its own: latent-projector. Every process must call it; the
        generator of a sharded training is on the main process alone."""
        parts: dict[str, Any] = {}
        if "tokenizer" in self.ema:
            parts["tokenizer"] = self.ema["tokenizer"].module
        if "aligned" in self.ema:
            aligned = self.ema["aligned"].module
            if self.execution.shard:
                weights = gather_weights(aligned)
                if not self.accelerator.is_main_process:
                    return parts
                aligned = self._new_generator().to(self.accelerator.device).eval()
                aligned.load_state_dict(weights)
            parts |= {"generator": aligned.generator, "projector": aligned.projectors[0]}
            for teacher, projector in zip(self.teachers[1:], aligned.projectors[1:], strict=True):
                parts[f"projector-{teacher.name}"] = projector
        if "latent" in self.ema:
            names = ["latent-projector", *(f"latent-projector-{each.name}" for each in self.teachers[1:])]
            parts |= dict(zip(names, self.ema["latent"].module, strict=True))
        if "discriminator" in self.modules:
            parts["discriminator"] = self.modules["discriminator"]
        if self.recipe.keep_live and "tokenizer" in self.modules:
            parts["live-tokenizer"] = self.modules["tokenizer"]
        return parts

    def state_dict(self) -> dict[str, dict]:
        """All that continuing needs: whole tensors on the CPU of the main process. Every process must call
        it."""
        return gather_state(self.modules, self._averages(), self.optimizers)

    def load_state_dict(self, state: dict[str, dict]) -> None:
        load_state(state, self.modules, self._averages(), self.optimizers)

    def _averages(self) -> dict[str, nn.Module]:
        return {name: ema.module for name, ema in self.ema.items()}
