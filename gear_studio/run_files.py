"""The small files of a run's folder as they are read: config.json, record.json, metrics.jsonl and
evaluation.json.

A folder may come from anywhere, so what it says is held to a schema here, once for all who look at runs. An
error names the file, what is wrong in it, and the way out.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gear_studio.errors import InputError
from gear_studio.files import one_line, read_json, read_text


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


_Row = TypeAdapter(dict[str, float | None])


class NoRun(InputError):
    """A config.json of something else, such as a teacher's."""


def read_config(folder: Path) -> dict[str, Any]:
    """What a run was asked for. Fields that files of others lack are filled in as empty.

    Raises FileNotFoundError without the file, ValueError where it is damaged, `NoRun` where it is of
    something else."""
    path = folder / "config.json"
    config = read_json(path, "a run")
    if "stage" not in config:
        raise NoRun(f"{folder} is not a run: its config.json names no stage")
    _hold_to(_Config, config, path)
    empty = {"arm": "", "source": "", "seed": 0, "parent": None, "classes": [], "recipe": {}}
    return empty | config


def read_record(folder: Path) -> dict[str, Any]:
    """What happened in a run. Raises as `read_config`."""
    path = folder / "record.json"
    record = read_json(path, "a run")
    _hold_to(_Record, record, path)
    return record


def read_evaluation(folder: Path) -> dict[str, Any]:
    """What `gear-studio evaluate` has measured of a run, empty before that. Raises as `read_config`."""
    path = folder / "evaluation.json"
    if not path.is_file():
        return {}
    evaluation = read_json(path, "an evaluated run")
    _hold_to(_Evaluation, evaluation, path)
    return evaluation


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, oldest first; none where there is no such file. A last line that was
    being written, or was torn by a kill, is left out.

    Raises ValueError naming the first other line that is damaged."""
    if not path.is_file():
        return []
    text = read_text(path)
    rows = []
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            _Row.validate_python(row)
            if not isinstance(row["step"], int):
                raise InputError(f"its step is {row['step']!r}")
        except (ValueError, KeyError, RecursionError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                break  # no line break follows: it was not written to its end
            raise InputError(
                f"{path} is damaged: line {number} holds {line[:60]!r}, no object of numbers with a step; "
                "take that line out, or train the run anew in another folder"
            ) from error
        rows.append(row)
    return rows


def _hold_to(schema: type[BaseModel], value: dict[str, Any], path: Path) -> None:
    try:
        schema.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        name, said = ".".join(map(str, problem["loc"])), problem["msg"].replace("Input should", "it has to")
        held = "" if problem["type"] == "missing" else f" is {one_line(repr(problem['input']))[:60]}"
        raise InputError(
            f"{path} is damaged: {name}{held}; {said.lower()}. Restore the file, or delete the folder"
        ) from error
