"""Which values a setting takes: ranges as types of fields, and `check`, which holds a value to them.

A dataclass of settings says the range where it says the type (`steps: Count`). From there the command line
takes it for its help, and `check` for its errors: pydantic judges. Fields without a range are names and
places, which whoever looks them up judges.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ParamSpec, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from annotated_types import GroupedMetadata, Interval, MaxLen, MinLen
from pydantic import AllowInfNan, BaseModel, BeforeValidator, Strict, ValidationError, create_model
from tyro.constructors import PrimitiveConstructorSpec

from gear_studio.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")


class Range(PrimitiveConstructorSpec, GroupedMetadata):
    """A number's type and limits (ge: at least, gt: above, le: at most, lt: below), for pydantic and tyro.

    A whole number is no 2.9 and no True; no number is infinite or NaN."""

    def __init__(self, kind: type, **limits: float):
        super().__init__(
            nargs=1,
            metavar=f"{kind.__name__.upper()}{describe_limits(limits)}",
            instance_from_str=lambda words: kind(words[0]),
            is_instance=lambda value: isinstance(value, int | kind),
            str_from_instance=lambda value: [str(value)],
        )
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "limits", limits)

    def __iter__(self) -> Iterator[object]:
        """The constraints, one by one, as pydantic asks for them."""
        yield BeforeValidator(lambda value: value.item() if isinstance(value, np.generic) else value)
        yield Strict()
        if self.kind is float:  # type: ignore[attr-defined]
            yield AllowInfNan(False)
        yield Interval(**self.limits)  # type: ignore[attr-defined]


def describe_limits(limits: Mapping[str, float]) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return ",".join(f"{signs[name]}{limit}" for name, limit in limits.items())


Count: TypeAlias = Annotated[int, Range(int, ge=1)]
Natural: TypeAlias = Annotated[int, Range(int, ge=0)]
Several: TypeAlias = Annotated[int, Range(int, ge=2)]
Seed: TypeAlias = Annotated[int, Range(int, ge=0, lt=2**32)]
Workers: TypeAlias = Annotated[int, Range(int, ge=0, le=256)]  # processes, each of which takes memory
Port: TypeAlias = Annotated[int, Range(int, ge=1, le=65535)]
Number: TypeAlias = Annotated[float, Range(float)]
Positive: TypeAlias = Annotated[float, Range(float, gt=0)]
NonNegative: TypeAlias = Annotated[float, Range(float, ge=0)]
Probability: TypeAlias = Annotated[float, Range(float, ge=0, le=1)]
Mass: TypeAlias = Annotated[float, Range(float, gt=0, le=1)]
Decay: TypeAlias = Annotated[float, Range(float, ge=0, lt=1)]
Flag: TypeAlias = Annotated[bool, Strict()]
Counts: TypeAlias = Annotated[tuple[Count, ...], MinLen(1)]  # at least one

# Sizes of models. The limits are far above any that is known; they stop a damaged or hostile config before
# anything of its size is built.
Extent: TypeAlias = Annotated[int, Range(int, ge=1, le=1024)]
Extents: TypeAlias = Annotated[tuple[Extent, ...], MinLen(1), MaxLen(16)]
Width: TypeAlias = Annotated[int, Range(int, ge=1, le=65536)]
Amount: TypeAlias = Annotated[int, Range(int, ge=0, le=2**20)]
Pixels: TypeAlias = Annotated[int, Range(int, ge=1, le=8192)]
Codes: TypeAlias = Annotated[int, Range(int, ge=2, le=2**20)]


def check(settings: Any, within: str = "") -> None:
    """Raise ValueError for the fields of a dataclass that are out of their range, those of dataclasses in it
    included. within: what a message puts before a field's name."""
    kind: Any = type(settings)
    hints = _hints(kind)
    held = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    problems = _problems(kind, held, within)
    for name, value in held.items():
        if (part := _part(hints[name])) and not isinstance(value, part):
            problems.append(f"{within}{name} is {value!r}; set its parts, as in {within}{name}.NAME")
    if problems:
        raise InputError(". ".join(problems))
    for name, value in held.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            check(value, f"{within}{name}.")


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """The same function; it raises ValueError for arguments out of their range, those in dataclasses
    included."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        if problems := _problems(function, bound.arguments):
            raise InputError(". ".join(problems))
        for value in bound.arguments.values():
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                check(value)
        return function(*args, **kwargs)

    return call


@functools.cache
def _hints(settings: Any) -> dict[str, Any]:
    return get_type_hints(settings, include_extras=True)


_CONSTRAINTS = (Range, Strict, MinLen)


def _part(hint: Any) -> type | None:
    """The dataclass of settings that a field holds; None where it holds something else."""
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return bare if isinstance(bare, type) and dataclasses.is_dataclass(bare) else None


def _has_range(hint: Any) -> bool:
    """Whether a type says a range, itself or in one of its parts."""
    if _part(hint):
        return False
    said = getattr(hint, "__metadata__", ())
    return any(isinstance(each, _CONSTRAINTS) for each in said) or any(map(_has_range, get_args(hint)))


@functools.cache
def _judge(settings: Any) -> type[BaseModel]:
    """What pydantic makes of the fields that have a range."""
    ranged: dict[str, Any] = {
        name: (hint, None) for name, hint in _hints(settings).items() if _has_range(hint)
    }
    return create_model(settings.__name__, **ranged)


def _problems(settings: Any, held: Mapping[str, Any], within: str = "") -> list[str]:
    """What is wrong with values by name, each as a sentence that says the value and its range."""
    judge = _judge(settings)
    try:
        judge.model_validate({name: held[name] for name in held if name in judge.model_fields})
    except ValidationError as error:
        return [_describe(problem, held, within) for problem in error.errors()]
    return []


def _describe(problem: Any, held: Mapping[str, Any], within: str) -> str:
    """One of pydantic's problems in words."""
    name, *inside = problem["loc"]
    part = f" its value {inside[0] + 1}" if inside and isinstance(inside[0], int) else " it"
    said = problem["msg"].replace("Input should", f"{part} has to").strip()
    if problem["type"] == "missing":
        said = "it has too few values"
    elif problem["type"] in ("too_short", "too_long"):
        said = f"it has to have at {'least' if problem['type'] == 'too_short' else 'most'} "
        said += f"{problem['ctx'].get('min_length', problem['ctx'].get('max_length'))} of them"
    return f"{within}{name} is {held[name]!r}; {said}"
