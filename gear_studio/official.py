"""Released checkpoints, in and out: the files of GEAR, LlamaGen, Open-MAGVIT2 and IBQ.

Notable:
- The models know nothing of foreign names. `names` lists, for each of our keys, the released keys it is made
  of (an attention's q, k and v are one tensor here and three there); everything else follows from that list.
- What a file holds is read off its keys and shapes. What they do not say is the size of the pictures, and so
  the grid of tokens: the networks are convolutional and rotary tables seldom stored. 256 px unless told.
- EMA weights are preferred wherever a file has them, also the shadows that Lightning files keep.
- Files are read with `weights_only=True`: nothing in them is run.
"""

import argparse
import math
import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gear_studio.files import atomic, write_json
from gear_studio.models.generator import SIZES, Generator, GeneratorConfig, paper_config
from gear_studio.models.pretrained import check_shapes
from gear_studio.models.tokenizer import Tokenizer, TokenizerConfig
from gear_studio.runs import Run
from gear_studio.training.recipes import Recipe

State = dict[str, Tensor]
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
WRAPPINGS = ("vq_ema", "ema", "vq", "ar", "model", "state_dict")  # in order of preference; else bare
AVERAGED = ("vq_ema", "ema")
TOKENIZER, GENERATOR = "encoder.", "layers."  # how some key of each begins
# Of the released text-to-image generators; their files do not say it.
TEXT_ENCODER, CAPTION_LENGTH = "Qwen/Qwen3-1.7B", 300

# What a layer of ours holds -> its name in the released files. All else is called the same.
_IN_TOKENIZER = {
    "body.0": ["norm1"],
    "body.2": ["conv1"],
    "body.3": ["norm2"],
    "body.5": ["conv2"],
    "shortcut": ["nin_shortcut"],
    "qkv": ["q", "k", "v"],
    "out": ["proj_out"],
}
_AROUND_QUANTIZER = {
    "to_code.": "quant_conv.",
    "from_code.": "post_quant_conv.",
    "quantizer.codebook": "quantize.embedding.weight",
}
_IN_GENERATOR = {
    "condition.table": "cls_embedding.embedding_table",
    "condition.up": "cls_embedding.cap_proj.fc1",
    "condition.down": "cls_embedding.cap_proj.fc2",
    "tokens": "tok_embeddings",
    "attention.qkv": "attention.wqkv",
    "attention.out": "attention.wo",
    "attention.qkv_text": "attention.wqkv_text",
    "attention.out_text": "attention.wo_text",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "feed_forward.w1",
    "feed_forward.up": "feed_forward.w3",
    "feed_forward.down": "feed_forward.w2",
    "head": "output",
}


def load_tokenizer(source: str | Path, image_size: int = 256) -> Tokenizer:
    """The tokenizer in a released file (VQ-16, LFQ-16, IBQ-16 and their like), in eval mode.

    source: a file, or a repository of the Hub (see `fetch`). image_size: pixels along a side of the pictures
    it is for. Raises FileNotFoundError when there is no such file, ValueError when it holds no tokenizer or
    its keys are not exactly those of one, naming them."""
    return tokenizer_from(_only(read(fetch(source)), TOKENIZER, source), image_size, str(source))


def load_generator(source: str | Path, grid: int | None = None) -> Generator:
    """The LlamaGen generator in a released file, class-conditional or text-to-image, in eval mode.

    grid: tokens along a side; by default what a stored rotary table says, else 16. Raises as `load_tokenizer`
    does, and ValueError for a size that `SIZES` does not list, whose number of heads no shape tells.

    What a text-to-image generator was trained to take for "no caption", its text encoder makes: give it to
    `generator.condition.null`, as `Run.encode` does."""
    return generator_from(_only(read(fetch(source)), GENERATOR, source), grid, str(source))


def import_run(
    source: str | Path, folder: str | Path, parent: str | Path | None = None, image_size: int = 256
) -> Run:
    """Turn a released file into a Run: its tokenizer, its generator, or both where it holds both, which are
    then both EMA weights or both live ones.

    parent: for a generator alone, the Run beside `folder` whose tokenizer made its tokens."""
    folder = Path(folder)
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} already holds a run; choose another name or delete the folder")
    raw = read(fetch(source))
    tokenizer_state, state = _matching(raw, source)
    tokenizer = generator = None
    if tokenizer_state:
        tokenizer = tokenizer_from(tokenizer_state, image_size, str(source))
    if state:
        if not tokenizer and parent is None:
            raise ValueError(
                f"{source} holds a generator and no tokenizer; name the tokenizer's run with --parent"
            )
        theirs = tokenizer or Run.from_pretrained(parent).tokenizer
        if not tokenizer and Path(parent).resolve().parent != folder.resolve().parent:
            raise ValueError(f"parent {parent} does not lie beside {folder}; put both runs in one folder")
        generator = generator_from(state, theirs.grid, str(source))
        if generator.config.codes != theirs.config.codes:
            raise ValueError(
                f"{source} predicts {generator.config.codes} codes and the tokenizer has "
                f"{theirs.config.codes}; they do not belong together"
            )
    if not tokenizer and not generator:
        raise ValueError(_nothing(raw, "tokenizer and no generator", source))

    recipe: dict[str, Any] = {"steps": 0, "batch_size": 0}
    if tokenizer:
        tokenizer.save_pretrained(folder / "tokenizer")
        recipe["tokenizer"] = tokenizer.config
    if generator:
        generator.save_pretrained(folder / "generator")
        recipe["generator"] = generator.config
        recipe["text_encoder"] = TEXT_ENCODER if generator.config.caption_dim else ""
    (folder / "metrics.jsonl").touch()
    record = {"command": f"gear-studio import {source} {folder}", "finished": True, "seconds": 0.0}
    write_json(folder / "record.json", record | {"device": "none", "imported_from": str(source)})
    config = {
        "source": "folder",
        "stage": "imported",
        "arm": "imported",
        "seed": 0,
        "parent": Path(parent).name if parent and not tokenizer else None,
        "classes": class_names(generator.config.classes) if generator else [],
        "recipe": Recipe(**recipe).asdict(),
    }
    write_json(folder / "config.json", config)  # last: it makes the folder a Run
    return Run(folder)


def save(model: Tokenizer | Generator, path: str | Path) -> None:
    """Write a model in the released format, under `vq` or `ema`, atomically. Raises ValueError for a
    tokenizer that the format has no names for."""
    key = "vq" if isinstance(model, Tokenizer) else "ema"
    with atomic(Path(path)) as temporary:
        torch.save({key: released_state(model)}, temporary)


# Files


def fetch(source: str | Path) -> Path:
    """A file as given, or one from the Hub: owner/repository where that holds one file of weights, else
    owner/repository/file. Raises FileNotFoundError when it cannot be had, saying why."""
    path = Path(source)
    if path.is_file():
        return path
    repository = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/(.+))?", str(source))
    if not repository or (not repository[2] and path.suffix in SUFFIXES):
        raise FileNotFoundError(
            f"there is no file {source}; give a file, or owner/repository[/file] of the Hub"
        )
    from huggingface_hub import HfApi, hf_hub_download  # here: only this needs it

    name, file = repository.groups()
    try:
        files = [file] if file else [f for f in HfApi().list_repo_files(name) if f.endswith(SUFFIXES)]
        if len(files) == 1:
            return Path(hf_hub_download(name, files[0]))
    except Exception as error:  # whatever HTTP library the installed version of the Hub's client uses
        raise FileNotFoundError(
            f"there is no file {source}, and it could not be had from the Hub either ({_brief(error)}). "
            "Without a connection, download it elsewhere and give the file's path"
        ) from error
    raise FileNotFoundError(
        f"{name} on the Hub holds {len(files)} files of weights ({', '.join(files) or 'none'}); "
        f"name one as {name}/FILE"
    )


def read(path: Path) -> dict[str, Any]:
    """What a .pt, .ckpt or .safetensors file holds, on the CPU, without running anything in it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Training scripts put their parsed command line beside the weights; it is plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            raw = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, or holds more than weights and plain values ({_brief(error)}), which could "
            "run code and is refused; save its state dict alone with torch.save and give that file"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is not a complete file of weights ({_brief(error)}); copy it again"
        ) from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds a {type(raw).__name__}; expected a dict of weights")
    return raw


def _brief(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def find(raw: dict[str, Any], beginning: str) -> State | None:
    """The first state dict in `WRAPPINGS`, or the file itself, with a key that begins so; None when there is
    none. Training's own entries are dropped and Lightning's EMA shadows taken."""
    return next(map(_prefer_shadows, _all(raw, beginning).values()), None)


def _all(raw: dict[str, Any], beginning: str) -> dict[str, dict]:
    """Every dict of weights with a key that begins so, by what it lies under: `WRAPPINGS` in their order,
    then "" for the file itself."""
    held = {name: raw.get(name) for name in WRAPPINGS} | {"": raw}
    return {
        name: state
        for name, state in held.items()
        if isinstance(state, dict) and any(str(key).startswith(beginning) for key in state)
    }


def _matching(raw: dict[str, Any], source: str | Path) -> tuple[State | None, State | None]:
    """Tokenizer and generator of a file, None for what it lacks: the first two that are both EMA weights or
    both live ones. Raises ValueError where there are none such."""
    tokenizers, generators = _all(raw, TOKENIZER), _all(raw, GENERATOR)
    if not tokenizers or not generators:
        return find(raw, TOKENIZER), find(raw, GENERATOR)

    def averaged(name: str, state: dict) -> bool:
        return name in AVERAGED or any(str(key).startswith("model_ema.") for key in state)

    for one, tokenizer in tokenizers.items():
        for other, generator in generators.items():
            if averaged(one, tokenizer) == averaged(other, generator):
                return _prefer_shadows(tokenizer), _prefer_shadows(generator)
    one, other = (" and ".join(name or "no key" for name in found) for found in (tokenizers, generators))
    raise ValueError(
        f"{source} holds a tokenizer under {one} and a generator under {other}: of one there are only EMA "
        "weights, of the other only live ones, and the two are no pair. To have them all the same, put each "
        "into a file of its own with torch.save and import the tokenizer, then the generator with --parent"
    )


def _prefer_shadows(state: dict[str, Any]) -> State:
    """The weights in a dict. A Lightning file keeps the average of `a.b` as `model_ema.ab`."""
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    shadows = {
        key.removeprefix("model_ema."): value for key, value in state.items() if key.startswith("model_ema.")
    }
    live = {
        key: value
        for key, value in state.items()
        if not key.startswith(("model_ema.", "loss.")) and key != "quantize.codebook_used"
    }
    if not shadows:
        return live
    averaged = {key: shadows.get(key.replace(".", "")) for key in live}
    if lacking := [f"model_ema.{key.replace('.', '')}" for key, value in averaged.items() if value is None]:
        raise ValueError(
            f"the file has EMA weights for some keys only, and mixing them with others is no model "
            f"({len(lacking)} missing: {', '.join(lacking[:5])})"
        )
    return averaged


def _only(raw: dict[str, Any], beginning: str, source: str | Path) -> State:
    state = find(raw, beginning)
    if state is None:
        raise ValueError(_nothing(raw, "tokenizer" if beginning == TOKENIZER else "generator", source))
    return state


def _nothing(raw: dict[str, Any], what: str, source: str | Path) -> str:
    return (
        f"{source} holds no {what}: no key like encoder.conv_in.weight or layers.0.attention.wqkv.weight, "
        f"bare or under {', '.join(WRAPPINGS)}; it has {', '.join(map(str, list(raw)[:5])) or 'nothing'}"
    )


# Keys and shapes


def tokenizer_from(state: State, image_size: int, where: str) -> Tokenizer:
    """The tokenizer of a released state dict; `where` names it in errors."""
    return _fill(Tokenizer(tokenizer_config(state, image_size, where)), state, where)


def generator_from(state: State, grid: int | None, where: str) -> Generator:
    """The generator of a released state dict; `where` names it in errors."""
    config = generator_config(state, grid, where)
    return _fill(Generator(config), {k: v for k, v in state.items() if k != "freqs_cis"}, where)


def tokenizer_config(state: State, image_size: int, where: str) -> TokenizerConfig:
    """What tokenizer a state dict is of, by its keys and shapes."""
    llamagen = any(key.startswith("encoder.conv_blocks.") for key in state)
    magvit2 = any(key.startswith("decoder.adaptive.") for key in state)
    level, block = ("conv_blocks", "res") if llamagen else ("down", "block")
    levels = _count(state, rf"encoder\.{level}\.(\d+)\.")
    channels = _shape(state, "encoder.conv_in.weight", where)[0]
    widths = [_shape(state, f"encoder.{level}.{i}.{block}.0.conv1.weight", where)[0] for i in range(levels)]
    latent = _shape(state, "encoder.conv_out.weight", where)[0]
    codes, dim = (2**latent, latent) if magvit2 else _shape(state, "quantize.embedding.weight", where)
    if not levels or image_size % 2 ** (levels - 1):
        raise ValueError(
            f"{where}: {levels} levels do not fit pictures of {image_size} px; give another size"
        )
    return TokenizerConfig(
        image_size=image_size,
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        res_blocks=_count(state, rf"encoder\.{level}\.0\.{block}\.(\d+)\."),
        mid=True,
        patch=1,
        latent=latent,
        codes=codes,
        code_dim=dim,
        quantizer="vq" if llamagen else "lfq" if magvit2 else "ibq",
        architecture="magvit2" if magvit2 else "vqgan",
    )


def generator_config(state: State, grid: int | None, where: str) -> GeneratorConfig:
    """What generator a state dict is of, by its keys and shapes. A caption's positions are not to be seen in
    them: `CAPTION_LENGTH`, unless a rotary table is stored."""
    codes, dim = _shape(state, "tok_embeddings.weight", where)
    blocks = _count(state, r"layers\.(\d+)\.")
    captioned = "cls_embedding.cap_proj.fc1.weight" in state
    if captioned:
        caption_dim, classes = _shape(state, "cls_embedding.cap_proj.fc1.weight", where)[1], 0
    else:
        rows = _shape(state, "cls_embedding.embedding_table.weight", where)[0]
        caption_dim, classes = 0, rows - 1  # the last is the null class
    sizes = [name for name, (b, d, _, _) in SIZES.items() if (b, d) == (blocks, dim)]
    if not sizes:
        known = ", ".join(f"{name} {b} x {d}" for name, (b, d, _, _) in SIZES.items())
        raise ValueError(f"{where} has {blocks} blocks of width {dim}; known sizes: {known}")
    caption_length = CAPTION_LENGTH if captioned else 0
    if "freqs_cis" in state:
        rows = len(state["freqs_cis"])
        if captioned:  # the rows are of the caption and of the grid, which has to be told
            caption_length, stored = rows - (grid or 16) ** 2, grid or 16
        else:
            stored = math.isqrt(rows - 1)
        if grid not in (None, stored):
            raise ValueError(f"{where} is for {stored} x {stored} tokens, asked for {grid} x {grid}")
        if caption_length < 0:
            raise ValueError(f"{where} has {rows} rotary positions, too few for {stored} x {stored} tokens")
        grid = stored
    config = paper_config(sizes[0], classes, codes, grid or 16)
    return replace(config, caption_dim=caption_dim, caption_length=caption_length)


def names(model: Tokenizer | Generator) -> dict[str, list[str]]:
    """Our keys -> the released keys whose tensors, put together along the first axis, they are."""
    return _tokenizer_names(model) if isinstance(model, Tokenizer) else _generator_names(model)


def released_state(model: Tokenizer | Generator) -> State:
    """The model's weights under the released names, on the CPU."""
    own = model.state_dict()
    return {
        name: part.detach().cpu().clone()
        for key, parts in names(model).items()
        for name, part in zip(parts, own[key].chunk(len(parts)), strict=True)
    }


def _generator_names(generator: Generator) -> dict[str, list[str]]:
    found = {}
    for key, _ in generator.named_parameters():  # a released file holds no null caption
        number, inside = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.weight", key).groups()
        layer = f"layers.{number}." if number else ""
        found[key] = [f"{layer}{_IN_GENERATOR.get(inside, inside)}.weight"]
    return found


def _tokenizer_names(tokenizer: Tokenizer) -> dict[str, list[str]]:
    found = {}
    for part, layers in zip(("encoder", "decoder"), _layers(tokenizer.config), strict=True):
        blocks = getattr(tokenizer, part).blocks
        weighted = [(n, block.state_dict()) for n, block in enumerate(blocks) if block.state_dict()]
        for (number, held), layer in zip(weighted, layers, strict=True):
            for key in held:
                inside, _, kind = key.rpartition(".")
                found[f"{part}.blocks.{number}.{key}"] = [
                    ".".join(filter(None, (part, layer, name, kind)))
                    for name in _IN_TOKENIZER.get(inside, [inside])
                ]
    for key in tokenizer.state_dict().keys() - found.keys():
        ours = next(name for name in _AROUND_QUANTIZER if key.startswith(name))
        found[key] = [key.replace(ours, _AROUND_QUANTIZER[ours])]
    return found


def _layers(config: TokenizerConfig) -> tuple[list[str], list[str]]:
    """Released names of the encoder's and the decoder's layers with weights, in the order of computation.

    LlamaGen counts the decoder's levels from the lowest resolution up, the others from the highest down."""
    levels, blocks = len(config.multipliers), config.res_blocks
    magvit2, llamagen = config.architecture == "magvit2", config.quantizer == "vq"
    if config.patch != 1 or not config.mid or magvit2 != (config.quantizer == "lfq"):
        raise ValueError(
            f"the released format has no names for a {config.quantizer} tokenizer of architecture "
            f"{config.architecture}, patch {config.patch} and mid {config.mid}; it knows those of VQ-16, "
            "LFQ-16 and IBQ-16"
        )

    def level_layers(name: str, count: int, lowest: bool) -> list[str]:
        kinds = ["res" if llamagen else "block"] + ["attn"] * (lowest and not magvit2)
        return [f"{name}.{kind}.{i}" for i in range(count) for kind in kinds]

    if magvit2:
        middle = [f"mid_block.{i}" for i in range(blocks)]
    else:
        middle = [f"mid.{name}" for name in ("012" if llamagen else ("block_1", "attn_1", "block_2"))]
    encoder = ["conv_in"]
    for level in range(levels):
        name = f"{'conv_blocks' if llamagen else 'down'}.{level}"
        encoder += level_layers(name, blocks, level == levels - 1)
        if level < levels - 1:
            encoder.append(f"{name}.downsample" if magvit2 else f"{name}.downsample.conv")
    decoder = ["conv_in", *middle]
    for level in reversed(range(levels)):
        name = f"conv_blocks.{levels - 1 - level}" if llamagen else f"up.{level}"
        decoder += [f"adaptive.{level}"] * magvit2
        decoder += level_layers(name, blocks + (not magvit2), level == levels - 1)
        if level > 0:
            decoder.append(f"{name}.upsample.conv1" if magvit2 else f"{name}.upsample.conv")
    return [*encoder, *middle, "norm_out", "conv_out"], [*decoder, "norm_out", "conv_out"]


def _fill(model: Tokenizer | Generator, state: State, where: str):
    own, listed = model.state_dict(), names(model)
    expected = {
        name: (own[key].shape[0] // len(parts), *own[key].shape[1:])
        for key, parts in listed.items()
        for name in parts
    }
    check_shapes(where, type(model).__name__, {k: tuple(v.shape) for k, v in state.items()}, expected)
    for key, parts in listed.items():
        own[key].copy_(torch.cat([state[name] for name in parts]))
    return model.eval()


def _shape(state: State, key: str, where: str) -> tuple[int, ...]:
    if key not in state:
        raise ValueError(f"{where} does not fit any released model: missing {key}")
    return tuple(state[key].shape)


def _count(state: State, pattern: str) -> int:
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def class_names(classes: int) -> list[str]:
    """ImageNet's names for 1000 classes, else numbers."""
    if classes != 1000:
        return [str(number) for number in range(classes)]
    from torchvision.models import ResNet50_Weights  # here: it is slow to import, and only this needs it

    return list(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
