"""The folder of a run: whose it is, what it records, what is kept on the way.

It is claimed in two steps. `check_folder` reads and refuses; `claim_folder` writes, once everything else that
can fail has been built. So a training that is refused leaves no folder behind.
"""

import dataclasses
import json
import platform
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate import Accelerator

from gear_studio import data
from gear_studio.data.source import OnDisk
from gear_studio.errors import InputError
from gear_studio.files import read_json, write_json
from gear_studio.models.generator import GeneratorConfig
from gear_studio.models.pretrained import Pretrained
from gear_studio.models.tokenizer import TokenizerConfig
from gear_studio.places import find_parent, is_shipped
from gear_studio.run_files import read_config, read_record
from gear_studio.runs import Run
from gear_studio.training.checkpoints import Checkpoints
from gear_studio.training.recipes import Recipe


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
        "timm": version("timm"),
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def check_folder(folder: Path, config: dict, extend: bool = False) -> bool:
    """Is the run in a folder finished as `config` asks for it? Reads only.

    Raises ValueError for a folder that holds another run, naming what differs. extend: one that was asked for
    fewer steps, and is the same otherwise, may go on."""
    if not (folder / "config.json").exists():
        return False
    differences = compare_configs(read_json(folder / "config.json", "a run"), config)
    held_steps, steps = differences.get("steps", (0, 0))
    longer = differences.keys() == {"steps"} and steps > held_steps
    if longer and extend:
        check_reopening(folder)
    elif differences:
        shown = ", ".join(
            f"{name} is {held!r}, asked for {asked!r}"
            for name, (held, asked) in sorted(differences.items())[:3]
        )
        made = _command_of(folder)
        raise InputError(
            f"{folder} already holds another run ({shown}){made and f', made by `{made}`'}; "
            f"{'go on with it by --extend, ' if longer else ''}choose another --out, such as "
            f"--out {folder}-2, or delete the folder"
        )
    return not differences and Run(folder).finished


def _command_of(folder: Path) -> str:
    """The command that a run was made by; "" where its record says none, or there is none."""
    with suppress(ValueError, OSError):
        command = str(read_record(folder)["command"])
        return command if command.startswith("gear-studio train") else ""
    return ""


def claim_folder(folder: Path, config: dict) -> None:
    """Make a folder that `check_folder` let pass this run's: a new one gets its config, one that was asked
    for fewer steps is asked for these from now on, and one whose teacher, text encoder or other network lies
    elsewhere by now is told where."""
    path = folder / "config.json"
    if not path.exists():
        write_json(path, config)
        return
    held, asked = read_json(path, "a run"), json.loads(json.dumps(config))
    if compare_configs(held, config):
        reopen(folder)
        write_json(path, config)
    elif moved := {name for name in CONTENTS if held["recipe"].get(name) != asked["recipe"].get(name)}:
        write_json(path, held | {"recipe": held["recipe"] | {name: asked["recipe"][name] for name in moved}})


# Settings that name a file or a folder, and what config.json says of its contents.
CONTENTS = {
    "teacher": "teacher_sha256",
    "teacher_weights": "teacher_sha256",
    "perceptual": "perceptual_sha256",
    "inception_weights": "inception_weights_sha256",
    "fd_teacher": "fd_teacher_sha256",
    "text_encoder": "text_encoder_sha256",
    "start": "start_sha256",
}


def compare_configs(held: dict, config: dict) -> dict[str, tuple[Any, Any]]:
    """{name: (held, asked for)} of everything in which two configs of runs differ, the recipe's settings
    among them. Files are compared by their contents, wherever they lie, and by their names only in runs that
    do not say what these were."""
    # A setting that came later has its default in older runs: they were trained so.
    defaults, parts = known_defaults(Recipe), {"tokenizer": TokenizerConfig, "generator": GeneratorConfig}
    nested = {name: known_defaults(kind) for name, kind in parts.items()}
    config, defaults, nested = json.loads(json.dumps([config, defaults, nested]))
    asked = {**config, **config["recipe"]}
    there = {**held, **defaults, **held.get("recipe", {})}
    there |= {name: nested[name] | there[name] for name in nested.keys() & there.keys()}
    said = {name for name, content in CONTENTS.items() if there.get(content)}
    passed_over = {"recipe"} | {name for name in said if there[CONTENTS[name]] == asked.get(CONTENTS[name])}
    passed_over |= {content for name, content in CONTENTS.items() if name not in said}
    return {
        name: (there.get(name), asked.get(name))
        for name in asked.keys() | there.keys()
        if name not in passed_over and there.get(name) != asked.get(name)
    }


def known_defaults(config: type) -> dict[str, Any]:
    """The fields of a dataclass that have a default, and it."""
    return {f.name: f.default for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING}


def check_reopening(folder: Path) -> None:
    """Refuse to let a run go on beyond its last step where it would not end as if it had been asked for more
    from the start, and where other runs are built on what it is now. Raises ValueError."""
    held = known_defaults(Recipe) | read_json(folder / "config.json", "a run")["recipe"]
    if held["lr_schedule"] == "cosine":
        raise InputError(
            f"{folder} ended its learning rate with its last step (lr_schedule cosine): asked for more from "
            "the start it would have learnt at other rates. Train it anew with another --out"
        )
    steps, rhythm = (
        held["steps"],
        [name for name in ("checkpoint_every", "fd_every", "fid_every") if held[name]],
    )
    if off := [f"{name} {held[name]}" for name in rhythm if steps % held[name]]:
        raise InputError(
            f"{folder} was asked for {steps} steps, no multiple of {' and '.join(off)}: longer, it would "
            "have been measured at other steps. Train it anew with another --out"
        )
    children = []
    for path in sorted(folder.resolve().parent.glob("*/config.json")):
        with suppress(ValueError, OSError):  # what is damaged, or no run, starts from nothing
            if read_config(path.parent)["parent"] == folder.name:
                children.append(path.parent.name)
    if children:
        raise InputError(
            f"{folder} cannot go on: {', '.join(children)} started from what it is now. Train it anew with "
            "another --out"
        )
    if Run(folder).finished and not Checkpoints(folder / "checkpoints").paths():
        raise InputError(
            f"{folder} cannot go on: its checkpoints were deleted. Train it anew with another --out"
        )


def reopen(folder: Path) -> None:
    """Make a run, finished or not, one that may go on beyond its last step."""
    run = Run(folder)
    if run.finished:
        write_json(folder / "record.json", run.record | {"finished": False})
    if (folder / "evaluation.json").exists():  # of what it is now, and will not be
        steps = run.config["recipe"]["steps"]
        (folder / "evaluation.json").replace(folder / f"evaluation-step-{steps}.json")


def describe_pictures(folder: Path, source: data.Source) -> dict[str, dict]:
    """For the config of a run on files, which: {"pictures": {"folder": ..., "sha256": ...}}; else {}.

    Of a run that is there already it is what its config says: the same pictures may lie elsewhere by now.
    Raises ValueError where they are others. A run from before this was written down goes on with any."""
    if not isinstance(source, OnDisk):
        return {}
    now = {"folder": str(source.folder.absolute()), "sha256": source.identity()}
    if not (folder / "config.json").exists():
        return {"pictures": now}
    then = read_json(folder / "config.json", "a run").get("pictures")
    if then is None:
        return {}
    if then["sha256"] != now["sha256"]:
        raise InputError(
            f"{folder} is a run on the pictures that were in {then['folder']}; those now in {now['folder']} "
            "are others (by names, labels or sizes, captions included); name the folder of the former, or "
            "choose another --out"
        )
    return {"pictures": then}


def write_record(
    folder: Path, accelerator: Accelerator, seconds: float, finished: bool, more: Mapping[str, Any]
) -> None:
    """What happened. more: what this kind of training has to say beside that."""
    write_json(
        folder / "record.json",
        {
            "command": "gear-studio " + " ".join(sys.argv[1:]),
            "versions": versions(),
            "device": device_name(accelerator.device),
            "processes": accelerator.num_processes,
            **more,
            "seconds": round(seconds, 1),
            "finished": finished,
        },
    )


def keep_snapshot(out: Path, step: int, parts: Mapping[str, Pretrained]) -> Path:
    """Write what a run is by now as a Run of its own, as if it had been asked for so many steps. Returns its
    folder, RUN/snapshots/step-..., which still needs its record."""
    folder = out / "snapshots" / f"step-{step:09d}"
    for name, module in parts.items():
        module.save_pretrained(folder / name)
    shutil.copyfile(out / "metrics.jsonl", folder / "metrics.jsonl")
    config = read_json(out / "config.json", "a run")
    config["recipe"]["steps"] = step
    parent = config["parent"]
    if parent and not is_shipped(find_parent(parent, out)):  # it lies beside `out`
        config["parent"] = f"../../{parent}"
    write_json(folder / "config.json", config)  # last: it makes the folder a Run
    return folder
