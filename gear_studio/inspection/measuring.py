"""What is measured of one picture, of all pictures, and between tokenizers that saw the same.

Notable:
- A reconstruction is rounded to 8 bits first, as everywhere: what a file would hold is measured.
- Measures that are means over pictures come with their standard deviation over pictures. Two tokenizers'
  differ by a paired difference, its interval a bootstrap over pictures.
- CKA and CKNNA have the interval of `similarity.interval` instead, from halves of the pictures: in a
  bootstrap copies of a row would be each other's nearest neighbours.
"""

import csv
import functools
import math
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from gear_studio import official
from gear_studio.analysis.codebook import assignment_statistics, usage_statistics
from gear_studio.analysis.codes import token_entropy
from gear_studio.analysis.features import pca_rgb
from gear_studio.analysis.reconstruction import psnr, ssim
from gear_studio.analysis.similarity import Estimate, cka, cknna, interval, null_baseline
from gear_studio.analysis.statistics import Moments, frechet_distance
from gear_studio.data.images import to_float, to_uint8
from gear_studio.devices import choose_device
from gear_studio.errors import InputError, MissingError
from gear_studio.files import atomic, write_json
from gear_studio.inspection.picture_cache import Part, Parts
from gear_studio.inspection.pictures import Chosen, choose_pictures
from gear_studio.inspection.request import Inspectable, Inspection
from gear_studio.models.feature_maps import LITE0_MEAN, LITE0_STD, load_lite0_classifier
from gear_studio.models.inception import Inception
from gear_studio.models.perceptual import LPIPS
from gear_studio.models.pretrained import fingerprint
from gear_studio.models.published import SUFFIXES
from gear_studio.models.teachers import Teacher, to_size
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.places import ZOO, find_folder
from gear_studio.ranges import check
from gear_studio.readout import Assignment
from gear_studio.runs import Run
from gear_studio.training.run_folder import device_name, versions

SHOWN = 12  # pictures in the page, evenly spread over all
RESAMPLES = 2000  # of the bootstrap over pictures
KINDS = ("z", "c_q")  # a tokenizer's features, before and after quantization
CLASSIFIER = "efficientnet-lite0"


# Tokenizers


class OfStudio:
    """A `Tokenizer` of this package as `Inspectable`; its encoder runs once for a picture."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.image_size = tokenizer.config.image_size
        self._last: tuple[Tensor, Tensor] | None = None

    def _encode(self, images: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not images:
            self._last = images, self.tokenizer.encode(images)
        return self._last[1]

    def assign(self, images: Tensor) -> Assignment:
        return self.tokenizer.quantizer.assign(self._encode(images))

    def decode(self, indices: Tensor) -> Tensor:
        return self.tokenizer.decode(indices)

    def latents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z, quantizer = self._encode(images), self.tokenizer.quantizer
        return z, quantizer.codes(quantizer.indices(z))


def load_tokenizers(names: Sequence[str], image_size: int = 256) -> dict[str, Inspectable]:
    """Folders of runs, names of shipped ones or released files -> tokenizers by short names.

    image_size: of released files. Raises ValueError for one that is named twice or does not go with the size,
    and as `Run.from_pretrained` and `official.load_tokenizer`."""
    if len(set(names)) < len(names):
        raise InputError(f"tokenizers {', '.join(names)}: name each one once")
    short = [Path(name).stem if Path(name).suffix in SUFFIXES else Path(name).name for name in names]
    return {
        brief if short.count(brief) == 1 else name: OfStudio(_load_tokenizer(name, image_size))
        for name, brief in zip(names, short, strict=True)
    }


def _load_tokenizer(name: str, image_size: int) -> Tokenizer:
    is_file = Path(name).is_file() or Path(name).suffix in SUFFIXES
    if Path(name).is_dir() or (ZOO / name).is_dir() or not (is_file or "/" in name):
        return Run(find_folder(name)).tokenizer
    if not is_file and name.count("/") == 1:  # of the Hub: a run, or a released file
        with suppress(MissingError):
            return Tokenizer.from_pretrained(name)
    tokenizer = official.load_tokenizer(name, image_size)
    stride = tokenizer.config.patch * 2 ** (len(tokenizer.config.multipliers) - 1)
    if image_size % stride:
        raise InputError(f"--image-size {image_size}: {name} takes multiples of {stride} pixels")
    return tokenizer


@dataclass(frozen=True)
class Subject:
    """A tokenizer to look at. description: what the report says about it. identity: changes with it; kept:
    whether that can be known."""

    name: str
    tokenizer: Inspectable
    description: dict
    identity: str
    kept: bool


def _prepare(name: str, tokenizer: Inspectable, device: torch.device) -> Subject:
    if isinstance(tokenizer, Tokenizer):
        tokenizer = OfStudio(tokenizer)
    if not isinstance(tokenizer, Inspectable):
        raise InputError(
            f"{name} is a {type(tokenizer).__name__}; a tokenizer to look at has image_size, assign, decode "
            "and latents (gear_studio.inspection.Inspectable)"
        )
    module: Any = tokenizer.tokenizer if isinstance(tokenizer, OfStudio) else tokenizer
    config, description = getattr(module, "config", None), {"kind": type(module).__name__}
    if isinstance(module, Tokenizer):
        description = {"kind": module.config.quantizer, **asdict(module.config)}
    own = getattr(module, "fingerprint", None)
    if isinstance(module, nn.Module):
        module.to(device).eval()
        identity = f"{type(module).__qualname__} {config!r} {fingerprint(module)}"
    else:
        identity = own() if own else uuid.uuid4().hex
    known = isinstance(module, nn.Module) or own is not None
    return Subject(name, tokenizer, description, identity, known)


# Networks that judge


@dataclass(frozen=True)
class Judges:
    """The networks that were asked for. identity: of the weights of those that judge reconstructions."""

    identity: list[str]
    lpips: LPIPS | None = None
    inception: Inception | None = None
    classifier: nn.Module | None = None


def _load_judges(asked: Inspection, with_classes: bool, device: torch.device) -> Judges:
    lpips = LPIPS(asked.lpips_weights).to(device) if "lpips" in asked.metrics else None
    inception = Inception(asked.inception_weights).to(device) if "rfid" in asked.metrics else None
    classifier = load_lite0_classifier().to(device) if with_classes else None
    networks = (lpips, inception, classifier)
    identity = [f"{type(net).__name__} {fingerprint(net)}" for net in networks if net is not None]
    return Judges(identity, lpips, inception, classifier)


def _classify(classifier: nn.Module, image: Tensor) -> tuple[int, Tensor]:
    """The class that EfficientNet-Lite0 sees in an image (1, 3, H, W) in [-1, 1], and all probabilities."""
    mean, std = (image.new_tensor(values).view(1, 3, 1, 1) for values in (LITE0_MEAN, LITE0_STD))
    probabilities = classifier(((to_size(image, 224) + 1) / 2 - mean) / std)[0].softmax(-1)
    return int(probabilities.argmax()), probabilities


# One picture


def _positions(number: int, tokens: int, count: int, asked: Inspection) -> np.ndarray:
    """Which patches stand for a picture at patch level: the same for every tokenizer of so many tokens."""
    rows = min(tokens, max(1, asked.patches // count))
    return np.sort(np.random.default_rng([asked.seed, number]).permutation(tokens)[:rows])


def _as_rows(features: Tensor, positions: np.ndarray) -> Part:
    """features (N, d) -> the rows that were drawn, and their mean over the picture."""
    features = features.float().cpu()
    return {"rows": features[torch.from_numpy(positions)].numpy(), "mean": features.mean(0).numpy()}


@torch.no_grad()
def _look(
    subject: Subject, judges: Judges, picture: Tensor, number: int, count: int, shown: bool, asked: Inspection
) -> Part:
    """Everything that is kept of one picture by one tokenizer. picture: uint8 (3, S, S) on the device."""
    tokenizer, images = subject.tokenizer, to_float(picture[None])
    assignment = tokenizer.assign(images)
    tokens = assignment.indices.shape[1]
    if math.isqrt(tokens) ** 2 != tokens or assignment.scores.shape[:2] != assignment.indices.shape:
        raise InputError(
            f"{subject.name} gives scores {tuple(assignment.scores.shape)} and indices "
            f"{tuple(assignment.indices.shape)}; expected (1, N, K) and (1, N), N a square number"
        )
    decoded = to_uint8(tokenizer.decode(assignment.indices))
    again = to_float(decoded)
    numbers = {"psnr": psnr(again, images), "ssim": ssim(again, images)}
    if judges.lpips:
        numbers["lpips"] = judges.lpips(again, images)
    numbers |= assignment_statistics(assignment.scores, asked.tau)
    z, c_q = tokenizer.latents(images)
    grid = math.isqrt(tokens)
    part: Part = {
        "indices": assignment.indices[0].cpu().numpy(),
        "codes": np.array(assignment.scores.shape[-1]),
        "colors": F.adaptive_avg_pool2d(picture[None].float() / 255, grid)[0].flatten(1).T.cpu().numpy(),
    }
    if judges.classifier is not None:
        (first, of_first), (second, of_second) = (
            _classify(judges.classifier, each) for each in (images, again)
        )
        numbers["class_kept"] = torch.tensor(float(first == second))
        part["classes"] = np.array([first, second])
        part["sureness"] = np.array([of_first[first].item(), of_second[first].item()])
    if judges.inception:
        for kind, each in (("real", picture[None]), ("made", decoded)):
            part[f"inception_{kind}"] = judges.inception(each)["fid"][0].cpu().numpy()
    part |= {f"number_{name}": np.array(float(value)) for name, value in numbers.items()}
    positions = _positions(number, tokens, count, asked)
    for kind, features in zip(KINDS, (z[0], c_q[0]), strict=True):
        part |= {f"{kind}_{name}": value for name, value in _as_rows(features, positions).items()}
        if shown:
            part[f"{kind}_pca"] = pca_rgb(features).cpu().numpy()
    if shown:
        part["reconstruction"] = decoded[0].cpu().numpy()
        part["entropy_map"] = token_entropy(assignment.scores[0], asked.tau).cpu().numpy()
    return part


@torch.no_grad()
def _look_as_teacher(teacher: Teacher, picture: Tensor, positions: np.ndarray, shown: bool) -> Part:
    features = teacher(to_float(picture[None]))[0]
    return _as_rows(features, positions) | ({"pca": pca_rgb(features).cpu().numpy()} if shown else {})


# All pictures


@dataclass
class Seen:
    """What one tokenizer did with all pictures.

    numbers: measure -> (n,), one a picture. counts: (K,), tokens of each code; colors: (K, 3), mean colour of
    its patches. shown: number of a picture -> its maps and reconstruction, and "f_pca", the teacher's. rows:
    (level, z, c_q or f) -> (R, d); groups: level -> the picture of each row. keys: names of the folders of
    its parts. summary: what report.json has."""

    subject: Subject
    numbers: dict[str, np.ndarray]
    counts: Tensor
    colors: Tensor
    shown: dict[int, Part]
    classes: np.ndarray | None
    sureness: np.ndarray | None
    rows: dict[tuple[str, str], Tensor]
    groups: dict[str, Tensor]
    keys: list[str]
    tokens: int
    summary: dict = field(default_factory=dict)


@dataclass
class Measured:
    """An inspection's results: of each tokenizer, and the first against each other. record: how they came
    about."""

    asked: Inspection
    pictures: Chosen
    seen: dict[str, Seen]
    differences: dict[str, dict]
    record: dict

    @property
    def shown(self) -> list[int]:
        """The numbers of the pictures in the page."""
        return shown_of(len(self.pictures))


def shown_of(count: int) -> list[int]:
    return sorted({round(at) for at in np.linspace(0, count - 1, min(SHOWN, count))})


def measure(tokenizers: Mapping[str, Inspectable], asked: Inspection, progress: bool = True) -> Measured:
    """Look at every picture with every tokenizer. progress: whether bars are drawn meanwhile. Raises
    ValueError where a tokenizer or the teacher does not fit, FileNotFoundError or ImportError where weights
    cannot be had."""
    check(asked)
    if not tokenizers:
        raise InputError("no tokenizer was named; give a run, a shipped run's name or a released file")
    started = time.perf_counter()
    device = choose_device(asked.device)
    pictures = choose_pictures(asked.pictures, asked.count, asked.seed)
    subjects = [_prepare(name, tokenizer, device) for name, tokenizer in tokenizers.items()]
    judges = _load_judges(asked, asked.teacher == CLASSIFIER and pictures.photographs, device)
    seen = {each.name: _see(each, judges, pictures, asked, device, progress) for each in subjects}
    first, *others = seen.values()
    differences = {other.subject.name: _compare(first, other, asked) for other in others}
    teacher = Teacher.from_pretrained(asked.teacher, None, asked.teacher_weights)
    record = {
        "command": asked.command(list(tokenizers)),
        "versions": versions(),
        "device": device_name(device),
        "seconds": round(time.perf_counter() - started, 1),
        "settings": {name: _plain(value) for name, value in asdict(asked).items()},
        "pictures": {
            "source": pictures.title,
            "count": len(pictures),
            "passed_over": pictures.passed_over,
            "identity": pictures.identity,
        },
        "teacher": {"name": teacher.name, "note": teacher.note, "sha256": teacher.fingerprint()},
        "protocol": _protocol(pictures, teacher, seen, asked),
    }
    for subject in subjects:
        if not subject.kept:
            for key in seen[subject.name].keys:
                shutil.rmtree(asked.out / "parts" / key, ignore_errors=True)
    return Measured(asked, pictures, seen, differences, record)


def _protocol(pictures: Chosen, teacher: Teacher, seen: Mapping[str, Seen], asked: Inspection) -> str:
    rows = {name: len(each.groups["patch"]) for name, each in seen.items()}
    drawn = ", ".join(f"{count} rows ({name})" for name, count in rows.items())
    if len(set(rows.values())) == 1:
        drawn = f"{next(iter(rows.values()))} rows"
    return (
        f"{len(pictures)} pictures ({pictures.title}), middle squares; f(x) of {teacher.name}, last block, "
        f"one patch a token, no spatial norm; patch level: {drawn}, equally many of every picture, "
        f"drawn (seed {asked.seed}); image level: mean of patches; linear CKA, debiased; CKNNA, k = 10; "
        "intervals of 95 % from halves of the pictures"
        + (", rough for so few pictures" if len(pictures) < 20 else "")
        + "; chance: rows shuffled"
    )


def _see(
    subject: Subject,
    judges: Judges,
    pictures: Chosen,
    asked: Inspection,
    device: torch.device,
    progress: bool,
) -> Seen:
    """Look at all pictures with one tokenizer, one by one; what is kept already is not done again."""
    count, size, shown = len(pictures), subject.tokenizer.image_size, shown_of(len(pictures))
    common = {"pictures": pictures.identity, "size": size, "patches": asked.patches, "seed": asked.seed}
    settings = {"tokenizer": subject.identity, "tau": asked.tau, "judges": judges.identity}
    parts = Parts(asked.out, "tokenizer", common | settings)

    def look(number: int) -> Part:
        picture = pictures.read(number, size).to(device)
        return _look(subject, judges, picture, number, count, number in shown, asked)

    tokens = len(parts.get(0, lambda: look(0))["indices"])
    teacher = Teacher.from_pretrained(asked.teacher, math.isqrt(tokens), asked.teacher_weights).to(device)
    settings = {"teacher": teacher.identity()}
    teacher_parts = Parts(asked.out, "teacher", common | settings)

    def look_as_teacher(number: int) -> Part:
        picture = pictures.read(number, size).to(device)
        return _look_as_teacher(teacher, picture, _positions(number, tokens, count, asked), number in shown)

    each: dict[str, list[np.ndarray]] = {}
    maps: dict[int, Part] = {}
    inception: dict[str, Moments] = {}
    bar = {"desc": f"looking with {subject.name}", "unit": "picture", "disable": not progress}
    for number in tqdm(range(count), **bar):
        part = parts.get(number, functools.partial(look, number))
        of_teacher = teacher_parts.get(number, functools.partial(look_as_teacher, number))
        for kind in ("real", "made") if judges.inception else ():
            of_picture = torch.from_numpy(part.pop(f"inception_{kind}"))[None]
            inception.setdefault(kind, Moments(of_picture.shape[1])).add(number, of_picture)
        if number in shown:
            maps[number] = part | {"f_pca": of_teacher["pca"]}
        small = part | {f"f_{name}": of_teacher[name] for name in ("rows", "mean")}
        for name, value in small.items():
            if name not in ("reconstruction", "entropy_map") and not name.endswith("_pca"):
                each.setdefault(name, []).append(value)
    indices, codes = torch.from_numpy(np.concatenate(each["indices"])), int(each["codes"][0])
    counts = torch.bincount(indices, minlength=codes)
    sums = torch.zeros(codes, 3).index_add_(0, indices, torch.from_numpy(np.concatenate(each["colors"])))
    rows = {}
    for kind in (*KINDS, "f"):
        rows["patch", kind] = torch.from_numpy(np.concatenate(each[f"{kind}_rows"]))
        rows["image", kind] = torch.from_numpy(np.stack(each[f"{kind}_mean"]))
    numbers = {
        name.removeprefix("number_"): np.array(values, float)
        for name, values in each.items()
        if name.startswith("number_")
    }
    seen = Seen(
        subject,
        numbers,
        counts,
        torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), 0.5),
        maps,
        np.stack(each["classes"]) if "classes" in each else None,
        np.stack(each["sureness"]) if "sureness" in each else None,
        rows,
        {
            "patch": torch.arange(count).repeat_interleave(len(each["f_rows"][0])),
            "image": torch.arange(count),
        },
        [parts.folder.name, teacher_parts.folder.name],
        tokens,
    )
    seen.summary = _summarize(seen, inception)
    likeness = f"likeness-{teacher_parts.key}"
    seen.summary["likeness"] = parts.get_value(likeness, lambda: _measure_likeness(seen, asked.seed))
    return seen


def _summarize(seen: Seen, inception: Mapping[str, Moments]) -> dict:
    measures = {}
    for name, values in seen.numbers.items():
        std = float(values.std(ddof=1)) if len(values) > 1 else None
        measures[name] = {"mean": _plain(float(values.mean())), "std": _plain(std)}
    total = int(seen.counts.sum())
    usage = {name: value.item() for name, value in usage_statistics(seen.counts).items()}
    summary: dict = {
        "description": seen.subject.description,
        "image_size": seen.subject.tokenizer.image_size,
        "tokens": seen.tokens,
        "codes": len(seen.counts),
        "measures": measures,
        "codebook": {**usage, "usage_at_most": min(1.0, total / len(seen.counts)), "tokens": total},
    }
    if inception:
        enough = len(next(iter(seen.numbers.values()))) > 1
        sides = [inception[kind].result() for kind in ("real", "made")] if enough else []
        summary["rfid"] = frechet_distance(*sides) if enough else None
    return summary


def _measure_likeness(seen: Seen, seed: int) -> dict:
    """CKA and CKNNA of z and c_q with f(x), at both levels: {level: {z or c_q: {"cka", "cknna"}}}."""
    result: dict = {}
    for level, groups in seen.groups.items():
        result[level] = {
            kind: {
                name: _estimate(taken, seen.rows[level, kind], seen.rows[level, "f"], groups, seed)
                for name, taken in (("cka", cka), ("cknna", cknna))
            }
            for kind in KINDS
        }
    return result


def _estimate(taken: Callable, x: Tensor, y: Tensor, groups: Tensor, seed: int) -> dict:
    """A measure with interval and chance; without an interval where pictures are too few; or why it cannot
    be taken."""
    try:
        return _of_estimate(interval(taken, x, y, groups, seed=seed))
    except ValueError as error:
        reason = str(error)
    try:
        null = null_baseline(taken, x, y, permutations=20, seed=seed)
        return _of_estimate(Estimate(taken(x, y), math.nan, math.nan, null)) | {"why": reason}
    except ValueError as error:
        return {"value": None, "low": None, "high": None, "chance": None, "why": str(error)}


def _of_estimate(estimate: Estimate) -> dict:
    return {name: _plain(getattr(estimate, name)) for name in ("value", "low", "high")} | {
        "chance": estimate.null and {name: _plain(value) for name, value in asdict(estimate.null).items()}
    }


# Between tokenizers


def _compare(first: Seen, other: Seen, asked: Inspection) -> dict:
    """Paired differences over the same pictures, other minus first, each with its interval of 95 %."""
    names = [name for name in first.numbers if name in other.numbers]
    gains = np.stack([other.numbers[name] - first.numbers[name] for name in names], 1)
    result = {"measures": dict(zip(names, bootstrap(gains, asked.seed), strict=True)), "likeness": {}}
    for level, groups in first.groups.items():
        if not torch.equal(groups, other.groups[level]) or (
            level == "patch" and first.tokens != other.tokens
        ):
            continue  # patches of other places
        result["likeness"][level] = {
            kind: {"cka": _compare_cka(first, other, level, kind, asked.seed)} for kind in KINDS
        }
    return result


def bootstrap(gains: np.ndarray, seed: int) -> list[dict]:
    """Means over pictures of differences (n, m), each with the percentile interval of a bootstrap over
    pictures; without one for a single picture."""
    rng, n = np.random.default_rng(seed), len(gains)
    if n < 2:
        return [{"value": _plain(float(gain)), "low": None, "high": None} for gain in gains[0]]
    means = np.stack([gains[rng.integers(n, size=n)].mean(0) for _ in range(RESAMPLES)])
    with np.errstate(invalid="ignore"):
        ends = np.quantile(means, [0.025, 0.975], axis=0).T
    return [
        {"value": _plain(float(mean)), "low": _plain(float(low)), "high": _plain(float(high))}
        for mean, (low, high) in zip(gains.mean(0), ends, strict=True)
    ]


def _compare_cka(first: Seen, other: Seen, level: str, kind: str, seed: int) -> dict:
    """How much more CKA with f(x) `other` has than `first`; halves of the pictures are the same for both."""
    sides = [torch.cat([side.rows[level, kind], side.rows[level, "f"]], 1) for side in (first, other)]
    widths = [side.rows[level, kind].shape[1] for side in (first, other)]

    def difference(x: Tensor, y: Tensor) -> float:
        before, after = (cka(each[:, :d], each[:, d:]) for each, d in zip((x, y), widths, strict=True))
        return after - before

    try:
        x, y = sides
        return _of_estimate(interval(difference, x, y, first.groups[level], permutations=0, seed=seed))
    except ValueError as error:
        return {"value": None, "low": None, "high": None, "why": str(error)}


# Files


def _plain(value: Any) -> Any:
    """As JSON has it: paths as text, what is not finite as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def class_name(number: int) -> str:
    return _class_names()[number]


@functools.cache
def _class_names() -> list[str]:
    return official.class_names(1000)


def write_numbers(measured: Measured) -> None:
    """Write report.json and pictures.csv, a row a picture and tokenizer."""
    out = measured.asked.out
    tokenizers = {name: seen.summary for name, seen in measured.seen.items()}
    report = {
        **measured.record,
        "tokenizers": tokenizers,
        "first": next(iter(measured.seen)),
        "differences": measured.differences,
    }
    write_json(out / "report.json", report)
    first = next(iter(measured.seen.values()))
    columns = list(first.numbers)
    header = ["picture", "tokenizer", *columns]
    if first.classes is not None:
        header += ["class_of_picture", "its_probability", "class_of_reconstruction", "probability_left"]
    with atomic(out / "pictures.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header)
        for number, picture in enumerate(measured.pictures.names):
            for name, seen in measured.seen.items():
                row = [picture, name, *(seen.numbers[column][number] for column in columns)]
                if seen.classes is not None and seen.sureness is not None:
                    (was, became), (sure, left) = seen.classes[number], seen.sureness[number]
                    row += [class_name(was), sure, class_name(became), left]
                table.writerow(row)
