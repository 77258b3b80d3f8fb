"""FD or FID against steps: how far samples of the average generator are from real pictures, while it trains.

`evaluate` measures a finished run, with more pictures, guidance and several sampling seeds. This looks at an
unfinished one often and cheaply: fd_samples samples without guidance, always of the same random numbers,
against as many held-out pictures, in the features of the run's first teacher, or of Inception. It draws
nothing from the training's own dice, so a run that is measured trains exactly as one that is not. Classes are
asked for in the proportions of the real pictures (recipe.fd_classes; of a source whose classes are equally
likely: in turn).

Its noise: a distance from few samples is too large, by about the same for every run with the same count, and
it wobbles. Of the shipped `generator-gear` (evaluated at 1.08 with 5,000), four draws of 2,000 samples gave
1.13 to 1.26, four of 1,000 gave 1.13 to 1.48; other real pictures, which are at 0.04 with 5,000, were at 0.08
to 0.16 and 0.15 to 0.30. Here the draw is always the same, so a curve is smoother than that, but two arms are
not. It compares runs of one teacher and one fd_samples, and nothing else.
"""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gear_studio import data, sampling
from gear_studio.analysis.statistics import Moments, Statistics, frechet_distance, split_among_processes
from gear_studio.data.images import to_uint8
from gear_studio.data.prompts import ClassLabels, Conditions
from gear_studio.models import inception
from gear_studio.models.generator import Generator
from gear_studio.models.teachers import Teacher
from gear_studio.models.tokenizer import Tokenizer


class SampledDistance:
    """held_out: where `samples` real pictures are taken from, fewer where it has fewer. network: the teacher
    (FD) or `Inception` (FID). Several processes share the work; each must call it. conditions: where those of
    the samples come from; None: classes, in the proportions of the real pictures."""

    def __init__(
        self,
        held_out: data.Source,
        conditions: Conditions | None,
        network: nn.Module,
        samples: int,
        accelerator: Accelerator,
    ):
        self.network, self.accelerator = network, accelerator
        self.dim = network.dim if isinstance(network, Teacher) else inception.DIMS["fid"]
        self.at_once = data.batch_size_for(held_out.image_size)
        self.count = min(samples, len(held_out))
        numbers = data.choose_pictures(len(held_out), self.count)[0]
        classes = 0 if conditions else len(held_out.classes)
        counts = torch.zeros(classes, dtype=torch.long, device=accelerator.device)

        def read_real() -> Iterable[Tensor]:
            """Adds to `counts` on its way."""
            for part in self._parts():
                batch = held_out.read([numbers[i] for i in part])
                if conditions is None:
                    counts.add_(batch["label"].to(counts.device).bincount(minlength=classes))
                yield batch["image"]

        self.real = self._measure(read_real())
        self.conditions = conditions or ClassLabels(classes, accelerator.reduce(counts, "sum").tolist())

    def _parts(self) -> Iterable[range]:
        return split_among_processes(self.count, self.at_once, self.accelerator)

    @torch.no_grad()
    def _measure(self, pictures: Iterable[Tensor]) -> Statistics:
        """Statistics of uint8 pictures (B, 3, H, W), this process's share."""
        device = self.accelerator.device
        moments = Moments(self.dim, device)
        for some in pictures:
            some = some.to(device)
            is_teacher = isinstance(self.network, Teacher)
            features = self.network(data.to_float(some)).mean(1) if is_teacher else self.network(some)["fid"]
            moments.add(0, features)
        moments.sums = self.accelerator.reduce(moments.sums, "sum")
        return moments.result()

    @torch.no_grad()
    def __call__(self, generator: Generator, tokenizer: Tokenizer) -> float:
        """The distance of the generator's samples, decoded by the tokenizer."""

        def draw_samples() -> Iterable[Tensor]:
            for part in self._parts():
                condition = self.conditions.for_samples(part)
                indices = sampling.sample(generator, condition, cfg_scale=1.0, seed=0, first=part.start)
                yield to_uint8(tokenizer.decode(indices))

        drawn = self._measure(draw_samples())
        sampling.forget(generator)  # its copy would stand in the way of training
        return frechet_distance(drawn, self.real)
