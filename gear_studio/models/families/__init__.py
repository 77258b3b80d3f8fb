"""Released checkpoints, in and out: the files of GEAR, LlamaGen, Open-MAGVIT2 and IBQ.

Notable:
- The models know nothing of foreign names. A family (`base`) lists, for each of our keys, the released keys
  it is made of (an attention's q, k and v are one tensor here and three there); everything else follows from
  that list.
- What a file holds is read off its keys and shapes. What they do not say is the size of the pictures, and so
  the grid of tokens: the networks are convolutional and rotary tables seldom stored. 256 px by default.
- Adding a family is a file here and a line in `TOKENIZERS` or `GENERATORS`.
"""

from pathlib import Path
from typing import Any

import torch

from gear_studio.files import atomic
from gear_studio.models.families.base import GeneratorFamily, Names, State, TokenizerFamily
from gear_studio.models.families.checkpoint_files import WRAPPINGS, is_averaged, read, unwrap, weights_of
from gear_studio.models.families.ibq import Ibq16
from gear_studio.models.families.llamagen import LlamaGen, Vq16
from gear_studio.models.families.magvit2 import Lfq16
from gear_studio.models.generator import Generator
from gear_studio.models.pretrained import check_shapes
from gear_studio.models.published import fetch
from gear_studio.models.tokenizer import Tokenizer

# Asked in this order; the last reads, or refuses with reasons, what none holds.
TOKENIZERS: tuple[TokenizerFamily, ...] = (Vq16(), Lfq16(), Ibq16())
GENERATORS: tuple[GeneratorFamily, ...] = (LlamaGen(),)  # the first is how ours are written


def load_tokenizer(source: str | Path, image_size: int = 256) -> Tokenizer:
    """The tokenizer in a released file (VQ-16, LFQ-16, IBQ-16 and their like), in eval mode.

    source: a file, or a repository of the Hub (see `published.fetch`). image_size: pixels along a side of the
    pictures it is for. Raises FileNotFoundError when there is no such file, ValueError when it holds no
    tokenizer or its keys are not exactly those of one, naming them."""
    raw = read(fetch(source))
    state = _first_weights(unwrap(raw, holds_tokenizer))
    if state is None:
        raise ValueError(describe_lack(raw, "tokenizer", source))
    return tokenizer_from(state, image_size, str(source))


def load_generator(source: str | Path, grid: int | None = None) -> Generator:
    """The LlamaGen generator in a released file, class-conditional or text-to-image, in eval mode.

    grid: tokens along a side; by default what a stored rotary table says, else 16. Raises as `load_tokenizer`
    does, and ValueError for a size that `SIZES` does not list, whose number of heads no shape shows.

    What a text-to-image generator was trained to take for "no caption", its text encoder makes: give it to
    `generator.condition.null`, as `Run.encode` does."""
    raw = read(fetch(source))
    state = _first_weights(unwrap(raw, holds_generator))
    if state is None:
        raise ValueError(describe_lack(raw, "generator", source))
    return generator_from(state, grid, str(source))


def find_pair(raw: dict[str, Any], source: str | Path) -> tuple[State | None, State | None]:
    """The weights of a file's tokenizer and generator, None for what it lacks: the first two that are both
    EMA weights or both live ones. source: names the file in errors.

    Raises ValueError where the file holds both, but no such two."""
    tokenizers, generators = unwrap(raw, holds_tokenizer), unwrap(raw, holds_generator)
    if not tokenizers or not generators:
        return _first_weights(tokenizers), _first_weights(generators)
    for tokenizer_name, tokenizer in tokenizers.items():
        for generator_name, generator in generators.items():
            if is_averaged(tokenizer_name, tokenizer) == is_averaged(generator_name, generator):
                return weights_of(tokenizer), weights_of(generator)
    one, other = (" and ".join(name or "no key" for name in states) for states in (tokenizers, generators))
    raise ValueError(
        f"{source} holds a tokenizer under {one} and a generator under {other}: of one there are only EMA "
        "weights, of the other only live ones, and the two are no pair. To have them all the same, put each "
        "into a file of its own with torch.save and import the tokenizer, then the generator with --parent"
    )


def describe_lack(raw: dict[str, Any], what: str, source: str | Path) -> str:
    """The message for a file that holds no such model."""
    return (
        f"{source} holds no {what}: no key like encoder.conv_in.weight or layers.0.attention.wqkv.weight, "
        f"bare or under {', '.join(WRAPPINGS)}; it has {', '.join(map(str, list(raw)[:5])) or 'nothing'}"
    )


def holds_tokenizer(state: dict) -> bool:
    return any(family.holds(state) for family in TOKENIZERS)


def holds_generator(state: dict) -> bool:
    return any(family.holds(state) for family in GENERATORS)


def tokenizer_family(state: dict) -> TokenizerFamily:
    """The family of a tokenizer's state dict."""
    return next((family for family in TOKENIZERS if family.holds(state)), TOKENIZERS[-1])


def generator_family(state: dict) -> GeneratorFamily:
    """The family of a generator's state dict."""
    return next((family for family in GENERATORS if family.holds(state)), GENERATORS[-1])


def tokenizer_from(state: State, image_size: int, where: str) -> Tokenizer:
    """The tokenizer of a released state dict, in eval mode; `where` names it in errors."""
    family = tokenizer_family(state)
    tokenizer = Tokenizer(family.config_of(state, image_size, where))
    _fill(tokenizer, state, family.names_of(tokenizer), where)
    return tokenizer.eval()


def generator_from(state: State, grid: int | None, where: str) -> Generator:
    """The generator of a released state dict, in eval mode; `where` names it in errors."""
    family = generator_family(state)
    generator = Generator(family.config_of(state, grid, where))
    weights = {key: value for key, value in state.items() if key not in family.not_weights}
    _fill(generator, weights, family.names_of(generator), where)
    return generator.eval()


def names_of(model: Tokenizer | Generator) -> Names:
    """Our keys -> the released keys whose tensors, put together along the first axis, they are.

    Raises ValueError for a tokenizer that no family has names for."""
    if isinstance(model, Generator):
        return GENERATORS[0].names_of(model)
    config = model.config
    for family in TOKENIZERS:
        if family.has_names_for(config):
            return family.names_of(model)
    *names, last = (family.name for family in TOKENIZERS)
    raise ValueError(
        f"the released format has no names for a {config.quantizer} tokenizer of architecture "
        f"{config.architecture}, patch {config.patch} and mid {config.mid}; it knows those of "
        f"{', '.join(names)} and {last}"
    )


def to_released(model: Tokenizer | Generator) -> State:
    """The model's weights under the released names, on the CPU."""
    own = model.state_dict()
    return {
        name: part.detach().cpu().clone()
        for key, names in names_of(model).items()
        for name, part in zip(names, own[key].chunk(len(names)), strict=True)
    }


def save(model: Tokenizer | Generator, path: str | Path) -> None:
    """Write a model in the released format, under `vq` or `ema`, atomically. Raises ValueError for a
    tokenizer that the format has no names for."""
    key = "vq" if isinstance(model, Tokenizer) else "ema"
    with atomic(Path(path)) as temporary:
        torch.save({key: to_released(model)}, temporary)


def _first_weights(states: dict[str, dict]) -> State | None:
    return next(map(weights_of, states.values()), None)


def _fill(model: Tokenizer | Generator, state: State, names: Names, where: str) -> None:
    """Copy a released state dict into a model. Raises ValueError naming keys that differ."""
    own = model.state_dict()
    expected = {
        name: (own[key].shape[0] // len(parts), *own[key].shape[1:])
        for key, parts in names.items()
        for name in parts
    }
    check_shapes(where, type(model).__name__, {k: tuple(v.shape) for k, v in state.items()}, expected)
    for key, parts in names.items():
        own[key].copy_(torch.cat([state[name] for name in parts]))
