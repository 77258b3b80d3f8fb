"""Probes: what a linear classifier, or a vote of nearest neighbours, can read off features.

Probing needs the world's truth, so it runs on `shapes`. Train and test pictures are disjoint, from the range
of the world that nothing trains on ("probe"), and another seed means other pictures: the spread over seeds is
the uncertainty.

Features are any function of images (B,3,S,S) in [-1,1] to (B,64,d), one row a cell of the world's 8 x 8
grid: a Teacher, or a place of a model by `features.to_function(run, "generator.3")`. S is the
argument `image_size`: 64, or what the tokenizer takes, `run.tokenizer.config.image_size`.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from gear_studio import data
from gear_studio.data.shapes import Shapes
from gear_studio.errors import InputError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

FeatureFunction = Callable[[torch.Tensor], torch.Tensor]
Probe = Callable[..., float]


def _fit_linear(train_x: np.ndarray, train_y: np.ndarray) -> "Pipeline":
    from sklearn.linear_model import LogisticRegression  # here: scikit-learn takes seconds to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(train_x, train_y)


def linear_probe(train_x, train_y, test_x, test_y) -> float:
    """Test accuracy in [0,1] of logistic regression on standardised features.

    x: (N,d), y: (N,) class ids, numpy arrays or CPU tensors. Standardised by the training rows alone.
    """
    train_x, train_y, test_x, test_y = map(np.asarray, (train_x, train_y, test_x, test_y))
    return float(_fit_linear(train_x, train_y).score(test_x, test_y))


def knn_probe(train_x, train_y, test_x, test_y, k: int = 20) -> float:
    """Test accuracy in [0,1] of the vote of the k nearest training rows by cosine; nothing is fitted.

    Shapes as in `linear_probe`. Raises ValueError when there are fewer than k training rows."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    train_x, train_y, test_x, test_y = map(np.asarray, (train_x, train_y, test_x, test_y))
    if not 1 <= k <= len(train_x):
        raise InputError(f"k is {k}; there are {len(train_x)} training rows, give a k of 1 to as many")
    # Of rows of length 1 the nearest by distance are the nearest by cosine, and a tree can look for them.
    probe = make_pipeline(Normalizer(), KNeighborsClassifier(k))
    return float(probe.fit(train_x, train_y).score(test_x, test_y))


def probe_patches(
    features: FeatureFunction,
    seed: int = 0,
    train_images: int = 1500,
    test_images: int = 800,
    patches: int = 6,
    probe: Probe = linear_probe,
    image_size: int = 64,
) -> dict[str, float]:
    """Accuracy of probes on held-out patches: of foreground on all, of texture and shape on object patches.

    features: images (B,3,S,S) in [-1,1] -> (B,64,d), such as a Teacher. From every picture `patches` object
    patches and as many background ones are drawn, so that a large object does not count for more. probe:
    `linear_probe`, or `knn_probe`. image_size: S in pixels, a multiple of 8; the scenes are the same at
    every size.
    Returns {"foreground", "texture", "shape"} in [0,1]; chance is 1/2, 1/4 and 1/6.
    """
    train, test = (
        _draw_patches(features, pictures, patches, seed, image_size)
        for pictures in _split_pictures(seed, train_images, test_images)
    )
    result = {"foreground": probe(train["x"], train["foreground"], test["x"], test["foreground"])}
    a, b = train["foreground"] == 1, test["foreground"] == 1
    for task in ("texture", "shape"):
        result[task] = probe(train["x"][a], train[task][a], test["x"][b], test[task][b])
    return result


def probe_images(
    features: FeatureFunction,
    seed: int = 0,
    train_images: int = 1500,
    test_images: int = 800,
    probe: Probe = linear_probe,
    image_size: int = 64,
) -> float:
    """Accuracy in [0,1] of a probe for the class of held-out images, from the mean of their patches.

    Chance is 1/24. features, seed, probe and image_size as in `probe_patches`."""
    arguments: list[np.ndarray] = []
    for pictures in _split_pictures(seed, train_images, test_images):
        batches = _read_batches(features, pictures, image_size)
        parts = [(x.mean(1), truth["label"].numpy()) for x, truth in batches]
        arguments += map(np.concatenate, zip(*parts, strict=True))
    return probe(*arguments)


def segmentation_iou(
    features: FeatureFunction,
    seed: int = 0,
    train_images: int = 500,
    test_images: int = 400,
    patches: int = 6,
    image_size: int = 64,
) -> float:
    """Intersection over union, in [0,1], of the patches that a linear probe calls foreground and those that
    are on the object.

    The probe is fitted as in `probe_patches` and predicts all 64 patches of every test image; counts are
    added over images before they are divided. At the resolution of the tokens: a patch is on the object when
    at least half of it is. A probe that calls every patch foreground scores the share of patches that are."""
    train_pictures, test_pictures = _split_pictures(seed, train_images, test_images)
    train = _draw_patches(features, train_pictures, patches, seed, image_size)
    probe = _fit_linear(train["x"], train["foreground"])
    both = either = 0
    for x, truth in _read_batches(features, test_pictures, image_size):
        predicted = probe.predict(x.reshape(-1, x.shape[-1])) == 1
        true = truth["patch_foreground"].flatten().numpy()
        both += (predicted & true).sum()
        either += (predicted | true).sum()
    return float(both / max(either, 1))


def _split_pictures(seed: int, train_images: int, test_images: int) -> tuple[range, range]:
    """Numbers of the pictures of a seed, to train and to test on."""
    first = seed * (train_images + test_images)
    middle = first + train_images
    return range(first, middle), range(middle, middle + test_images)


def _read_batches(
    features: FeatureFunction, pictures: range, image_size: int
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Features (b,64,d) and truth of the pictures, batch by batch. Raises ValueError for features of another
    shape."""
    world = Shapes("probe", image_size)
    for start in range(0, len(pictures), 100):
        truth = world.truth(pictures[start : start + 100])
        with torch.inference_mode():
            x = features(data.to_float(truth["image"])).float().cpu().numpy()
        expected = truth["patch_foreground"].flatten(1).shape
        if x.ndim != 3 or x.shape[:2] != expected:
            raise InputError(
                f"features of {expected[0]} images have shape {x.shape}; expected ({expected[0]}, "
                f"{expected[1]}, d), one row a cell of the world's grid"
            )
        yield x, truth


def _draw_patches(
    features: FeatureFunction, pictures: range, patches: int, seed: int, image_size: int
) -> dict[str, np.ndarray]:
    """Features "x" (n,d) of `patches` object patches and as many background ones of every picture, or fewer
    where it has fewer; and of each row the truth, (n,): "foreground", "texture" and "shape"."""
    rng = np.random.default_rng((seed, pictures.start))
    drawn: dict[str, list[np.ndarray]] = {"x": [], "foreground": [], "texture": [], "shape": []}
    for x, truth in _read_batches(features, pictures, image_size):
        foreground = truth["patch_foreground"].flatten(1).numpy()
        # The highest random numbers among object patches, and among background patches, of each picture.
        ranks = rng.random(foreground.shape)
        for wanted in (True, False):
            order = np.argsort(np.where(foreground == wanted, -ranks, 1.0), axis=1)[:, :patches]
            rows = np.arange(len(order))[:, None]
            keep = foreground[rows, order] == wanted
            drawn["x"].append(x[rows, order][keep])
            drawn["foreground"].append(np.full(keep.sum(), int(wanted)))
            for task in ("texture", "shape"):
                drawn[task].append(truth[f"patch_{task}"].flatten(1).numpy()[rows, order][keep])
    return {name: np.concatenate(parts) for name, parts in drawn.items()}
