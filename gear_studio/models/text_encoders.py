"""Text encoders: captions -> frozen features, one a word, that `CaptionCondition` takes.

An encoded caption is (T, 1 + dim): channel 0 is 1 where there is a word and 0 at padding, on the right; the
others are the word's features. Two kinds:

- `Words`, for the small world. It is not trained and needs no file: a word's features are signs read off a
  hash of its letters, and its place in the caption. Every word has features, so there is no vocabulary; a
  word that training never showed is a direction the generator has not met. What words mean together is
  learnt by the generator's own text blocks. A trained encoder can be measured against this one by giving it
  the same interface.
- `LanguageModel`, for real captions: the last hidden states of any encoder or decoder of the Hugging Face
  Hub, Qwen3-1.7B in the paper.
"""

import hashlib
import json
import re
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from gear_studio.devices import choose_device
from gear_studio.files import digest_file
from gear_studio.models.pretrained import fingerprint
from gear_studio.models.published import loading_transformers

OPTION = "--set text_encoder=FOLDER, or text_encoder in a run's config.json"
LENGTH = 20  # words of a caption of the small world: the longest has 18


class TextEncoder(Protocol):
    """name: as `load_text_encoder` takes it. dim: features a word. length: T, positions of a caption."""

    name: str
    dim: int
    length: int

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Captions (B) -> (B, T, 1 + dim) on the encoder's own device, in its precision. What is longer than
        T is cut, with one warning."""
        ...

    def words(self, caption: str) -> list[str]:
        """The words (a language model's: tokens) at the positions that are not padding."""
        ...

    def count_cut(self, caption: str) -> int:
        """How many words (a language model's: tokens) of a caption are cut off its end."""
        ...

    def fingerprint(self) -> str:
        """A digest of what decides its features, wherever its files lie; "" where no file does."""
        ...


def load_text_encoder(name: str, length: int, device: str | torch.device | None = None) -> TextEncoder:
    """The text encoder called `name`: "words", or a model of the Hugging Face Hub or a folder with one.
    device: where a model computes; None takes a GPU if there is one.

    Raises ImportError without transformers, FileNotFoundError where the model cannot be had."""
    return Words(length) if name == "words" else LanguageModel(name, length, device)


def split_words(caption: str) -> list[str]:
    """The words of a caption, in small letters and without punctuation."""
    return re.findall(r"\w+", caption.lower())


class _Cutting:
    """Cuts captions to `length` words and warns the first time."""

    length: int
    _said = False

    def _all(self, caption: str) -> list:
        raise NotImplementedError

    def count_cut(self, caption: str) -> int:
        return max(0, len(self._all(caption)) - self.length)

    def cut(self, words: list, caption: str) -> list:
        if len(words) > self.length and not self._said:
            self._said = True
            shown = caption if len(caption) <= 60 else caption[:57] + "..."
            warnings.warn(
                f"a caption of {len(words)} words is cut to {self.length}, as all longer ones will be: "
                f"{shown!r}",
                stacklevel=3,
            )
        return words[: self.length]


class Words(_Cutting):
    """A word's features: 96 signs from its hash, then its place as 16 sines and 16 cosines. Case and
    punctuation are ignored. Padding has the signs of the empty word and zeros for its place."""

    name, signs, places = "words", 96, 32
    dim = signs + places

    def __init__(self, length: int = LENGTH):
        self.length = length
        rates = 0.5 ** (torch.arange(self.places // 2) / 4)  # radians a word: from 1 down to 1/13
        angles = torch.arange(length)[:, None] * rates
        self._places = torch.cat([angles.sin(), angles.cos()], 1)
        self._known: dict[str, Tensor] = {}

    def words(self, caption: str) -> list[str]:
        return self.cut(self._all(caption), caption)

    def _all(self, caption: str) -> list[str]:
        return split_words(caption)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        encoded = torch.zeros(len(captions), self.length, 1 + self.dim)
        encoded[..., 1 : 1 + self.signs] = self._of("")
        for row, caption in zip(encoded, captions, strict=True):
            words = self.words(caption)
            for place, word in enumerate(words):
                row[place, 1 : 1 + self.signs] = self._of(word)
            row[: len(words), 0] = 1
            row[: len(words), 1 + self.signs :] = self._places[: len(words)]
        return encoded

    def fingerprint(self) -> str:
        return ""

    def _of(self, word: str) -> Tensor:
        if word not in self._known:
            if len(self._known) > 10_000:
                self._known.clear()
            bits = hashlib.shake_256(word.encode()).digest(self.signs // 8)
            self._known[word] = torch.tensor([b >> i & 1 for b in bits for i in range(8)]).float() * 2 - 1
        return self._known[word]


@dataclass(eq=False)
class _Loaded:
    """A model in memory, for as long as a `LanguageModel` has it."""

    tokenizer: Any
    model: Any


_in_memory: WeakValueDictionary[tuple[str, str], _Loaded] = WeakValueDictionary()  # by contents and device
_loading = Lock()


def _load(name: str, device: torch.device) -> _Loaded:
    with _loading:
        key = _contents_of(name), str(device)
        loaded = _in_memory.get(key)
        if loaded is None:
            loaded = _in_memory[key] = _read(name, device)
        return loaded


def _contents_of(name: str) -> str:
    """What tells a model from others: a digest of a folder's files; of the Hub, the name."""
    if not (folder := Path(name)).is_dir():
        return name
    read = (".json", ".jinja", ".txt", ".model", ".safetensors", ".bin")
    files = sorted(path for path in folder.iterdir() if path.suffix in read and path.is_file())
    digests = "".join(f"{path.name} {digest_file(path)} " for path in files)
    return hashlib.sha256(digests.encode()).hexdigest()


def _read(name: str, device: torch.device) -> _Loaded:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with loading_transformers(name, "text encoder", OPTION):
        from transformers import AutoModel, AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(name, padding_side="right")
        # With any other attention, transformers asks the device at each call whether all is visible.
        model = AutoModel.from_pretrained(name, dtype=dtype, attn_implementation="eager")
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    model = getattr(model, "language_model", model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return _Loaded(tokenizer, model.to(device).eval().requires_grad_(False))


class LanguageModel(_Cutting):
    """Last hidden states of a frozen model, padded on the right to T tokens. Of an encoder-decoder it is the
    encoder's, of a model for pictures and text the language model's.

    Padding keeps the model's features of it (see `CaptionCondition`). Encodings of the last `KEPT` captions
    are kept, so that a prompt sampled again is not encoded again. In bfloat16 on a GPU, which is never waited
    for. Whoever has the same model, wherever its files lie, shares the weights in memory.

    Raises ImportError without transformers, FileNotFoundError where the model cannot be had."""

    KEPT = 256

    def __init__(self, name: str, length: int, device: str | torch.device | None = None):
        self.name, self.length = name, length
        self.device = choose_device() if device is None else torch.device(device)
        self._loaded = _load(name, self.device)
        self.tokenizer, self.model = self._loaded.tokenizer, self._loaded.model
        self.dim = self.model.config.hidden_size
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def words(self, caption: str) -> list[str]:
        return [self.tokenizer.decode([number]).strip() for number in self._ids(caption)]

    def _ids(self, caption: str) -> list[int]:
        return self.cut(self._all(caption), caption)

    def _all(self, caption: str) -> list[int]:
        return self.tokenizer(caption)["input_ids"]

    def fingerprint(self) -> str:
        words = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        # On a GPU the weights are bfloat16: what they are rounded to is the same on every device.
        weights = fingerprint(self.model, torch.bfloat16)
        return hashlib.sha256(f"{words} {weights}".encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        new = list(dict.fromkeys(c for c in captions if c not in self._kept))
        for caption in new:
            self._ids(caption)  # warns where one is too long
        encodings = {}
        if new:
            inputs = self.tokenizer(
                new, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
            ).to(self.device)
            states = self.model(**inputs).last_hidden_state
            encoded = torch.cat([inputs["attention_mask"][..., None].to(states.dtype), states], -1)
            encodings = dict(zip(new, encoded, strict=True))
        encodings |= {c: self._kept[c] for c in captions if c in self._kept}
        self._kept |= {c: encodings[c] for c in new}
        while len(self._kept) > self.KEPT:
            self._kept.popitem(last=False)
        return torch.stack([encodings[caption] for caption in captions])
