"""Released checkpoints, the front door: read a file, write one, or turn one into a Run.

The formats are in `models.families`, one file a family.
"""

from pathlib import Path
from typing import Any

from gear_studio import locks
from gear_studio.errors import InputError
from gear_studio.files import write_json
from gear_studio.models import families
from gear_studio.models.discriminator import Discriminator
from gear_studio.models.families import load_generator, load_tokenizer, save
from gear_studio.models.families.checkpoint_files import read
from gear_studio.models.generator import Generator
from gear_studio.models.projector import Projector
from gear_studio.models.published import fetch
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.places import check_own_folder, check_parent, name_parent
from gear_studio.ranges import Extent, Pixels, checked
from gear_studio.runs import Run
from gear_studio.training.recipes import Recipe

__all__ = ["class_names", "import_run", "load_generator", "load_tokenizer", "save"]


@checked
def import_run(
    source: str | Path,
    folder: str | Path,
    parent: str | Path | None = None,
    image_size: Pixels | None = None,
    quantizer: str | None = None,
    heads: Extent | None = None,
) -> Run:
    """Turn a released file into a Run: its tokenizer, its generator, or both where it holds both, which are
    then both EMA weights or both live ones. What a stage that trains on starts from comes along, too: a
    discriminator and a projector where they are like ours, and the live weights of an averaged tokenizer.

    source, quantizer: as for `load_tokenizer`, image_size too, by default 256; a generator alone has that of
    its parent. heads: as for `load_generator`. What of them is not like ours is left out, and said in
    record.json (`left_out`). parent: for a generator alone, the Run whose tokenizer made its tokens: a folder
    beside `folder`, or the name of a shipped one. Raises as `load_tokenizer` and
    `load_generator`, and ValueError where folder already is a Run, a generator comes without its tokenizer,
    or the two do not belong together, FolderInUseError where another process writes into it."""
    check_own_folder(Path(folder))
    with locks.hold(Path(folder)):
        return _import_into(Path(folder), source, parent, image_size, quantizer, heads)


def _import_into(
    folder: Path,
    source: str | Path,
    parent: str | Path | None,
    image_size: int | None,
    quantizer: str | None,
    heads: int | None,
) -> Run:
    if (folder / "config.json").exists():
        raise InputError(f"{folder} already holds a run; choose another name or delete the folder")
    path = fetch(source)
    raw = read(path)
    tokenizer_state, generator_state = families.find_pair(raw, source)
    tokenizer: Tokenizer | None = None
    generator: Generator | None = None
    live: Tokenizer | None = None
    discriminator: Discriminator | None = None
    projector: Projector | None = None
    beside: Run | None = None
    if tokenizer_state:
        quantizer = families.choose_quantizer(raw, tokenizer_state, path, quantizer)
        tokenizer = families.tokenizer_from(tokenizer_state, image_size or 256, str(source), quantizer)
        discriminator = families.discriminator_from(raw, tokenizer_state)
        if live_state := families.live_beside(raw, tokenizer_state):
            live = families.tokenizer_from(live_state, image_size or 256, str(source), quantizer)
    text_encoder = ""
    if generator_state:
        its_tokenizer = tokenizer
        if its_tokenizer is None:
            beside = _find_parent(source, folder, parent)
            its_tokenizer = beside.tokenizer
        if image_size not in (None, size := its_tokenizer.config.image_size):
            raise InputError(
                f"parent {parent} is for pictures of {size} px, asked for {image_size}; import its tokenizer "
                f"for {image_size} px too, and name that with --parent, or leave --image-size out"
            )
        generator = families.generator_from(generator_state, its_tokenizer.grid, str(source), heads, raw)
        if generator.config.codes != its_tokenizer.config.codes:
            raise InputError(
                f"{source} predicts {generator.config.codes} codes and the tokenizer has "
                f"{its_tokenizer.config.codes}; they do not belong together"
            )
        if generator.config.caption_dim:
            text_encoder = families.generator_family(generator_state).text_encoder
        projector = families.projector_from(raw)
    if not tokenizer and not generator:
        raise InputError(families.describe_lack(raw, "tokenizer and no generator", source))

    recipe: dict[str, Any] = {"steps": 1, "batch_size": 1}
    if tokenizer:
        tokenizer.save_pretrained(folder / "tokenizer")
        recipe["tokenizer"] = tokenizer.config
    if live:
        live.save_pretrained(folder / "live-tokenizer")
    if discriminator:
        discriminator.save_pretrained(folder / "discriminator")
    if generator:
        generator.save_pretrained(folder / "generator")
        if projector:
            projector.save_pretrained(folder / "projector")
            recipe["projector_hidden"] = projector.config.hidden
        recipe["generator"] = generator.config
        recipe["text_encoder"] = text_encoder
    (folder / "metrics.jsonl").touch()
    record = {"command": f"gear-studio import {source} {folder}", "finished": True, "seconds": 0.0}
    left_out = families.describe_left_out(raw, tokenizer_state, generator_state, discriminator, projector)
    record |= {"device": "none", "imported_from": str(source), "left_out": left_out}
    write_json(folder / "record.json", record)
    config = {
        "source": "folder",
        "stage": "imported",
        "arm": "imported",
        "seed": 0,
        "parent": name_parent(beside.folder) if beside else None,
        "classes": class_names(generator.config.classes) if generator else [],
        "recipe": Recipe(**recipe).asdict() | {"steps": 0, "batch_size": 0},  # nothing was trained here
    }
    write_json(folder / "config.json", config)  # last: it makes the folder a Run
    return Run(folder)


def _find_parent(source: str | Path, folder: Path, parent: str | Path | None) -> Run:
    """The Run `parent`, whose tokenizer a generator imported into `folder` needs."""
    if parent is None:
        raise InputError(
            f"{source} holds a generator and no tokenizer; name the tokenizer's run with --parent"
        )
    run = Run.from_pretrained(parent)
    check_parent(run.folder, folder)
    return run


def class_names(classes: int) -> list[str]:
    """ImageNet's names for 1000 classes, else numbers."""
    if classes != 1000:
        return [str(number) for number in range(classes)]
    from torchvision.models import ResNet50_Weights  # here: it is slow to import, and only this needs it

    return list(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
