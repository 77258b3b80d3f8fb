"""How good pictures are: reconstructions beside their originals, samples beside real pictures, and whether
samples show the asked class.

Notable here:
- The offline default is FD, the Frechet distance in the teacher's feature space. It is never called FID: that
  is the distance in one Inception network's features (`fid`), whose weights are fetched once, as are those of
  FD-DINOv2 (`fd-dinov2`) and CLIPScore (`clipscore`). A distance from few samples is biased and noisy, so
  every arm gets the same count, and the distance of the reconstructions, the floor a generator cannot pass,
  stands beside.
- All is measured on what a file would hold: pictures are rounded to 8 bits first.
- Several processes (`accelerate launch -m gear_studio evaluate ...`) share the pictures batch by batch.
  Sample i of a seed draws its randomness from (seed, i), so their number changes nothing.
- A Run holds EMA weights only: the EMA generator is always paired with the EMA tokenizer.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from gear_studio import data, sampling
from gear_studio.analysis import agreement
from gear_studio.analysis.codebook import assignment_statistics, usage_statistics
from gear_studio.analysis.likeness import IMAGES, likeness
from gear_studio.analysis.reconstruction import psnr, ssim
from gear_studio.analysis.reference import Reference, StatisticsCache, of_source, open_reference
from gear_studio.analysis.statistics import (
    Moments,
    Points,
    Predictions,
    frechet_distance,
    precision_recall,
)
from gear_studio.data import PATIENCE, batch_size_for, choose_pictures
from gear_studio.data.images import to_uint8
from gear_studio.data.prompts import ClassLabels, Conditions, SourceCaptions, WrittenCaptions, read_prompts
from gear_studio.data.stream import collect_skipped
from gear_studio.data.writing import Series
from gear_studio.models import clipscore, dinov2, inception
from gear_studio.models.judges import AttributeJudge, Judge
from gear_studio.models.perceptual import LPIPS
from gear_studio.models.pretrained import fingerprint
from gear_studio.models.teachers import Teacher
from gear_studio.runs import Run

METRICS = ("fd", "fd-dinov2", "fid", "sfid", "is", "pr", "clipscore", "ssim", "lpips", "likeness")
DISTANCES = ("fd", "fd-dinov2", "fid", "sfid")
INCEPTION = {"fid", "sfid", "is", "pr"}  # what is measured in its features
REFERENCE_POINTS = 10_000  # real pictures that precision and recall look at, as in the ADM evaluator
AGREEMENT_SAMPLES = agreement.SAMPLES
AGREEMENT_SCALES = (1.0, 1.5, 2.5, 4.0)  # guidance, at each of which samples are asked for their class


@dataclass(frozen=True)
class Options:
    """What to measure, and against what.

    samples: pictures behind every figure. metrics: of METRICS; PSNR and codebook statistics always come.
    prompts: of a Run on captions, what samples are asked for in turn (see `prompts.read_prompts`) instead of
    the held-out captions. reference: what samples are compared with, a folder of pictures or an .npz; None is
    the Run's own source. folder: where the pictures of a Run on `folder` or `shards` lie. teacher: whose
    features FD is taken in; None is the Run's own. clip: whose embeddings CLIPScore is taken in; None is
    `clipscore.MODEL`. save_samples: where to put the first seed's samples, see `pictures.Series`; the
    guidance scale is added to the name. cache: folder of reference statistics. batch_size: pictures at a
    time."""

    samples: int = 5000
    seeds: int = 3
    cfg_scale: float = 1.5
    metrics: tuple[str, ...] = ("fd",)
    prompts: Path | None = None
    reference: Path | None = None
    folder: Path | None = None
    teacher: str | None = None
    clip: str | None = None
    dinov2_weights: Path | None = None
    inception_weights: Path | None = None
    lpips_weights: Path | None = None
    save_samples: Path | None = None
    cache: Path | None = None
    batch_size: int | None = None

    def __post_init__(self):
        if unknown := sorted(set(self.metrics) - set(METRICS)):
            raise ValueError(f"unknown metrics {', '.join(unknown)}; choose from {', '.join(METRICS)}")


def spread(values: list[float]) -> dict:
    """Mean and sample standard deviation over seeds, with the values themselves."""
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "values": values,
    }


def shares(count: int, size: int, accelerator: Accelerator) -> Iterator[range]:
    """This process's batches of 0..count-1. The batches do not depend on the number of processes."""
    for number, begin in enumerate(range(0, count, size)):
        if number % accelerator.num_processes == accelerator.process_index:
            yield range(begin, min(begin + size, count))


class FeatureNetworks:
    """The feature networks that some metrics need: uint8 pictures (B, 3, H, W) on their device -> rows by
    metric.

    FD's features are the teacher's patches averaged. Published FD-DINOv2 (`fd-dinov2`) takes the class token
    of DINOv2 ViT-L instead; the two do not compare, whatever the teacher."""

    def __init__(self, metrics: Sequence[str], teacher: Callable[[], Teacher], options: Options, device):
        self.teacher = teacher().to(device) if "fd" in metrics else None
        self.dinov2 = self.inception = None
        if "fd-dinov2" in metrics:
            self.dinov2 = dinov2.DINOv2(options.dinov2_weights).to(device)
        if INCEPTION & set(metrics):
            self.inception = inception.Inception(options.inception_weights).to(device)
        self.device = device
        self._fingerprints: dict[nn.Module, str] = {}

    def __call__(self, pictures: Tensor, metrics: Sequence[str]) -> dict[str, Tensor]:
        found = {}
        if "fd" in metrics:
            found["fd"] = self.teacher(data.to_float(pictures)).mean(1)
        if "fd-dinov2" in metrics:
            found["fd-dinov2"] = self.dinov2(pictures)
        if INCEPTION & set(metrics):
            found |= self.inception(pictures)
            found["pr"] = found["fid"]
        return {metric: found[metric] for metric in metrics}

    def network(self, metric: str) -> nn.Module:
        return {"fd": self.teacher, "fd-dinov2": self.dinov2}.get(metric, self.inception)

    def fingerprint(self, metric: str) -> str:
        network = self.network(metric)
        if network not in self._fingerprints:
            config = repr(getattr(network, "config", type(network).__name__))
            self._fingerprints[network] = f"{config} {fingerprint(network)}"
        return self._fingerprints[network]

    def keeper(self, metric: str, count: int, stride: int) -> Moments | Predictions | Points:
        """What takes the rows of a metric, on a device that has float64."""
        device = self.device if self.device.type == "cuda" else "cpu"
        if metric == "is":
            return Predictions(count, inception.CLASSES, device)
        if metric == "pr":
            return Points(count, inception.DIMS["fid"], stride, device)
        return Moments(inception.DIMS.get(metric) or self.network(metric).dim, device)


class Evaluation:
    """One Run under measurement by all processes together; figures are worked out by the main process."""

    def __init__(self, run: Run, options: Options):
        self.run, self.options = run, options
        encoder = run.text_encoder
        if encoder is None and (options.prompts or "clipscore" in options.metrics):
            asked = "is asked by class labels" if run.has("generator") else "has no generator"
            raise ValueError(
                f"run {run.name} {asked}; clipscore and --prompts are for runs that are asked by captions, "
                "leave them out"
            )
        self.accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
        self.device = self.accelerator.device
        self.tokenizer = run.tokenizer.to(self.device)
        size = self.tokenizer.config.image_size
        self.batch_size = options.batch_size or batch_size_for(size)
        self.cache = StatisticsCache(options.cache)
        self.features = FeatureNetworks(
            options.metrics,
            self.teacher,
            options,
            self.device,
        )
        self.distances = [metric for metric in options.metrics if metric in DISTANCES]
        self.clip = None
        if "clipscore" in options.metrics:
            self.clip = clipscore.CLIPScore(options.clip or clipscore.MODEL).to(self.device)
        self.source, self.real = None, []
        # Samples alone can be measured where a reference is given and the Run's own pictures are elsewhere.
        kind = data.find_source(run.config["source"])
        if not kind.on_disk or options.folder or not options.reference:
            seen = run.config["recipe"].get("held_out_combinations", False)
            self.source = data.load(
                run.config["source"],
                "val",
                size,
                options.folder,
                captions=encoder is not None,
                combinations="seen" if seen else "all",
            )
            count = min(options.samples, len(self.source))
            self.numbers = choose_pictures(len(self.source), count)
            self.real = [of_source(self.source, numbers) for numbers in self.numbers]
        self.conditions: Conditions = ClassLabels(len(run.config["classes"]))
        if options.prompts:
            self.conditions = WrittenCaptions(
                encoder, [prompt.text for prompt in read_prompts(options.prompts)]
            )
        elif encoder:
            if self.source is None:
                raise ValueError(
                    f"run {run.name} is asked by captions: those of its held-out pictures; name their "
                    "folder, or a file of others with --prompts"
                )
            self.conditions = SourceCaptions(encoder, self.source, self.numbers[0])
        if encoder:
            run.encode([""])  # an imported generator gets its null caption
        self.judge = None
        if kind.embedded:
            self.judge = Judge.from_pretrained().to(self.device)

    def summary(
        self,
        metrics: Sequence[str],
        batches: Iterator[tuple[int, Tensor]],
        count: int,
        title: str,
        stride: int = 1,
    ) -> dict:
        """What is kept, by metric, of this process's `batches` and the other processes', `count` pictures."""
        kept = {metric: self.features.keeper(metric, count, stride) for metric in metrics}
        for start, pictures in self.shown(batches, count, title):
            for metric, rows in self.features(pictures, metrics).items():
                kept[metric].add(start, rows)
        for keeper in kept.values():
            keeper.sums = self.accelerator.reduce(keeper.sums, "sum")
        return {metric: keeper.result() for metric, keeper in kept.items()}

    def shown(self, batches: Iterator[tuple[int, Tensor]], count: int, title: str) -> Iterator:
        total = -(-count // self.batch_size)
        step = self.accelerator.num_processes
        bar = tqdm(total=total, desc=title, unit="batch", disable=not self.accelerator.is_main_process)
        for batch in batches:
            yield batch
            bar.update(min(step, total - bar.n))
        bar.close()

    def reference_summary(self, reference: Reference, metrics: Sequence[str]) -> dict:
        """`summary` of real pictures: from a file, from an earlier look at them, or looked at now."""
        found = {metric: reference.statistics[metric] for metric in metrics if metric in reference.statistics}
        wanted = [metric for metric in metrics if metric not in found]
        if wanted and reference.read is None:
            raise ValueError(
                f"reference {reference.name} has no pictures (arr_0), only statistics for "
                f"{', '.join(reference.statistics)}; {', '.join(wanted)} cannot be measured against it"
            )
        paths = {m: self.cache.path(reference, self.features.fingerprint(m), m) for m in wanted}
        known = {metric: self.cache.load(path, metric) for metric, path in paths.items()}
        # Machines with caches of their own may know different things; then all look again.
        here = torch.tensor([float(known[metric] is not None) for metric in wanted], device=self.device)
        everywhere = self.accelerator.reduce(here, "sum") if wanted else here
        agreed = (everywhere == self.accelerator.num_processes).tolist()
        found |= {metric: known[metric] for metric, yes in zip(wanted, agreed, strict=True) if yes}
        if missing := [metric for metric in wanted if metric not in found]:
            batches = (
                (part.start, reference.read(part).to(self.device))
                for part in shares(reference.count, self.batch_size, self.accelerator)
            )
            stride = -(-reference.count // REFERENCE_POINTS)
            looked = self.summary(missing, batches, reference.count, f"looking at {reference.name}", stride)
            for metric, value in looked.items():
                if self.accelerator.is_main_process:
                    self.cache.store(paths[metric], metric, value)
            found |= looked
        return found

    def compared(self, generated: dict, real: dict) -> dict[str, float]:
        """Figures of one set of pictures; none but on the main process, for which the others wait."""
        if not self.accelerator.is_main_process:
            return {}
        figures = {}
        for metric, value in generated.items():
            if metric in DISTANCES:
                figures[metric.replace("-", "_")] = frechet_distance(value, real[metric])
            elif metric == "is":
                figures["is"] = value
            else:
                figures |= precision_recall(value, real["pr"].to(value.device))
        return figures

    def reconstructions(self) -> dict:
        """PSNR and others of the held-out pictures' reconstructions, and codebook statistics."""
        count = len(self.numbers[0])
        lpips = None
        if "lpips" in self.options.metrics:
            lpips = LPIPS(self.options.lpips_weights).to(self.device)
        totals: Counter[str] = Counter()
        codes = torch.zeros(self.tokenizer.config.codes, device=self.device)

        def batches() -> Iterator[tuple[int, Tensor]]:
            for part in shares(count, self.batch_size, self.accelerator):
                batch = self.source.read([self.numbers[0][i] for i in part])
                images, labels = data.to_float(batch["image"].to(self.device)), batch["label"].to(self.device)
                assignment = self.tokenizer.assign(images)
                codes.add_(torch.bincount(assignment.indices.flatten(), minlength=len(codes)))
                pictures = to_uint8(self.tokenizer.decode(assignment.indices))
                reconstruction = data.to_float(pictures)
                each = {"psnr": psnr(reconstruction, images)}
                if "ssim" in self.options.metrics:
                    each["ssim"] = ssim(reconstruction, images)
                if lpips:
                    each["lpips"] = lpips(reconstruction, images)
                if self.clip:
                    each["rclipscore"] = self.clip(pictures, batch["caption"])
                    each["real_clipscore"] = self.clip(batch["image"].to(self.device), batch["caption"])
                if self.judge:
                    each["judge real"] = (self.judge(images).argmax(-1) == labels).float()
                    each["judge reconstructed"] = (self.judge(reconstruction).argmax(-1) == labels).float()
                totals.update({name: values.double().sum().item() for name, values in each.items()})
                concentration = assignment_statistics(assignment.scores, self.run.config["recipe"]["tau"])
                totals.update({name: len(images) * value.item() for name, value in concentration.items()})
                yield part.start, pictures

        found = self.summary(self.distances, batches(), count, "reconstructing")
        codes = self.accelerator.reduce(codes, "sum")
        parts, totals = gather_object([totals]), Counter()
        for part in parts:
            totals.update(part)
        real = self.reference_summary(self.real[0], self.distances)
        result = {"r" + name: value for name, value in self.compared(found, real).items()}
        result |= {name: value.item() for name, value in usage_statistics(codes).items()}
        result |= {name: total / count for name, total in totals.items() if not name.startswith("judge")}
        if self.judge:
            shown = ("real", "reconstructed")
            result["judge_accuracy"] = {name: totals[f"judge {name}"] / count for name in shown}
        if len(self.real) > 1:
            others = self.reference_summary(self.real[1], self.distances)
            result |= {"real_" + name: value for name, value in self.compared(others, real).items()}
        return result

    def teacher(self) -> Teacher:
        """Whose features are compared, with one patch a token."""
        name = self.options.teacher
        return Teacher.from_pretrained(name, self.tokenizer.grid) if name else self.run.teacher

    def likeness(self) -> dict:
        """See `analysis.likeness`; the main process measures, the others get an empty dict."""
        if not self.accelerator.is_main_process:
            return {}
        modules = [self.tokenizer, self.teacher().to(self.device)]
        if self.run.has("generator"):
            modules.append(self.run.generator.to(self.device))
        pictures = self.source.read(self.numbers[0][:IMAGES])["image"].to(self.device)
        return likeness(modules, data.to_float(pictures), f"{self.run.config['source']}, held out")

    def samples(
        self, count: int, scale: float, seed: int, conditions: Conditions | None = None
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """This process's share of `count` samples: number of the first, uint8 pictures, what they were asked
        for: `asked`, or what the Run's own data gives."""
        generator = self.run.generator.to(self.device)
        for part in shares(count, self.batch_size, self.accelerator):
            given = (conditions or self.conditions).for_samples(part).to(self.device)
            indices = sampling.sample(generator, given, cfg_scale=scale, seed=seed, first=part.start)
            yield part.start, to_uint8(self.tokenizer.decode(indices)), given

    def scored(self, batches: Iterator[tuple[int, Tensor]], scores: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The same batches; each picture's CLIPScore with its caption is put into `scores`, by its number."""
        for start, pictures in batches:
            part = range(start, start + len(pictures))
            scores[part.start : part.stop] = self.clip(pictures, self.conditions.captions(part))
            yield start, pictures

    def generated(self) -> dict:
        """Figures of samples without and with guidance, each with its spread over seeds."""
        options = self.options
        others = ("clipscore", "ssim", "lpips", "likeness")
        metrics = [metric for metric in options.metrics if metric not in others]
        compared = [metric for metric in metrics if metric != "is"]
        count = options.samples
        if options.reference:
            reference = open_reference(options.reference, self.tokenizer.config.image_size)
        else:
            reference, count = self.real[0], self.real[0].count
        real = self.reference_summary(reference, compared)
        result: dict = {"reference": reference.name, "generated": count}
        scales = {"": 1.0, "_guided": options.cfg_scale}
        for suffix, scale in scales.items():
            figures: list[dict[str, float]] = []
            for seed in range(options.seeds):
                batches = ((start, pictures) for start, pictures, _ in self.samples(count, scale, seed))
                series = None
                if options.save_samples and seed == 0:
                    path = options.save_samples
                    path = path.with_name(f"{path.stem}-cfg{scale}{path.suffix}")
                    series = Series(path, count, self.tokenizer.config.image_size, self.accelerator)
                    batches = saved(batches, series)
                scores = torch.zeros(count, device=self.device)
                if self.clip:
                    batches = self.scored(batches, scores)
                found = self.summary(metrics, batches, count, f"sampling, guidance {scale}, seed {seed}")
                if series:
                    series.close()
                figures.append(self.compared(found, real))
                if self.clip:
                    figures[-1]["clipscore"] = self.accelerator.reduce(scores, "sum").mean().item()
            for name in figures[0]:
                result[name + suffix] = spread([one[name] for one in figures])
        result["cfg_scale"] = options.cfg_scale
        if self.judge and isinstance(self.conditions, ClassLabels):
            result["class_agreement"] = {f"{scale:g}": self.agreement(scale) for scale in AGREEMENT_SCALES}
        elif self.judge:
            result["prompts"] = {kind: self.prompted(kind) for kind in agreement.KINDS}
        return result

    def prompted(self, kind: str) -> dict:
        """How many samples, guided, show what their caption asked for, by attribute; beside it ("shuffled"),
        how many show what another caption asked for. kind: of `agreement.KINDS`."""
        captions, wanted = agreement.prompts(kind, AGREEMENT_SAMPLES)
        judge = AttributeJudge.from_pretrained().to(self.device)
        right: dict[str, list[dict]] = {"asked": [], "shuffled": []}
        for seed in range(self.options.seeds):
            said = {name: torch.zeros(len(captions), dtype=torch.long, device=self.device) for name in wanted}
            of = self.samples(
                len(captions),
                self.options.cfg_scale,
                1000 + seed,
                WrittenCaptions(self.conditions.encoder, captions),
            )
            for start, pictures, _ in of:
                for name, ids in judge.says(data.to_float(pictures)).items():
                    said[name][start : start + len(ids)] = ids
            said = {name: self.accelerator.reduce(ids, "sum") for name, ids in said.items()}
            right["asked"].append(agreement.agreement(said, wanted))
            right["shuffled"].append(agreement.agreement(said, agreement.shuffled(wanted)))
        return {
            name: {key: spread([each[key] for each in found]) for key in found[0]}
            for name, found in right.items()
        }

    def agreement(self, scale: float) -> dict:
        """The share of samples that the judge gives the class asked for, over sampling seeds."""
        shares = []
        for seed in range(self.options.seeds):
            hits = 0
            for _, pictures, labels in self.samples(AGREEMENT_SAMPLES, scale, 1000 + seed):
                hits += (self.judge(data.to_float(pictures)).argmax(-1) == labels).sum().item()
            shares.append(sum(gather_object([hits])) / AGREEMENT_SAMPLES)
        return spread(shares)


def saved(batches: Iterator[tuple[int, Tensor]], series: Series) -> Iterator[tuple[int, Tensor]]:
    """The same batches, each put on disk as it passes."""
    for start, pictures in batches:
        series.add(start, pictures)
        yield start, pictures


@torch.no_grad()
def evaluate(run: Run, options: Options = Options()) -> dict:
    """Measure a Run, on a GPU if there is one; a plain dict for evaluation.json, whole on the main process.

    samples, the pictures behind every figure; samples_asked, where there are not as many.
    A tokenizer's Run: psnr (dB), ssim, lpips, the distances of reconstructions (rfd, rfd_dinov2, rfid,
    rsfid), codebook statistics, all on `samples` held-out pictures, and real_fd and so on, the distance of as
    many other real pictures: what counting noise alone gives. A generator's Run also: fd, fd_dinov2, fid,
    sfid, is, precision and recall of samples, without guidance and (`_guided`) with it, over sampling seeds
    0..seeds-1 (its tokenizer's rfd is the floor), and class_agreement, by guidance scale: of 480 samples a
    seed the share that the judge gives the asked class, beside its accuracy on real pictures and on their
    reconstructions; of a generator on captions of `shapes` instead prompts, the share that shows the asked
    shape, texture, colour, position and all of them (`analysis.agreement`). Of any generator on captions,
    where asked for, clipscore, of samples with what they were asked for; how far its scale goes say
    real_clipscore and rclipscore, of the held-out pictures and their reconstructions with their own captions.
    Of all Runs, where asked for, likeness to the teacher (`analysis.likeness`), on its own held-out pictures.

    Raises ValueError for a reference that lacks what a metric needs and for prompts or clipscore of a Run
    that takes no captions, FileNotFoundError for weights that are neither here nor to be downloaded."""
    evaluation = Evaluation(run, options)
    count = evaluation.real[0].count if evaluation.real else options.samples
    result: dict = {"samples": count}
    if count < options.samples:  # there are no more pictures
        result["samples_asked"] = options.samples
    if teacher := evaluation.features.teacher:
        name = options.teacher or run.config["recipe"]["teacher"]
        result |= {"teacher": name, "teacher_note": teacher.note}
    if evaluation.clip:
        result["clip"] = options.clip or clipscore.MODEL
    if options.prompts:
        result["prompts_file"] = str(options.prompts)
    if evaluation.source:
        result |= evaluation.reconstructions()
        if "likeness" in options.metrics:
            result["likeness"] = evaluation.likeness()
    if run.has("generator"):
        result |= evaluation.generated()
    if unread := collect_skipped(evaluation.source):
        result["skipped"] = unread
    evaluation.accelerator.wait_for_everyone()
    return result
