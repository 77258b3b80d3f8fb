"""Linear probes: what can be read off patch features with a linear classifier and nothing else.

Probing needs the world's truth, so it runs on `shapes`. Train and test pictures are disjoint, from the range
of the world that nothing trains on ("probe"), and another seed means other pictures.
"""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gear_studio import data

Features = Callable[[torch.Tensor], torch.Tensor]


def linear_probe(train_x, train_y, test_x, test_y) -> float:
    """Test accuracy in [0,1] of logistic regression on standardised features.

    x: (N,d), y: (N,) class ids, numpy arrays or CPU tensors. Standardised by the training rows alone.
    """
    train_x, train_y, test_x, test_y = map(np.asarray, (train_x, train_y, test_x, test_y))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    return float(probe.fit(train_x, train_y).score(test_x, test_y))


def probe_patches(
    features: Features, seed: int = 0, train_images: int = 1500, test_images: int = 800, patches: int = 6
) -> dict[str, float]:
    """Accuracy of linear probes on held-out patches: foreground; texture and shape on object patches.

    features: images (B,3,64,64) in [-1,1] -> (B,64,d), such as a Teacher. From every picture `patches` object
    patches and as many background ones are drawn, so that a large object does not count for more.
    Returns {"foreground", "texture", "shape"} in [0,1]; chance is 1/2, 1/4 and 1/6.
    """
    first = seed * (train_images + test_images)
    train = _patches(features, range(first, first + train_images), patches, seed)
    test = _patches(features, range(first + train_images, first + train_images + test_images), patches, seed)
    on_object = [part["foreground"] == 1 for part in (train, test)]
    result = {"foreground": linear_probe(train["x"], train["foreground"], test["x"], test["foreground"])}
    for task in ("texture", "shape"):
        (a, b) = on_object
        result[task] = linear_probe(train["x"][a], train[task][a], test["x"][b], test[task][b])
    return result


def _patches(features: Features, indices: range, patches: int, seed: int) -> dict[str, np.ndarray]:
    world = data.load("shapes", split="probe")
    rng = np.random.default_rng((seed, indices.start))
    found: dict[str, list[np.ndarray]] = {"x": [], "foreground": [], "texture": [], "shape": []}
    for start in range(0, len(indices), 100):
        truth = world.truth(indices[start : start + 100])
        with torch.inference_mode():
            x = features(data.to_float(truth["image"])).float().numpy()
        foreground = truth["patch_foreground"].flatten(1).numpy()
        # The highest random numbers among object patches, and among background patches, of each picture.
        ranks = rng.random(foreground.shape)
        for wanted in (True, False):
            order = np.argsort(np.where(foreground == wanted, -ranks, 1.0), axis=1)[:, :patches]
            rows = np.arange(len(order))[:, None]
            keep = foreground[rows, order] == wanted
            found["x"].append(x[rows, order][keep])
            found["foreground"].append(np.full(keep.sum(), int(wanted)))
            for task in ("texture", "shape"):
                found[task].append(truth[f"patch_{task}"].flatten(1).numpy()[rows, order][keep])
    return {name: np.concatenate(parts) for name, parts in found.items()}
