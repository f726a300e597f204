"""Settings of configuration classes: the values that they may have, and what docstrings say of them for help texts."""

import dataclasses
import inspect
import numbers
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from math import inf
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Optional, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
from annotated_types import Ge, Gt, Le, Lt

P = ParamSpec("P")
T = TypeVar("T")

Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
FinitePositive = Annotated[float, Gt(0), Lt(inf)]
Finite = Annotated[float, Gt(-inf), Lt(inf)]
NonNegative = Annotated[float, Ge(0), Lt(inf)]
Share = Annotated[float, Ge(0), Le(1)]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of a configuration class.

    Attributes:
        name: Name of the field.
        type: Type of its values.
        default: Default value; `dataclasses.MISSING` if there is none.
        text: Explanation of the field, without its source; "" if there is none.
        source: Source of the default as the docstring cites it in brackets at the end; "" if it cites none.
    """

    name: str
    type: Any
    default: Any
    text: str
    source: str


def check_settings(config: Any) -> None:
    """Checks the values of a configuration against the types of its fields, and the bounds and choices in them.

    A field of text may have a path. Bounds of the items of a list are those of each.

    Raises:
        TypeError: A value is of another kind than its field; the message names setting, kind and value.
        ValueError: A value is out of its bounds, not a number, or none of the choices; the message names setting,
            bounds and value.
    """
    for name, hint in _field_hints(type(config)).items():
        value = getattr(config, name)
        if not isinstance(value, PathLike):
            check_kind(name, value, hint)
    for name, limits in _limits(type(config)).items():
        limits.check(name, getattr(config, name))
    for name, limits in _item_limits(type(config)).items():
        for position, value in enumerate(getattr(config, name) or ()):
            limits.check(f"{name}[{position}]", value)


# What the values of a hint are instances of, and how messages call them.
_KINDS: Mapping[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
    Path: (Path, "a path"),
    NoneType: (NoneType, "None"),
    Mapping: (Mapping, "a mapping"),
    Callable: (Callable, "a function"),
    Iterable: (Iterable, "a list"),
    Sequence: (Sequence, "a list"),
    tuple: (Sequence, "a list"),
}
_LISTS = (Iterable, Sequence, tuple)


def argument_hint(parameter: inspect.Parameter) -> Any:
    """The type hint of a parameter, with `None` among its values where that is its default."""
    return parameter.annotation if parameter.default is not None else Optional[parameter.annotation]  # noqa: UP045


def check_kind(name: str, value: object, hint: Any) -> None:
    """Checks that a value is of the kind that its type hint says, where that names plain values alone.

    So are the items of a list. Text is no list of its letters.

    Raises:
        TypeError: It is not; the message has the name, what it must be, and the value.
    """
    members = _members(hint)
    kinds = [_KINDS.get(_origin(member)) for member in members]
    if None in kinds:
        return
    fitting = [
        member
        for member, kind in zip(members, kinds, strict=True)
        if kind is not None
        and isinstance(value, kind[0])
        and not (_origin(member) in _LISTS and isinstance(value, str | bytes))
    ]
    if not fitting:
        words = " or ".join(kind[1] for kind in kinds if kind is not None)
        raise TypeError(f"{name} must be {words}, got {value!r}")
    if isinstance(value, list | tuple) and _origin(fitting[0]) in _LISTS:
        _check_items(name, value, fitting[0])


def _check_items(name: str, values: Sequence[object], hint: Any) -> None:
    """Checks the items of a list against its type hint, see `check_kind`."""
    hints = get_args(hint)
    if _origin(hint) is not tuple or hints[1:] == (...,):
        hints = hints[:1] * len(values)
    if hints and len(hints) != len(values):
        raise TypeError(f"{name} must be a list of {len(hints)}, got {values!r}")
    for position, (value, item) in enumerate(zip(values, hints, strict=False)):
        check_kind(f"{name}[{position}]", value, item)


def kinds_checked(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator of what users call: its arguments are checked against their type hints, see `check_kind`."""
    parameters = inspect.signature(function).parameters
    hints = {
        name: argument_hint(parameter)
        for name, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        for name, value in (*zip(parameters, args, strict=False), *kwargs.items()):
            if name in hints:
                check_kind(name, value, hints[name])
        return function(*args, **kwargs)

    return checked


def _origin(member: Any) -> Any:
    """The class of a type hint's values, without that of their items."""
    return get_origin(member) or member


def _members(hint: Any) -> tuple[Any, ...]:
    """The types that a hint is a union of, without what is said of them besides."""
    return tuple(get_args(member)[0] if get_origin(member) is Annotated else member for member in _alternatives(hint))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The hints that a hint is a union of; itself if it is none."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def check_unused(config: Any, names: Sequence[str], needs: str) -> None:
    """Checks that settings which count only with another one were left as they are without it.

    Args:
        config: Configuration of a class whose settings have defaults.
        names: Names of the settings that do not count.
        needs: Setting that they would need, such as `pairs="steps"`.

    Raises:
        ValueError: One of them differs from its default; the message names it and what it needs.
    """
    defaults = {field.name: _default(field) for field in dataclasses.fields(config)}
    for name in names:
        if (value := getattr(config, name)) != defaults[name]:
            raise ValueError(f"{name} is {value!r}, but it counts only with {needs}: set that, or leave {name} out")


@dataclasses.dataclass(frozen=True)
class _Limits:
    """Values that a field may have: its bounds, each with its comparison in code and in words, or its choices."""

    bounds: Sequence[tuple[Any, str, float]]
    choices: tuple[Any, ...]
    optional: bool

    def check(self, name: str, value: Any) -> None:
        """Raises `ValueError` unless a field may have the value."""
        if value is None and self.optional:
            return
        if self.choices and value not in self.choices:
            raise ValueError(f"{name} must be one of {', '.join(map(str, self.choices))}, got {value!r}")
        if value is None or value != value or not all(compare(value, bound) for compare, _, bound in self.bounds):
            raise ValueError(f"{name} must be {self}, got {value}")

    def __str__(self) -> str:
        words, values = [word for _, word, _ in self.bounds], [bound for *_, bound in self.bounds]
        if -inf in values:
            return "finite"
        if words == ["at least", "at most"]:
            return f"between {values[0]} and {values[1]}"
        if inf in values:
            return f"{words[0]} {values[0]} and finite"
        if not words:
            return "a number"
        return " and ".join(f"{word} {value}" for word, value in zip(words, values, strict=True))


_COMPARISONS = {
    Ge: (operator.ge, "at least"),
    Gt: (operator.gt, "above"),
    Le: (operator.le, "at most"),
    Lt: (operator.lt, "below"),
}


@cache
def _field_hints(config: type) -> dict[str, Any]:
    """The type hints of the fields of a configuration class."""
    hints = get_type_hints(config, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


@cache
def _limits(config: type) -> dict[str, _Limits]:
    """The limits of those fields of a configuration class that have any."""
    hints = get_type_hints(config, include_extras=True)
    return {name: limits for name, hint in hints.items() if (limits := _limits_of(hint)) is not None}


@cache
def _item_limits(config: type) -> dict[str, _Limits]:
    """The bounds of the items of those fields of a configuration class that are lists of any length."""
    found: dict[str, _Limits] = {}
    for name, hint in get_type_hints(config, include_extras=True).items():
        for item, *rest in (get_args(member) for member in _alternatives(hint) if _origin(member) is tuple):
            if rest == [...] and (limits := _limits_of(item)) is not None and not limits.choices:
                found[name] = limits
    return found


def _limits_of(hint: Any) -> _Limits | None:
    """The limits that a type hint sets, if it sets any."""
    members = _alternatives(hint)
    bounds = [
        (*_COMPARISONS[type(bound)], dataclasses.astuple(bound)[0])
        for member in members
        for bound in getattr(member, "__metadata__", ())
        if type(bound) in _COMPARISONS
    ]
    choices = tuple(choice for one in members if get_origin(one) is Literal for choice in get_args(one))
    if bounds or choices or any(member is float for member in members):
        return _Limits(bounds, choices, NoneType in members)
    return None


def settings_of(config: type) -> list[Setting]:
    """Settings of a configuration class: its own fields, then those of its bases, the nearest base first.

    A field is explained by the nearest class whose docstring has it among its attributes.
    """
    classes = [one for one in config.__mro__ if dataclasses.is_dataclass(one)]
    defaults = {field.name: _default(field) for field in dataclasses.fields(config) if field.init}
    order = dict.fromkeys(name for one in classes for name in inspect.get_annotations(one) if name in defaults)
    hints, texts = get_type_hints(config), dict.fromkeys(defaults, ("", ""))
    for one in reversed(classes):
        entries = docstring_parser.parse(inspect.getdoc(one) or "").params
        texts |= {entry.arg_name: split_source(" ".join((entry.description or "").split())) for entry in entries}
    return [Setting(name, hints[name], defaults[name], *texts[name]) for name in order]


def split_source(text: str) -> tuple[str, str]:
    """The text of a setting without the source in brackets at its end, and the source, "" if it cites none."""
    found = re.fullmatch(r"(.*) \[([^\[\]]+)\]", text)
    return (found[1], found[2]) if found else (text, "")


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
