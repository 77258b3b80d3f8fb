"""Released checkpoints, in and out: the files of GEAR, LlamaGen, Open-MAGVIT2, IBQ, taming-transformers and
latent-diffusion.

Notable:
- The models know nothing of foreign names. A family (`base`) lists, for each of our keys, the released keys
  it is made of (an attention's q, k and v are one tensor here and three there); everything else follows from
  that list.
- What a file holds is read off its keys and shapes. What they do not say is the size of the pictures, and so
  the grid of tokens: the networks are convolutional and rotary tables seldom stored. 256 px by default. Nor
  do they always say the quantizer, or a generator's heads; then these are asked for, never guessed.
- Adding a family is a file here and a line in `TOKENIZERS` or `GENERATORS`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from gear_studio.errors import InputError
from gear_studio.files import atomic
from gear_studio.models.discriminator import Discriminator, DiscriminatorConfig
from gear_studio.models.families.base import GeneratorFamily, Names, State, TokenizerFamily
from gear_studio.models.families.checkpoint_files import (
    WRAPPINGS,
    is_averaged,
    plain_keys,
    quantizer_beside,
    read,
    unwrap,
    weights_of,
)
from gear_studio.models.families.llamagen import LlamaGen, Vq16
from gear_studio.models.families.magvit2 import Lfq16
from gear_studio.models.families.taming import Taming
from gear_studio.models.generator import Generator
from gear_studio.models.pretrained import build_checked, check_shapes, shapes_of, without_memory
from gear_studio.models.projector import Projector, ProjectorConfig
from gear_studio.models.published import fetch
from gear_studio.models.quantizers import QUANTIZERS
from gear_studio.models.tokenizer import Tokenizer

M = TypeVar("M", bound=Tokenizer | Generator)

# Asked in this order; the last reads, or refuses with reasons, what none holds.
TOKENIZERS: tuple[TokenizerFamily, ...] = (Vq16(), Lfq16(), Taming())
GENERATORS: tuple[GeneratorFamily, ...] = (LlamaGen(),)  # the first is how ours are written


def load_tokenizer(source: str | Path, image_size: int = 256, quantizer: str | None = None) -> Tokenizer:
    """The tokenizer in a released file (VQ-16, LFQ-16, IBQ-16, VQGAN and their like), in eval mode.

    source: a file, or a repository of the Hub (see `published.fetch`). image_size: pixels along a side of the
    pictures it is for. quantizer: of `QUANTIZERS`; None for what the file, or a config beside it, says.
    Raises FileNotFoundError when there is no such file, ValueError when it holds no tokenizer, its keys are
    not exactly those of one, naming them, or could be of several quantizers."""
    path = fetch(source)
    raw = read(path)
    states = unwrap(raw, holds_tokenizer)
    if not states:
        raise InputError(describe_lack(raw, "tokenizer", source))
    state = next(iter(states.values()))
    return tokenizer_from(state, image_size, str(source), choose_quantizer(raw, state, path, quantizer))


def load_generator(source: str | Path, grid: int | None = None, heads: int | None = None) -> Generator:
    """The LlamaGen generator in a released file, class-conditional or text-to-image, in eval mode.

    grid: tokens along a side; by default what a stored rotary table says, else 16. heads: of the attention,
    for a size that `SIZES` does not list, unless a stored rotary table says it. Raises as `load_tokenizer`
    does, and ValueError where nothing says how many heads.

    What a text-to-image generator was trained to take for "no caption", its text encoder makes: give it to
    `generator.condition.null`, as `Run.encode` does."""
    raw = read(fetch(source))
    states = unwrap(raw, holds_generator)
    if not states:
        raise InputError(describe_lack(raw, "generator", source))
    return generator_from(next(iter(states.values())), grid, str(source), heads, raw)


def choose_quantizer(raw: dict[str, Any], state: dict, path: Path, quantizer: str | None = None) -> str:
    """The quantizer of a tokenizer's state dict, one of `QUANTIZERS`: as asked for, else as the file says
    (ours do), else by its keys and a config beside it.

    raw: all that the file holds. Raises ValueError where these say nothing, or contradict each other."""
    answer = quantizer or raw.get("quantizer")
    if answer:
        if answer not in QUANTIZERS:
            raise InputError(f"unknown quantizer {answer!r}; choose one of {', '.join(QUANTIZERS)}")
        return str(answer)
    by_keys, beside = tokenizer_family(state).quantizer_of(state), quantizer_beside(path)
    if by_keys and beside and by_keys != beside:
        problem = f"{path} has the keys of quantizer {by_keys}, and the config beside it says {beside}"
    elif by_keys or beside:
        return str(by_keys or beside)
    else:
        problem = (
            f"{path} has keys that several quantizers share, and neither its entries nor a config beside it "
            "(.yaml or .json) say which"
        )
    raise InputError(
        f"{problem}; read as another it gives wrong codes. Say it: --quantizer {'|'.join(QUANTIZERS)}"
    )


def find_pair(raw: dict[str, Any], source: str | Path) -> tuple[dict | None, dict | None]:
    """The state dicts of a file's tokenizer and generator, None for what it lacks: the first two that are
    both EMA weights or both live ones. source: names the file in errors.

    Raises ValueError where the file holds both, but no such two."""
    tokenizers, generators = unwrap(raw, holds_tokenizer), unwrap(raw, holds_generator)
    if not tokenizers or not generators:
        return next(iter(tokenizers.values()), None), next(iter(generators.values()), None)
    for tokenizer_name, tokenizer in tokenizers.items():
        for generator_name, generator in generators.items():
            if is_averaged(tokenizer_name, tokenizer) == is_averaged(generator_name, generator):
                return tokenizer, generator
    one, other = (" and ".join(name or "no key" for name in states) for states in (tokenizers, generators))
    raise InputError(
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


def tokenizer_from(state: dict, image_size: int, where: str, quantizer: str) -> Tokenizer:
    """The tokenizer of a released state dict, in eval mode; `where` names it in errors."""
    family, weights = tokenizer_family(state), weights_of(state)
    with _naming(where):
        config = family.config_of(weights, image_size, where, quantizer)
    return _filled(lambda: Tokenizer(config), weights, family.names_of, where)


def generator_from(
    state: dict, grid: int | None, where: str, heads: int | None = None, raw: dict[str, Any] | None = None
) -> Generator:
    """The generator of a released state dict, in eval mode; `where` names it in errors. raw: all that the
    file holds; how words see each other is said by the training's arguments there, if anywhere."""
    family, weights = generator_family(state), weights_of(state)
    with _naming(where):
        config = family.config_of(weights, grid, where, heads)
        arguments = (raw or {}).get("args")
        if isinstance(arguments, dict) and config.caption_dim and "text_attn" in arguments:
            config = replace(config, text_attention=str(arguments["text_attn"]))
    weights = {key: value for key, value in weights.items() if key not in family.not_weights}
    return _filled(lambda: Generator(config), weights, family.names_of, where)


def discriminator_from(raw: dict[str, Any], tokenizer_state: dict) -> Discriminator | None:
    """The PatchGAN discriminator that a file keeps beside its tokenizer: under `discriminator` (GEAR's
    warm-ups), or among the entries of the loss (taming's). None where there is none, or one of another kind.

    Its `main.N` are our `blocks.N`."""
    held = _discriminator_in(raw, tokenizer_state)
    weights = {
        key.replace("main.", "blocks.", 1): value
        for key, value in plain_keys(held if isinstance(held, dict) else {}).items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    first = weights.get("blocks.0.weight")
    layers = sum(key.endswith(".running_mean") for key in weights)
    if first is None or first.ndim != 4 or not layers:
        return None
    try:
        config = DiscriminatorConfig(len(first), layers)
        discriminator = build_checked(lambda: Discriminator(config), shapes_of(weights), "it")
    except ValueError:  # of another kind
        return None
    discriminator.load_state_dict(weights)
    return discriminator


def _discriminator_in(raw: dict[str, Any], tokenizer_state: dict) -> Any:
    mark = "loss.discriminator."
    beside = {key.removeprefix(mark): v for key, v in tokenizer_state.items() if str(key).startswith(mark)}
    held = raw.get("discriminator")
    return held if isinstance(held, dict) or not beside else beside


def describe_left_out(
    raw: dict[str, Any],
    tokenizer_state: dict | None,
    generator_state: dict | None,
    discriminator: Discriminator | None,
    projector: Projector | None,
) -> list[str]:
    """What a file holds beside its models that training could go on with, were it like ours: a phrase each.
    discriminator, projector: what was made of them."""
    left_out, instead = [], "a training that goes on begins with a new one"
    held = None if tokenizer_state is None else _discriminator_in(raw, tokenizer_state)
    nothing = held is None or (isinstance(held, dict) and not held)
    if discriminator is None and not nothing:
        left_out.append(f"its discriminator, which is of another kind than the PatchGAN here; {instead}")
    if projector is None and generator_state and raw.get("projectors"):
        left_out.append(f"its projectors, which are of another kind or of several teachers; {instead}")
    return left_out


def live_beside(raw: dict[str, Any], tokenizer_state: dict) -> dict | None:
    """The live weights of a tokenizer that a file keeps beside its averaged ones; None where it does not."""
    states = unwrap(raw, holds_tokenizer)
    key = next(iter(tokenizer_state))
    averaged = [state for name, state in states.items() if is_averaged(name, state)]
    if not any(state.get(key) is tokenizer_state[key] for state in averaged):
        return None
    return next((state for name, state in states.items() if not is_averaged(name, state)), None)


def projector_from(raw: dict[str, Any]) -> Projector | None:
    """The projector that a file keeps beside its generator, under `projectors` (GEAR's joint stage), where
    there is one and it is like ours. Its `projs.0.N` are our `layers.N`."""
    held = raw.get("projectors")
    weights = {
        key.replace("projs.0.", "layers.", 1): value
        for key, value in plain_keys(held if isinstance(held, dict) else {}).items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    first, last = weights.get("layers.0.weight"), weights.get("layers.4.weight")
    if first is None or last is None or first.ndim != 2 or last.ndim != 2:
        return None
    try:
        config = ProjectorConfig(first.shape[1], len(last), len(first))
        projector = build_checked(lambda: Projector(config), shapes_of(weights), "it")
    except ValueError:  # of another kind, or of several teachers
        return None
    projector.load_state_dict(weights)
    return projector


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
    raise InputError(
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
    """Write a model in the released format, under `vq` or `ema`, atomically; a tokenizer's quantizer, which
    the keys do not always tell, is written beside it. Raises ValueError for a tokenizer that the format has
    no names for."""
    if isinstance(model, Tokenizer):
        held: dict[str, Any] = {"vq": to_released(model), "quantizer": model.config.quantizer}
    else:
        held = {"ema": to_released(model)}
    with atomic(Path(path)) as temporary:
        torch.save(held, temporary)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Around what reads a config off a file: an error names the file."""
    try:
        yield
    except ValueError as error:
        if where in str(error):
            raise
        raise InputError(f"{where} is no model that there can be: {error}") from error


def _filled(build: Callable[[], M], state: State, names_of: Callable[[M], Names], where: str) -> M:
    """A model with the weights of a released state dict, in eval mode. It is built without memory first: what
    a file claims to be is compared with what it holds before anything is made of that size.

    Raises ValueError naming keys that differ, and weights that are not numbers."""
    sketch = without_memory(build)
    own: State = sketch.state_dict()
    names: Names = names_of(sketch)
    expected = {
        theirs: (own[ours].shape[0] // len(parts), *own[ours].shape[1:])
        for ours, parts in names.items()
        for theirs in parts
    }
    check_shapes(where, type(sketch).__name__, shapes_of(state), expected)
    for name, value in state.items():
        if not value.isfinite().all():
            raise InputError(
                f"{where} holds weights that are not numbers (NaN or infinite), first in {name}; its "
                "training diverged or the file is damaged, take an earlier one"
            )
    model = build()
    weights: State = model.state_dict()
    for ours, parts in names.items():
        weights[ours].copy_(torch.cat([state[theirs] for theirs in parts]))
    model.eval()
    return model
