"""Digits: 1,797 real handwritten digits that come with scikit-learn, enlarged.

Source: the optical recognition of handwritten digits set (Alpaydin and Kaynak, UCI, 1998), 8x8 pixels of 17
grays, its test part.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from gear_studio.data.source import Batch, ListedSource, check_split, digest_arrays

_VAL = 297  # 1,500 are left to train on


class Digits(ListedSource):
    """White digits on black, ten classes; satisfies `Source`.

    split: train (1,500) or val (297), always the same ones. image_size: pixels a side, resized bicubically.
    Raises ValueError for an unknown split.
    """

    name = "digits"
    balanced = True

    def __init__(self, split: str = "train", image_size: int = 64) -> None:
        from sklearn.datasets import load_digits  # here: it takes seconds to import, and few ask for digits

        check_split(self.name, split)
        self.classes = [str(digit) for digit in range(10)]
        self.image_size = image_size
        scans = load_digits()
        order = np.random.default_rng(0).permutation(len(scans.target))
        numbers = order[_VAL:] if split == "train" else order[:_VAL]
        small = torch.from_numpy(scans.images[numbers]).float()[:, None] * (255 / 16)
        large = F.interpolate(small, size=(image_size, image_size), mode="bicubic", align_corners=False)
        self._gray = large.round().clamp(0, 255).to(torch.uint8)
        self._labels = torch.from_numpy(scans.target[numbers]).long()

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, indices: Sequence[int], rngs: Sequence[np.random.Generator] | None = None) -> Batch:
        """{"image": uint8 (B,3,H,W), "label": int64 (B,)}; rngs shift by up to a sixteenth of the side."""
        rows = torch.as_tensor(indices)
        gray = self._gray[rows]
        if rngs is not None:
            gray = torch.stack([self._shift(one, rng) for one, rng in zip(gray, rngs, strict=True)])
        return {"image": gray.repeat(1, 3, 1, 1), "label": self._labels[rows]}

    def fingerprint(self) -> str:
        """A digest of the pictures and labels."""
        return digest_arrays(self._gray, self._labels)

    def _shift(self, gray: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        reach = self.image_size // 16
        left, top = rng.integers(0, 2 * reach, size=2, endpoint=True)
        padded = F.pad(gray, (reach, reach, reach, reach))
        return padded[:, top : top + self.image_size, left : left + self.image_size]
