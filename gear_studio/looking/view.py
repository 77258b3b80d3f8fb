"""What is seen of a picture through a Run's models: computed when first asked for, then kept.

`Kept` is the store, shared by all who look. A `View` is one picture through one Run; two Views of the same
are the same to the store, so that a click computes only what nobody has computed yet.
"""

import dataclasses
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from contextlib import nullcontext
from functools import cached_property
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gear_studio import devices
from gear_studio.analysis import codes, features, typical
from gear_studio.analysis.reconstruction import psnr
from gear_studio.looking.pictures import SMALL, Picture
from gear_studio.models.teachers import Teacher
from gear_studio.readout import Assignment
from gear_studio.runs import Run

Value = TypeVar("Value")
LIMIT = 2**30  # bytes that `Kept` holds by default


class Kept:
    """Values by key, for many threads: the first to ask for a key computes its value, others wait for that
    one alone. What was used longest ago leaves when the values hold more than `limit` bytes. A failure goes
    to all who wait for it and is not kept."""

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self._futures: OrderedDict[Hashable, Future] = OrderedDict()  # the last used is last
        self._bytes: dict[Hashable, int] = {}  # of those that are done
        self.seconds: dict[Hashable, float] = {}  # what a computation has last taken
        self._lock = Lock()  # held for looking up, never while computing

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The value of `key`, by `compute` where it is not kept. Raises what `compute` raises."""
        with self._lock:
            future = self._futures.get(key)
            mine = future is None
            if future is None:
                future = self._futures[key] = Future()
            self._futures.move_to_end(key)
        if mine:
            try:
                value = compute()
            except BaseException as error:
                with self._lock:
                    del self._futures[key]
                future.set_exception(error)
                raise
            with self._lock:
                self._bytes[key] = count_bytes(value)
                self._forget()
            future.set_result(value)
        return future.result()

    def __contains__(self, key: Hashable) -> bool:
        """Whether the value of `key` is there without waiting."""
        with self._lock:
            return key in self._bytes

    @property
    def bytes(self) -> int:
        """How much is held."""
        with self._lock:
            return sum(self._bytes.values())

    def _forget(self) -> None:
        held = sum(self._bytes.values())
        for key in [key for key in self._futures if key in self._bytes]:
            if held <= self.limit:
                return
            held -= self._bytes.pop(key)
            del self._futures[key]


def count_bytes(value: Any) -> int:
    """Bytes of the numbers in a value: tensors, arrays, and those in tuples, lists and dataclasses."""
    if isinstance(value, Tensor | np.ndarray):
        return value.nbytes
    if isinstance(value, tuple | list):
        return sum(map(count_bytes, value))
    if dataclasses.is_dataclass(value):
        return sum(count_bytes(getattr(value, field.name)) for field in dataclasses.fields(value))
    return 64


class View:
    """One picture through the models of a Run. The models' device is where everything is computed and lies.

    run: with a tokenizer, its own or its parent's, in eval mode. key: equal for two Views of the same."""

    def __init__(self, kept: Kept, run: Run, picture: Picture):
        self.kept, self.run, self.picture = kept, run, picture
        self.tokenizer = run.tokenizer
        self.key = (str(run.folder), picture.key)

    def _keep(self, what: str | tuple, compute: Callable[[], Value]) -> Value:
        """The value of `compute`, kept under `what`, or under a tuple that begins with what it is."""

        @torch.no_grad()
        def timed() -> Value:
            large = self.tokenizer.config.image_size > SMALL
            begun = time.monotonic()
            with devices.all_cores() if large else nullcontext():
                value = compute()
            self.kept.seconds[self._kind(what)] = time.monotonic() - begun
            return value

        return self.kept.get((self.key, what), timed)

    def _kind(self, what: str | tuple) -> tuple[str, str]:
        return str(self.run.folder), what if isinstance(what, str) else what[0]

    def seconds(self, what: str) -> float | None:
        """How long the same has last taken with this Run, "z" say, or "decoded"; None at first."""
        return self.kept.seconds.get(self._kind(what))

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.tokenizer.grid

    @cached_property
    def image(self) -> Tensor:
        """The picture as the tokenizer takes it, (1, 3, S, S) in [-1, 1]."""
        device = next(self.tokenizer.parameters()).device
        size = self.tokenizer.config.image_size
        return self._keep("image", lambda: self.picture.tensor(size)).to(device)

    @property
    def z(self) -> Tensor:
        """Latents before quantization, (N, D)."""
        return self._keep("z", lambda: self.tokenizer.encode(self.image)[0])

    @property
    def assignment(self) -> Assignment:
        """Scores (1, N, K) and indices (1, N)."""
        return self._keep("assignment", lambda: self.tokenizer.quantizer.assign(self.z[None]))

    @property
    def indices(self) -> Tensor:
        """The tokens, (N,)."""
        return self.assignment.indices[0]

    @property
    def c_q(self) -> Tensor:
        """Code vectors after quantization, (N, D)."""
        return self._keep("c_q", lambda: self.tokenizer.quantizer.codes(self.assignment.indices)[0])

    @property
    def reconstruction(self) -> Tensor:
        """(3, S, S) in [-1, 1]."""
        return self.decode({})

    @property
    def psnr(self) -> float:
        """Of the reconstruction, in dB."""
        return float(psnr(self.reconstruction[None], self.image))

    @property
    def figures(self) -> dict[str, float]:
        """Of `typical.FIGURES`, to be compared with those of a `codes.Survey`."""

        def compute() -> tuple[float, ...]:
            found = typical.figures_of(self.assignment, self.image, self.reconstruction[None])
            return tuple(float(found[key]) for key in typical.FIGURES)

        return dict(zip(typical.FIGURES, self._keep("figures", compute), strict=True))

    def entropy(self, tau: float) -> Tensor:
        """Entropy of softmax(A / tau) of every token, (N,), in nats."""
        return self._keep(("entropy", tau), lambda: codes.token_entropy(self.assignment.scores[0], tau))

    def edited(self, edits: Mapping[int, int]) -> Tensor:
        """The tokens with some replaced, (N,): edits maps position -> code. Errors: as `codes.with_codes`."""
        return codes.with_codes(self.indices, edits, self.tokenizer.config.codes)

    def decode(self, edits: Mapping[int, int]) -> Tensor:
        """The picture decoded from edited tokens, (3, S, S) in [-1, 1]; without edits the reconstruction."""
        edited = self.edited(edits)
        changed = (edited != self.indices).nonzero()[:, 0].tolist()
        key = "decoded", *((place, int(edited[place])) for place in changed)
        return self._keep(key, lambda: self.tokenizer.decode(edited[None])[0])

    def teacher_features(self, name: str, teacher: Teacher) -> Tensor:
        """f(x) of a teacher, (N, d), one vector a token. name: what the teacher was asked for by."""
        return self._keep(("teacher", name), lambda: teacher(self.image)[0])

    def condition(self) -> Tensor | None:
        """The picture's own class as the generator's condition, (1,); None where it has none."""
        if self.run.config["recipe"].get("text_encoder"):
            return None  # it takes captions
        number = self.picture.class_number(self.run.config["classes"])
        return None if number is None else torch.tensor([number], device=self.image.device)

    def hidden(self, block: int) -> Tensor:
        """The generator's hidden states after a block (1-based), (N, d), teacher-forced on the tokens."""

        def compute() -> Tensor:
            return features.generator_features(
                self.run.generator, self.assignment.indices, [block], self.condition()
            )[0][0]

        return self._keep(("hidden", block), compute)

    def block_colors(self) -> list[Tensor]:
        """PCA as RGB of the hidden states after every block, (N, 3) each in [0, 1], teacher-forced."""

        def compute() -> list[Tensor]:
            blocks = range(1, self.run.generator.config.blocks + 1)
            states = features.generator_features(
                self.run.generator, self.assignment.indices, list(blocks), self.condition()
            )
            return [features.pca_rgb(state[0]) for state in states]

        return self._keep("block colors", compute)

    def alignment(self, teacher: Teacher, name: str) -> Tensor:
        """cos(g(h), f(x)) at the tap, (N,), with the teacher that the Run was aligned with."""
        return self._cosines(teacher, name).diagonal()

    def alignment_of_others(self, teacher: Teacher, name: str) -> float:
        """The same between different patches, the mean over all pairs: what is alike in any two patches of
        this picture, and so no sign of alignment."""
        cosines = self._cosines(teacher, name)
        count = len(cosines)
        return float((cosines.sum() - cosines.trace()) / (count * (count - 1)))

    def _cosines(self, teacher: Teacher, name: str) -> Tensor:
        """cos(g(h_i), f(x)_j), (N, N)."""

        def compute() -> Tensor:
            target = self.run.alignment_target(self.teacher_features(name, teacher)[None])
            return features.alignment_matrix(
                self.run.generator, self.run.projector, self.assignment.indices, target, self.condition()
            )[0]

        return self._keep("alignment", compute)
