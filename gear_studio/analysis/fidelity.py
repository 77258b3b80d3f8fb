"""The evaluation of a Run: its reconstructions against their originals, its samples against real pictures,
and whether samples show what was asked for.

Notable here:
- The offline default is FD, the Frechet distance in the teacher's feature space. It is never called FID: that
  is the distance in one Inception network's features (`fid`), whose weights are fetched once, as are those of
  FD-DINOv2 (`fd-dinov2`) and CLIPScore (`clipscore`).
- A distance from few samples is biased and noisy, so every arm gets the same count. The distance of the
  reconstructions is given too: it is the floor that a generator cannot pass.
- Pictures are rounded to 8 bits first, so that what a file would hold is measured.
- Several processes (`accelerate launch -m gear_studio evaluate ...`) share the pictures batch by batch.
  Sample i of a seed draws its randomness from (seed, i), so their number changes nothing.
- A Run holds EMA weights only: the EMA generator is always paired with the EMA tokenizer.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from gear_studio import data, sampling
from gear_studio.analysis import agreement
from gear_studio.analysis.codebook import measure_assignment, usage_statistics
from gear_studio.analysis.likeness import IMAGES, measure_likeness
from gear_studio.analysis.metrics import METRICS, EvaluationOptions
from gear_studio.analysis.networks import FeatureNetworks
from gear_studio.analysis.reconstruction import psnr, ssim
from gear_studio.analysis.reference import Reference, StatisticsCache, open_reference, reference_of
from gear_studio.analysis.statistics import (
    frechet_distance,
    kernel_distance,
    precision_recall,
    precision_recall_density_coverage,
    split_among_processes,
)
from gear_studio.data import choose_pictures
from gear_studio.data.images import to_uint8
from gear_studio.data.picture_files import PictureFiles
from gear_studio.data.picture_output import Series
from gear_studio.data.prompts import ClassLabels, Conditions, SourceCaptions, WrittenCaptions, read_prompts
from gear_studio.data.stream import collect_skipped
from gear_studio.devices import new_accelerator, to_float64
from gear_studio.errors import InputError
from gear_studio.models import clipscore
from gear_studio.models.judges import AttributeJudge, Judge
from gear_studio.models.perceptual import LPIPS
from gear_studio.models.teachers import Teacher, to_size
from gear_studio.runs import Run

REFERENCE_POINTS = 10_000  # real pictures that precision and recall look at, as in the ADM evaluator
AGREEMENT_SAMPLES = agreement.SAMPLES
AGREEMENT_SCALES = (1.0, 1.5, 2.5, 4.0)  # guidance scales at which a judge names the class of samples

Batches = Iterator[tuple[int, Tensor]]  # number of the first picture, uint8 pictures (B, 3, H, W)


def spread_of(values: list[float]) -> dict:
    """Mean and sample standard deviation over seeds, with the values themselves."""
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "values": values,
    }


class Evaluation:
    """One Run, measured by all processes together. Only the main process works out the figures.

    source: the Run's own pictures; None where they are elsewhere and samples are compared with a reference.
    numbers: which held-out pictures are measured and, where the source has more, as many others. real: those
    pictures as references."""

    def __init__(self, run: Run, options: EvaluationOptions):
        self.run, self.options = run, options
        self.accelerator = new_accelerator(options.device)
        self.device = self.accelerator.device
        if run.has("generator"):
            run.generator.to(self.device)  # and with it whatever encodes its captions
        encoder = run.text_encoder
        if encoder is None and (options.prompts or "clipscore" in options.metrics):
            problem = "is asked by class labels" if run.has("generator") else "has no generator"
            raise InputError(
                f"run {run.name} {problem}; clipscore and --prompts are for runs that are asked by captions, "
                "leave them out"
            )
        self.tokenizer = run.tokenizer.to(self.device)
        size = self.tokenizer.config.image_size
        self.given: Reference | None = None  # opened now: a wrong one is not found out after minutes
        if options.reference:
            self.given = open_reference(options.reference, options.size or size)
        self.batch_size = options.batch_size or data.batch_size_for(size)
        self.cache = StatisticsCache(options.cache)
        self.features = FeatureNetworks(options.metrics, self.load_teacher, options, self.device)
        self.distances = [metric for metric in options.metrics if METRICS[metric].is_distance]
        self.clip: clipscore.CLIPScore | None = None
        if "clipscore" in options.metrics:
            self.clip = clipscore.CLIPScore(options.clip or clipscore.MODEL).to(self.device)
        self.drawing: dict = {
            name: getattr(options, name) for name in ("cfg_interval", "temperature", "top_k", "top_p")
        }
        self.source: data.Source | None = None
        self.numbers: list[list[int]] = []
        self.real: list[Reference] = []
        # Samples alone can be measured where a reference is given and the Run's own pictures are elsewhere.
        kind = data.find_source(run.config["source"])
        folder = options.folder or (None if options.reference else run.pictures_folder())
        if not kind.on_disk or folder or not options.reference:
            held_out = run.config["recipe"].get("held_out_combinations", False)
            self.source = data.load(
                run.config["source"],
                "val",
                size,
                folder,
                captions=bool(run.config["recipe"].get("text_encoder")),
                combinations="seen" if held_out else "all",
            )
            if options.interpolation != "bicubic":
                if not isinstance(self.source, PictureFiles):
                    raise InputError(
                        f"--interpolation {options.interpolation} is for pictures in files; those of "
                        f"{self.source.name} are not resized, leave it out"
                    )
                self.source.interpolation = options.interpolation
            count = min(options.samples, len(self.source))
            if count < 2 and self.distances:
                raise InputError(
                    f"run {run.name} has {count} held-out picture, and {', '.join(self.distances)} takes at "
                    "least 2; add pictures, or name a folder with more of them with --folder"
                )
            self.numbers = choose_pictures(len(self.source), count)
            self.real = [reference_of(self.source, numbers) for numbers in self.numbers]
        self.captions: SourceCaptions | WrittenCaptions | None = None
        if encoder:
            if options.prompts:
                texts = [prompt.text for prompt in read_prompts(options.prompts)]
                self.captions = WrittenCaptions(encoder, texts)
            elif self.source is not None:
                self.captions = SourceCaptions(encoder, self.source, self.numbers[0])
            else:
                raise InputError(
                    f"run {run.name} is asked by captions: those of its held-out pictures; name their "
                    "folder, or a file of others with --prompts"
                )
            run.encode([""])  # an imported generator gets its null caption
        self.class_counts: list[int] = []  # of the held-out pictures; known once they have been looked at
        self.judge: Judge | None = None
        if kind.embedded:
            self.judge = Judge.from_pretrained().to(self.device)

    def load_teacher(self) -> Teacher:
        """The teacher whose features are compared, with one patch a token."""
        name = self.options.teacher
        return Teacher.from_pretrained(name, self.tokenizer.grid) if name else self.run.teacher

    # Sets of pictures

    def summarise(
        self, metrics: Sequence[str], batches: Batches, count: int, title: str, stride: int = 1
    ) -> dict:
        """Summaries of `count` pictures by metric: statistics, feature points or a score. `batches` are this
        process's; the others add theirs. title: for the progress bar."""
        summaries = {metric: self.features.start_summary(metric, count, stride) for metric in metrics}
        for start, pictures in self.show_progress(batches, count, title):
            for metric, features in self.features(pictures, metrics).items():
                summaries[metric].add(start, features)
        for summary in summaries.values():
            summary.sums = self.accelerator.reduce(summary.sums, "sum")
        return {metric: summary.result() for metric, summary in summaries.items()}

    def show_progress(self, batches: Batches, count: int, title: str) -> Batches:
        """The same batches, under a progress bar of all processes together."""
        total = -(-count // self.batch_size)
        step = self.accelerator.num_processes
        bar = tqdm(total=total, desc=title, unit="batch", disable=not self.accelerator.is_main_process)
        for batch in batches:
            yield batch
            bar.update(min(step, total - bar.n))
        bar.close()

    def summarise_reference(self, reference: Reference, metrics: Sequence[str]) -> dict:
        """`summarise` of real pictures. What the reference holds or the cache knows is taken from there; for
        the rest the pictures are looked at now, and the cache keeps it.

        Raises ValueError for a reference that has neither the pictures nor the statistics of a metric."""
        summaries: dict = {
            metric: reference.statistics[metric] for metric in metrics if metric in reference.statistics
        }
        wanted = [metric for metric in metrics if metric not in summaries]
        if not wanted:
            return summaries
        read = reference.read
        if read is None:
            raise InputError(
                f"reference {reference.name} has no pictures (arr_0), only statistics for "
                f"{', '.join(reference.statistics)}; {', '.join(wanted)} cannot be measured against it"
            )
        paths = {m: self.cache.path(reference, self.features.fingerprint(m), m) for m in wanted}
        cached = {metric: self.cache.load(path, metric) for metric, path in paths.items()}
        # Machines with caches of their own may know different things; then all look again.
        known = torch.tensor([float(cached[metric] is not None) for metric in wanted], device=self.device)
        by_all = (self.accelerator.reduce(known, "sum") == self.accelerator.num_processes).tolist()
        summaries |= {metric: cached[metric] for metric, yes in zip(wanted, by_all, strict=True) if yes}
        if missing := [metric for metric in wanted if metric not in summaries]:
            batches = (
                (part.start, read(part).to(self.device))
                for part in split_among_processes(reference.count, self.batch_size, self.accelerator)
            )
            stride = -(-reference.count // REFERENCE_POINTS)
            title = f"looking at {reference.name}"
            computed = self.summarise(missing, batches, reference.count, title, stride)
            for metric, summary in computed.items():
                if self.accelerator.is_main_process:
                    self.cache.store(paths[metric], metric, summary)
            summaries |= computed
        return summaries

    def compare(self, summaries: dict, real: dict) -> dict[str, float]:
        """Figures of a set of pictures, from its summaries and those of real ones. The main process works
        them out; the others get none."""
        if not self.accelerator.is_main_process:
            return {}
        figures: dict[str, float] = {}
        for metric, summary in summaries.items():
            if METRICS[metric].is_distance:
                figures[metric.replace("-", "_")] = frechet_distance(summary, real[metric])
            elif metric == "is":
                figures["is"] = summary
            elif metric == "mmd-dinov2":
                figures["mmd_dinov2"] = kernel_distance(summary, real[metric].to(summary.device))
            elif metric == "prdc-dinov2":
                overlap = precision_recall_density_coverage(summary, real[metric].to(summary.device))
                figures |= {f"{name}_dinov2": share for name, share in overlap.items()}
            else:
                figures |= precision_recall(summary, real["pr"].to(summary.device))
        return figures

    # The tokenizer

    def measure_reconstructions(self) -> dict:
        """PSNR and others of the held-out pictures' reconstructions, and codebook statistics."""
        source = self.source
        assert source is not None, "the Run's own pictures are not there"
        count = len(self.numbers[0])
        lpips = None
        if "lpips" in self.options.metrics:
            lpips = LPIPS(self.options.lpips_weights).to(self.device)
        sums: Counter[str] = Counter()
        codes = torch.zeros(self.tokenizer.config.codes, device=self.device)
        of_classes = torch.zeros(len(source.classes), dtype=torch.long, device=self.device)

        def reconstruct() -> Batches:
            """Adds to `sums`, `codes` and `of_classes` on its way."""
            for part in split_among_processes(count, self.batch_size, self.accelerator):
                batch = source.read([self.numbers[0][i] for i in part])
                images, labels = data.to_float(batch["image"].to(self.device)), batch["label"].to(self.device)
                indices, counts, concentration = measure_assignment(
                    self.tokenizer.encode(images), self.tokenizer.quantizer, self.run.setting("tau")
                )
                codes.add_(counts)
                if source.classes:
                    of_classes.add_(labels.bincount(minlength=len(of_classes)))
                pictures = to_uint8(self.tokenizer.decode(indices))
                reconstruction = data.to_float(pictures)
                of_each = {"psnr": psnr(reconstruction, images)}
                if "l1" in self.options.metrics:
                    of_each["l1"] = (reconstruction - images).abs().flatten(1).mean(1)
                if "ssim" in self.options.metrics:
                    of_each["ssim"] = ssim(reconstruction, images)
                if lpips:
                    of_each["lpips"] = lpips(reconstruction, images)
                if self.clip:
                    of_each["rclipscore"] = self.clip(pictures, batch["caption"])
                    of_each["real_clipscore"] = self.clip(batch["image"].to(self.device), batch["caption"])
                if self.judge:
                    for name, judged in (("real", images), ("reconstructed", reconstruction)):
                        of_each[f"judge {name}"] = (self.judge(judged).argmax(-1) == labels).float()
                sums.update({name: to_float64(values).sum().item() for name, values in of_each.items()})
                sums.update({name: len(images) * value for name, value in concentration.items()})
                yield part.start, pictures

        summaries = self.summarise(self.distances, reconstruct(), count, "reconstructing")
        codes = self.accelerator.reduce(codes, "sum")
        self.class_counts = self.accelerator.reduce(of_classes, "sum").tolist()
        totals: Counter[str] = Counter()
        for sums_of_process in gather_object([sums]):
            totals.update(sums_of_process)
        real = self.summarise_reference(self.real[0], self.distances)
        result: dict = {"r" + name: value for name, value in self.compare(summaries, real).items()}
        result |= {name: value.item() for name, value in usage_statistics(codes).items()}
        result |= {name: total / count for name, total in totals.items() if not name.startswith("judge")}
        if self.judge:
            result["judge_accuracy"] = {
                name: totals[f"judge {name}"] / count for name in ("real", "reconstructed")
            }
        if len(self.real) > 1:
            others = self.summarise_reference(self.real[1], self.distances)
            result |= {"real_" + name: value for name, value in self.compare(others, real).items()}
        return result

    def measure_likeness(self) -> dict:
        """See `analysis.likeness`; the main process measures, the others get an empty dict."""
        if not self.accelerator.is_main_process:
            return {}
        assert self.source is not None, "the Run's own pictures are not there"
        modules = [self.tokenizer, self.load_teacher().to(self.device)]
        if self.run.has("generator"):
            modules.append(self.run.generator)
        pictures = self.source.read(self.numbers[0][:IMAGES])["image"].to(self.device)
        return measure_likeness(modules, data.to_float(pictures), f"{self.run.config['source']}, held out")

    # The generator

    def count_classes(self, reference: Reference) -> list[int] | None:
        """How often samples are to be asked for each class, to be as the reference is; None: equally."""
        classes = self.run.config["classes"]
        if self.options.classes != "reference":
            return None
        if self.options.reference is None:
            balanced = data.find_source(self.run.config["source"]).balanced
            return None if balanced or len(self.class_counts) != len(classes) else self.class_counts
        found = Counter(reference.class_names)
        return [found[name] for name in classes] if found and found.keys() <= set(classes) else None

    def draw_samples(
        self, count: int, scale: float, seed: int, conditions: Conditions, size: int | None = None
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """This process's share of `count` samples: number of the first, uint8 pictures, their condition.
        size: pixels along a side that they are resized to, as released: without antialiasing."""
        generator = self.run.generator
        for part in split_among_processes(count, self.batch_size, self.accelerator):
            condition = conditions.for_samples(part).to(self.device)
            indices = sampling.sample(
                generator, condition, cfg_scale=scale, seed=seed, first=part.start, **self.drawing
            )
            pictures = self.tokenizer.decode(indices)
            pictures = to_size(pictures, size, antialias=False) if size else pictures
            yield part.start, to_uint8(pictures), condition

    def score_captions(self, batches: Batches, scores: Tensor) -> Batches:
        """The same batches. Each picture's CLIPScore with its caption is put into `scores`, by its number."""
        assert self.clip and self.captions, "CLIPScore was not asked for"
        for start, pictures in batches:
            part = range(start, start + len(pictures))
            scores[part.start : part.stop] = self.clip(pictures, self.captions.captions(part))
            yield start, pictures

    def measure_samples(self) -> dict:
        """Figures of samples without and with guidance, each with its spread over seeds."""
        options = self.options
        metrics = [metric for metric in options.metrics if METRICS[metric].summary]
        with_reference = [metric for metric in metrics if METRICS[metric].needs_reference]
        count = options.samples
        reference = self.given
        if reference is None:
            reference, count = self.real[0], self.real[0].count
        real = self.summarise_reference(reference, with_reference)
        result: dict = {"reference": reference.name, "generated": count}
        conditions: Conditions | None = self.captions
        if conditions is None:
            counts = self.count_classes(reference)
            at_random = options.classes == "random"
            conditions = ClassLabels(len(self.run.config["classes"]), counts, at_random)
            result["classes"] = "random" if at_random else "equal" if counts is None else "reference"
        scales = {"": 1.0} | ({"_guided": options.cfg_scale} if options.cfg_scale != 1 else {})
        for suffix, scale in scales.items():
            figures = [
                self.measure_draw(metrics, count, scale, seed, real, conditions)
                for seed in range(options.seeds)
            ]
            for name in figures[0]:
                result[name + suffix] = spread_of([of_seed[name] for of_seed in figures])
        result["cfg_scale"] = options.cfg_scale
        if options.size:
            result["size"] = options.size
        if told := {k: v for k, v in self.drawing.items() if v != getattr(EvaluationOptions, k)}:
            result["drawing"] = told
        if self.judge and self.captions is None:
            result["class_agreement"] = {
                f"{scale:g}": self.measure_class_agreement(scale) for scale in AGREEMENT_SCALES
            }
        elif self.judge:
            result["prompts"] = {kind: self.measure_caption_agreement(kind) for kind in agreement.KINDS}
        return result

    def measure_draw(
        self,
        metrics: Sequence[str],
        count: int,
        scale: float,
        seed: int,
        real: dict,
        conditions: Conditions,
    ) -> dict[str, float]:
        """Figures of the samples of one seed at one guidance scale. real: summaries of the reference."""
        samples = self.draw_samples(count, scale, seed, conditions, self.options.size)
        batches: Batches = ((start, pictures) for start, pictures, _ in samples)
        series = None
        if self.options.save_samples and seed == 0:
            path = self.options.save_samples
            path = path.with_name(f"{path.stem}-cfg{scale}{path.suffix}")
            size = self.options.size or self.tokenizer.config.image_size
            series = Series(path, count, size, self.accelerator)
            batches = save_batches(batches, series)
        scores = torch.zeros(count, device=self.device)
        if self.clip:
            batches = self.score_captions(batches, scores)
        summaries = self.summarise(metrics, batches, count, f"sampling, guidance {scale}, seed {seed}")
        if series:
            series.close()
        figures = self.compare(summaries, real)
        if self.clip:
            figures["clipscore"] = self.accelerator.reduce(scores, "sum").mean().item()
        return figures

    def measure_caption_agreement(self, kind: str) -> dict:
        """How many samples, guided, show what their caption asks for ("asked"), by attribute, and how many
        show what another caption asks for ("shuffled"). kind: of `agreement.KINDS`."""
        assert self.captions, "the generator takes no captions"
        captions, wanted = agreement.make_prompts(kind, AGREEMENT_SAMPLES)
        conditions = WrittenCaptions(self.captions.encoder, captions)
        judge = AttributeJudge.from_pretrained().to(self.device)
        scores: dict[str, list[dict]] = {"asked": [], "shuffled": []}
        for seed in range(self.options.seeds):
            seen = {name: torch.zeros(len(captions), dtype=torch.long, device=self.device) for name in wanted}
            samples = self.draw_samples(len(captions), self.options.cfg_scale, 1000 + seed, conditions)
            for start, pictures, _ in samples:
                for name, ids in judge.says(data.to_float(pictures)).items():
                    seen[name][start : start + len(ids)] = ids
            seen = {name: self.accelerator.reduce(ids, "sum") for name, ids in seen.items()}
            scores["asked"].append(agreement.score(seen, wanted))
            scores["shuffled"].append(agreement.score(seen, agreement.shuffle(wanted)))
        return {
            against: {name: spread_of([of_seed[name] for of_seed in of_seeds]) for name in of_seeds[0]}
            for against, of_seeds in scores.items()
        }

    def measure_class_agreement(self, scale: float) -> dict:
        """The share of samples in which the judge sees the class asked for, every class in turn, over
        sampling seeds."""
        assert self.judge, "there is no judge of this source"
        shares, conditions = [], ClassLabels(len(self.run.config["classes"]))
        count = min(AGREEMENT_SAMPLES, self.options.samples)
        for seed in range(self.options.seeds):
            hits = 0
            for _, pictures, labels in self.draw_samples(count, scale, 1000 + seed, conditions):
                hits += (self.judge(data.to_float(pictures)).argmax(-1) == labels).sum().item()
            shares.append(sum(gather_object([hits])) / count)
        return spread_of(shares)


def save_batches(batches: Batches, series: Series) -> Batches:
    """The same batches, each written to disk as it passes."""
    for start, pictures in batches:
        series.add(start, pictures)
        yield start, pictures


@torch.no_grad()
def evaluate(run: Run, options: EvaluationOptions | None = None) -> dict:
    """Measure a Run, on a GPU if there is one. Returns a plain dict for evaluation.json, complete on the main
    process.

    Of any Run: samples, the pictures behind every figure; samples_asked, where there are fewer than that;
    where asked for, likeness to the teacher (`analysis.likeness`), on the Run's own held-out pictures.

    Of a tokenizer, on `samples` held-out pictures: psnr (dB), l1, ssim, lpips, the distances of
    reconstructions (rfd, rfd_dinov2, rfid, rsfid) and codebook statistics. real_fd and so on are the
    distances of as many other real pictures: what counting noise alone gives.

    Of a generator, without guidance and (`_guided`, where cfg_scale is not 1) with it, over sampling seeds
    0..seeds-1: fd, fd_dinov2, fid, sfid, is, precision and recall (with _dinov2 in DINOv2's features, with
    density and coverage, and mmd_dinov2) of samples. Its tokenizer's rfd is the
    floor.
    Of one on class labels: classes, how often samples were asked for each: "reference", in the proportions of
    the pictures they are compared with; "equal", in turn, where asked so, where the source's classes are
    equally likely, and where the reference does not tell its classes; or "random", where asked so.
    drawing: temperature, top_k, top_p and cfg_interval, where they are not the defaults.
    Of one on class labels of `shapes`: class_agreement, by guidance scale, the share of 480 samples a seed
    (or of `samples`, where they are fewer) in which the judge sees the class asked for; judge_accuracy says
    how often it is right on real pictures and on their reconstructions.
    Of one on captions of `shapes`: prompts, the share of samples that show the shape, texture, colour and
    position asked for, and all of them (`analysis.agreement`).
    Of any one on captions, where asked for: clipscore of samples with their captions. real_clipscore and
    rclipscore, of the held-out pictures and of their reconstructions with their own captions, say how far its
    scale goes.

    Raises ValueError for a reference that lacks what a metric needs and for prompts or clipscore of a Run
    that takes no captions, FileNotFoundError for weights that are neither here nor to be downloaded."""
    options = options or EvaluationOptions()
    options.check()
    evaluation = Evaluation(run, options)
    count = evaluation.real[0].count if evaluation.real else options.samples
    result: dict = {"samples": count}
    if count < options.samples:  # there are no more pictures
        result["samples_asked"] = options.samples
    if teacher := evaluation.features.teacher:
        name = options.teacher or run.setting("teacher")
        result |= {"teacher": name, "teacher_note": teacher.note}
    if evaluation.clip:
        result["clip"] = options.clip or clipscore.MODEL
    if options.interpolation != "bicubic":
        result["interpolation"] = options.interpolation
    if options.prompts:
        result["prompts_file"] = str(options.prompts)
    if evaluation.source is not None:
        result |= evaluation.measure_reconstructions()
        if "likeness" in options.metrics:
            result["likeness"] = evaluation.measure_likeness()
    if run.has("generator"):
        result |= evaluation.measure_samples()
    if evaluation.source is not None and (unread := collect_skipped(evaluation.source)):
        result["skipped"] = unread
    evaluation.accelerator.wait_for_everyone()
    return result
