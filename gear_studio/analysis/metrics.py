"""The metrics that `evaluate` knows, in one table, and what an evaluation can be asked for.

A metric is a line in `METRICS`. Its name is what the command line takes; the choices there, their help, which
network is loaded and what is compared with the reference all follow from the table.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typing_extensions import Doc

from gear_studio.analysis.statistics import Moments, Points, Predictions
from gear_studio.devices import Device
from gear_studio.errors import InputError
from gear_studio.ranges import Count, Mass, Natural, NonNegative, Number, Pixels, Several, check


@dataclass(frozen=True)
class Metric:
    """help: one line for the command line.

    A metric of a set of pictures has two more. network: whose features it is taken in. summary: what is kept
    of the features of a set. The other metrics are means over pictures, or figures of the models, and are
    taken where they belong (`fidelity.Evaluation`)."""

    help: str
    network: Literal["teacher", "dinov2", "inception"] | None = None
    summary: type[Moments] | type[Points] | type[Predictions] | None = None

    @property
    def is_distance(self) -> bool:
        """Whether it is a Frechet distance. Those are taken of reconstructions too."""
        return self.summary is Moments

    @property
    def needs_reference(self) -> bool:
        """Whether samples are compared with real pictures."""
        return self.summary in (Moments, Points)


METRICS = {
    "fd": Metric("Frechet distance in the teacher's features; works offline", "teacher", Moments),
    "fd-dinov2": Metric("Frechet distance in DINOv2's features, as published", "dinov2", Moments),
    "fid": Metric("Frechet distance in Inception's features", "inception", Moments),
    "sfid": Metric("Frechet distance in Inception's spatial features", "inception", Moments),
    "is": Metric("Inception Score", "inception", Predictions),
    "pr": Metric("precision and recall in Inception's features", "inception", Points),
    "prdc-dinov2": Metric("precision, recall, density, coverage in DINOv2's features", "dinov2", Points),
    "mmd-dinov2": Metric("kernel distance (MMD) in DINOv2's features", "dinov2", Points),
    "clipscore": Metric("of a generator on captions, samples with their captions, by CLIP"),
    "l1": Metric("mean absolute difference of reconstructions, of pixels in [-1, 1]"),
    "ssim": Metric("structural similarity of reconstructions"),
    "lpips": Metric("perceptual distance of reconstructions, by VGG-16"),
    "likeness": Metric("CKA and CKNNA of tokenizer and generator with the teacher"),
}
if TYPE_CHECKING:
    MetricName = str
else:
    MetricName = Literal[*METRICS]


@dataclass(frozen=True)
class EvaluationOptions:
    """What to measure of a Run, and against what."""

    samples: Several = 5000
    """Images behind every figure, the same for every run that is compared."""
    seeds: Count = 3
    """Sampling seeds, for the spread."""
    cfg_scale: Number = 1.5
    """Guidance scale of the guided figures; 1: there are none."""
    cfg_interval: Natural | None = None
    """Where guidance ends, as `sample --cfg-interval` takes it. Default: all tokens are guided."""
    temperature: NonNegative = 1.0
    """Of samples; 0 is greedy."""
    top_k: Natural = 0
    """Samples keep the k likeliest codes; 0 keeps all."""
    top_p: Mass = 1.0
    """Samples keep the likeliest codes of this mass; 1 keeps all."""
    metrics: Annotated[
        tuple[MetricName, ...],
        Doc(
            "; ".join(f"{name}: {metric.help}" for name, metric in METRICS.items())
            + ". PSNR and codebook statistics always come."
        ),
    ] = ("fd",)
    size: Pixels | None = None
    """Pixels along a side that samples are resized to before they are compared with a --reference: 256, where
    a model of 512 px is compared with statistics of 256. Default: they stay as they are."""
    prompts: Path | None = None
    """What samples are asked for, in turn, instead of the captions of held-out images: a file or folder as
    `sample --prompts` takes. Distances are then best taken to a --reference."""
    classes: Literal["reference", "equal", "random"] = "reference"
    """How often samples are asked for each class: as often as the reference has pictures of it, where that is
    known (the run's own held-out images, or a folder with a sub-folder a class); equally, in turn; or at
    random, as GEAR's code does."""
    reference: Path | None = None
    """What samples are compared with: a folder of images; an .npz with mu and sigma (and arr_0), as the ADM
    evaluator publishes them, or with dino_mu, dino_sigma and dino_embeddings, as GPIC does; or a folder of
    .parquet files with a column image, as of COCO. Default: the run's own held-out images."""
    folder: Path | None = None
    """Where the pictures of a run on source `folder` or `shards` lie. Default: where they lay in training;
    with a --reference none."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How those pictures are resized: the published figures of LFQ and IBQ are of bilinear ones."""
    teacher: str | None = None
    """Whose features fd is taken in. Default: the run's own teacher."""
    clip: str | None = None
    """The CLIP of clipscore: a name on the Hugging Face Hub or a folder. Default:
    openai/clip-vit-large-patch14."""
    dinov2_weights: Path | None = None
    """The file of DINOv2 ViT-L/14, where it cannot be downloaded."""
    inception_weights: Path | None = None
    """The file of FID's Inception network, where it cannot be downloaded."""
    lpips_weights: Path | None = None
    """The file of VGG-16, where it cannot be downloaded."""
    save_samples: Path | None = None
    """Also write the first seed's samples: a folder of PNGs, or X.npz for the ADM evaluator; the guidance is
    added to the name."""
    cache: Path | None = None
    """Folder of reference statistics. Default: gear-studio/references in the user's cache folder."""
    batch_size: Count | None = None
    """Images at a time on a device. Default: 250 up to 64 px, else 32."""
    device: Device = None

    def check(self) -> None:
        """Raise ValueError for values out of range, and for an unknown metric."""
        check(self)
        if self.size and not self.reference:
            raise InputError(
                f"--size {self.size} is for samples that are compared with a --reference; the run's own "
                "pictures are of its size, leave it out"
            )
        if unknown := sorted(set(self.metrics) - set(METRICS)):
            raise InputError(f"unknown metrics {', '.join(unknown)}; choose from {', '.join(METRICS)}")
