"""The small files of a run's folder: config.json, record.json, metrics.jsonl, evaluation.json.

Runs without weights need no folder each. They may share one file, NAME.runs.jsonl, in the folder where
theirs would be: a Run a line, {"name": "gear-s1", "config.json": {...}, "metrics.jsonl": [...], ...}. Who
reads a Run by the path of its folder need not know which it is. A folder that is there comes first.

A file may come from anywhere, so what it says is held to a schema here, once for all who look at runs. An
error names the file, what is wrong in it, and the way out.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gear_studio.errors import InputError
from gear_studio.files import atomic, one_line, read_json, read_text, to_json, write_json

SHARED = "*.runs.jsonl"


class _Loose(BaseModel):
    """Types of the fields that others rely on; a file may say more."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Pictures(_Loose):
    folder: str
    sha256: str


class _Recipe(_Loose):
    steps: int = 0
    batch_size: int = 0
    image_size: int = 0
    tokenizer: dict[str, Any] | None = None
    generator: dict[str, Any] | None = None
    text_encoder: str = ""
    teacher: str = ""
    teacher_weights: list[str] = Field(default_factory=list)
    teacher_block: int = 0
    spatial_norm: str = ""
    spatial_norm_alpha: float = 0.0
    tau: float = 0.0


class _Config(_Loose):
    stage: str
    arm: str = ""
    source: str = ""
    seed: int = 0
    parent: str | None = None
    classes: list[str] = Field(default_factory=list)
    recipe: _Recipe = Field(default_factory=_Recipe)
    teacher_sha256: list[str] = Field(default_factory=list)
    pictures: _Pictures | None = None


class _Record(_Loose):
    finished: bool
    command: str = ""
    device: str = ""
    seconds: float = 0.0


class _Spread(_Loose):
    mean: float | None
    std: float | None = None
    values: list[float | None] = Field(default_factory=list)


class _Evaluation(_Loose):
    samples: int = 0
    psnr: float | None = None
    usage: float | None = None
    perplexity: float | None = None
    entropy_tau: float | None = None
    effective_size_tau: float | None = None
    mass_1_tau: float | None = None
    rfd: float | None = None
    real_fd: float | None = None
    fd: _Spread | None = None
    fd_guided: _Spread | None = None
    judge_accuracy: dict[str, float | None] = Field(default_factory=dict)
    class_agreement: dict[str, _Spread] = Field(default_factory=dict)


class _Row(_Loose):
    """Of the metrics."""

    __pydantic_extra__: dict[str, float | None]
    step: int


class _Line(_Loose):
    """Of a shared file: the small files of one Run, by their names."""

    name: str = Field(pattern=r"^[^./\\][^/\\]*$")
    config: _Config = Field(alias="config.json")
    record: _Record | None = Field(None, alias="record.json")
    metrics: list[_Row] | None = Field(None, alias="metrics.jsonl")
    evaluation: _Evaluation | None = Field(None, alias="evaluation.json")


class NoRun(InputError):
    """A config.json of something else, such as a teacher's."""


def read_config(folder: Path) -> dict[str, Any]:
    """What a run was asked for. Fields that files of others lack are filled in as empty.

    Raises FileNotFoundError without the file, ValueError where it is damaged, `NoRun` where it is of
    something else."""
    config = _read(folder, "config.json", "a run")
    if "stage" not in config:
        raise NoRun(f"{folder} is not a run: its config.json names no stage")
    _hold_to(_Config, config, f"{folder / 'config.json'} is damaged")
    empty = {"arm": "", "source": "", "seed": 0, "parent": None, "classes": [], "recipe": {}}
    return empty | config


def read_record(folder: Path) -> dict[str, Any]:
    """What happened in a run. Raises as `read_config`."""
    record = _read(folder, "record.json", "a run")
    _hold_to(_Record, record, f"{folder / 'record.json'} is damaged")
    return record


def read_evaluation(folder: Path) -> dict[str, Any]:
    """What `gear-studio evaluate` has measured of a run, empty before that. Raises as `read_config`."""
    if not holds(folder, "evaluation.json"):
        return {}
    evaluation = _read(folder, "evaluation.json", "an evaluated run")
    _hold_to(_Evaluation, evaluation, f"{folder / 'evaluation.json'} is damaged")
    return evaluation


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, oldest first; none where there is no such file. A last line that was being
    written, or was torn by a kill, is left out.

    Raises ValueError naming the first other line that is damaged."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return json.loads(_shared(folder).get(path.name, "[]"))
    rows = []
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            _Row.model_validate(row)
        except (ValueError, RecursionError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                break  # no line break follows: it was not written to its end
            raise InputError(
                f"{path} is damaged: line {number} holds {line[:60]!r}, no object of numbers with a step; "
                "take that line out, or train the run anew in another folder"
            ) from error
        rows.append(row)
    return rows


READERS: dict[str, Callable[[Path], Any]] = {
    "config.json": read_config,
    "record.json": read_record,
    "metrics.jsonl": read_metrics,
    "evaluation.json": read_evaluation,
}


def holds(folder: Path, name: str) -> bool:
    """Whether a small file of a run is there, in its folder or in a shared file."""
    return (folder / name).is_file() or name in _shared(folder)


def is_shared(folder: Path) -> bool:
    """Whether a run lies in a shared file and has no folder."""
    return bool(_shared(folder))


def run_folders(folder: Path, holding: str = "config.json") -> list[Path]:
    """The folders directly inside one that hold a small file, by name, and with them the paths of runs in
    shared files, which are not on the disk. A warning names shared files that are damaged."""
    there = {path.parent for path in folder.glob(f"*/{holding}")}
    try:
        named = [folder / name for path in folder.glob(SHARED) for name in _lines(path)]
        there |= {path for path in named if holds(path, holding)}
    except InputError as error:
        warnings.warn(f"passed over: {error}", stacklevel=2)
    return sorted(there)


def small_files(folder: Path) -> dict[str, Any]:
    """What the small files of a run hold, by their names. Raises as `read_config` and `read_metrics`."""
    return {name: read(folder) for name, read in READERS.items() if holds(folder, name)}


def write_small_files(folder: Path, files: dict[str, Any]) -> None:
    """Write into a folder what `small_files` gives."""
    for name, value in files.items():
        if name == "metrics.jsonl":
            _write_lines(folder / name, value)
        else:
            write_json(folder / name, value)


def read_shared(path: Path) -> dict[str, dict[str, Any]]:
    """What a shared file holds: by a run's name its small files by theirs. Without the file, nothing.

    Raises ValueError naming a line that is damaged."""
    return {
        run: {name: json.loads(text) for name, text in files.items()} for run, files in _lines(path).items()
    }


def write_shared(path: Path, runs: dict[str, dict[str, Any]]) -> None:
    """Write a shared file as `read_shared` gives it; no file for no runs."""
    if runs:
        _write_lines(path, [{"name": name} | files for name, files in runs.items()])
    else:
        path.unlink(missing_ok=True)


def _write_lines(path: Path, values: Sequence[object]) -> None:
    with atomic(path) as temporary:
        temporary.write_text("".join(f"{to_json(value)}\n" for value in values))


def _read(folder: Path, name: str, what: str) -> dict[str, Any]:
    shared = _shared(folder)
    return json.loads(shared[name]) if name in shared else read_json(folder / name, what)


def _shared(folder: Path) -> dict[str, str]:
    """The small files, as JSON by their names, of a run that lies in a shared file; of another, none."""
    if not folder.is_dir() and folder.parent.is_dir():
        for path in sorted(folder.parent.glob(SHARED)):
            if folder.name in (lines := _lines(path)):
                return lines[folder.name]
    return {}


def _lines(path: Path) -> dict[str, dict[str, str]]:
    """By the names of a shared file's runs their small files, held to the schema, as JSON by their names."""
    if not path.is_file():
        return {}
    state = path.stat()
    return _read_lines(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=32)  # a study's table asks hundreds of times
def _read_lines(path: Path, changed: int, size: int) -> dict[str, dict[str, str]]:
    lines = {}
    for number, line in enumerate(filter(None, read_text(path).split("\n")), 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = {}
        _hold_to(_Line, value, f"{path} is damaged in line {number}", "take that line out")
        lines[value.pop("name")] = {name: json.dumps(file) for name, file in value.items()}
    return lines


def _hold_to(
    schema: type[BaseModel], value: object, damaged: str, or_else: str = "delete the folder"
) -> None:
    try:
        schema.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        name, said = ".".join(map(str, problem["loc"])), problem["msg"].replace("Input should", "it has to")
        held = "" if problem["type"] == "missing" else f" is {one_line(repr(problem['input']))[:60]}"
        raise InputError(
            f"{damaged}: {name}{held}; {said.lower()}. Restore the file, or {or_else}"
        ) from error
