"""The networks whose features pictures are compared in: the teacher, DINOv2 and Inception."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gear_studio import data
from gear_studio.analysis.metrics import METRICS, EvaluationOptions
from gear_studio.analysis.statistics import Moments, Points, Predictions
from gear_studio.errors import InputError
from gear_studio.models import dinov2, inception
from gear_studio.models.pretrained import fingerprint
from gear_studio.models.teachers import Teacher


class FeatureNetworks:
    """The networks that `metrics` need, and no others: uint8 pictures (B, 3, H, W) on their device ->
    features (B, d) by metric.

    FD's features are the teacher's patches averaged. Published FD-DINOv2 (`fd-dinov2`) takes the class token
    of DINOv2 ViT-L instead; the two do not compare, whatever the teacher."""

    def __init__(
        self,
        metrics: Sequence[str],
        load_teacher: Callable[[], Teacher],
        options: EvaluationOptions,
        device: torch.device,
    ):
        self.device = device
        self.teacher: Teacher | None = None
        self.networks: dict[str, nn.Module] = {}
        self.dims = {**inception.DIMS, "pr": inception.DIMS["fid"]}  # width of the features, by metric
        needed = {METRICS[metric].network for metric in metrics}
        if "teacher" in needed:
            self.teacher = self.networks["teacher"] = load_teacher().to(device)
            self.dims["fd"] = self.teacher.dim
        if "dinov2" in needed:
            self.networks["dinov2"] = network = dinov2.DINOv2(options.dinov2_weights).to(device)
            self.dims |= {m: cast(int, network.dim) for m in metrics if METRICS[m].network == "dinov2"}
        if "inception" in needed:
            self.networks["inception"] = inception.Inception(options.inception_weights).to(device)
        self._fingerprints: dict[str, str] = {}

    def __call__(self, pictures: Tensor, metrics: Sequence[str]) -> dict[str, Tensor]:
        needed = {METRICS[metric].network for metric in metrics}
        features: dict[str, Tensor] = {}
        if "teacher" in needed:
            features["fd"] = self.networks["teacher"](data.to_float(pictures)).mean(1)
        if "dinov2" in needed:
            token = self.networks["dinov2"](pictures)
            features |= {metric: token for metric in metrics if METRICS[metric].network == "dinov2"}
        if "inception" in needed:
            features |= self.networks["inception"](pictures)
            features["pr"] = features["fid"]
        return {metric: features[metric] for metric in metrics}

    def fingerprint(self, metric: str) -> str:
        """What tells the network of a metric from others, weights included."""
        name = METRICS[metric].network
        if name is None:
            raise InputError(f"metric {metric} is not taken in the features of a network")
        if name not in self._fingerprints:
            network = self.networks[name]
            own = f"{type(network).__name__} {fingerprint(network)}"
            self._fingerprints[name] = network.identity() if isinstance(network, Teacher) else own
        return self._fingerprints[name]

    def start_summary(self, metric: str, count: int, stride: int) -> Moments | Predictions | Points:
        """An empty summary of `count` pictures, to which their features are added. stride: every how manieth
        feature point is kept."""
        summary = METRICS[metric].summary
        if summary is Predictions:
            return Predictions(count, inception.CLASSES, self.device)
        if summary is Points:
            return Points(count, self.dims[metric], stride, self.device)
        return Moments(self.dims[metric], self.device)
