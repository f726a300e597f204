"""Name registries: built-ins, and entry points of installed packages, each imported when it is asked for."""

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from .settings import argument_hint, check_kind

T = TypeVar("T")
E = TypeVar("E")

PLUGINS: set[str] = set()
"""Top-level packages of the entry points that have been imported."""


class UnknownNameError(LookupError):
    """A name that nothing is registered under; the message suggests the nearest ones."""


class EntryPointError(ValueError):
    """An entry point of an installed package that cannot be used; the message names the package and the fault."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not among `known`, or is no name at all, suggesting the nearest."""
    return UnknownNameError(f"unknown {kind} {name!r}: {_nearest(name, known)}")


def _nearest(name: object, known: Iterable[str]) -> str:
    """The name that was meant, if one is near, and all that are known."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1) if isinstance(name, str) else []
    return f"{f'did you mean {near[0]!r}? ' if near else ''}known are {', '.join(names)}"


def check_known(kind: str, names: Iterable[object], known: Iterable[str]) -> None:
    """Raises `UnknownNameError` for the first of some names that is not among `known`."""
    known = list(known)
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)


def entry_point_names(group: str) -> list[str]:
    """Names that installed distributions declare in a group of entry points, sorted; imports nothing of theirs."""
    return sorted({point.name for point in entry_points(group=group)})


def summary(thing: object) -> str:
    """The first line of a docstring of its own; empty if there is none."""
    return (thing.__doc__ or "").strip().split("\n", 1)[0]


class Registry(Generic[T]):
    """Built-in entries by name, joined by the entry-point group `tokengym.<kind>s` of installed distributions.

    A built-in wins over an entry point of the same name.

    Args:
        kind: Kind of things that are registered, for messages and for the group's name.
        built_in: Built-ins by name, each as "module:attribute", imported when it is asked for.
        base: Class of what is registered, as "module:attribute": entry points name concrete subclasses of it.
        factories: Take functions, too, whose results are of that class, see `check_made`.
    """

    def __init__(
        self, kind: str, built_in: Mapping[str, str] | None = None, *, base: str, factories: bool = True
    ) -> None:
        self.kind = kind
        self.group = f"tokengym.{kind}s"
        self._homes = dict(built_in or {})
        self._registered: dict[str, T] = {}
        self._base = base
        self._factories = factories

    def register(self, name: str) -> Callable[[E], E]:
        """Decorator that registers a built-in under `name`."""

        def add(entry: E) -> E:
            self._registered[name] = cast(T, entry)
            return entry

        return add

    def names(self) -> list[str]:
        """All names, sorted; imports nothing."""
        return sorted({*self._homes, *self._registered, *entry_point_names(self.group)})

    def get(self, name: str) -> T:
        """The entry registered under `name`.

        Raises:
            UnknownNameError: Nothing is registered under that name.
            EntryPointError: Several distributions claim the name, or the one that does cannot be imported or names
                something of another kind.
        """
        if name in self._registered:
            return self._registered[name]
        if name in self._homes:
            return cast(T, attribute(self._homes[name]))
        points = tuple(entry_points(group=self.group, name=name))
        if len(points) > 1:
            owners = " and ".join(sorted(_distribution(point) for point in points))
            raise EntryPointError(f"{self.kind} {name!r} is claimed by {owners}: uninstall one of them")
        if not points:
            raise unknown_name(self.kind, name, self.names())
        return self._load(points[0])

    def make(self, spec: object) -> Any:
        """What `spec` describes: a name, a mapping `{"name": ..., **arguments}`, or a thing that is made already.

        Raises:
            UnknownNameError: Nothing is registered under that name.
            ValueError: The spec is none of these, or its arguments do not fit, see `make_named`.
        """
        base = attribute(self._base)
        if isinstance(spec, base):
            return spec
        arguments = {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
        name = arguments.pop("name", None)
        if not isinstance(name, str):
            kind = self.kind.replace("_", " ")
            raise ValueError(
                f'{"an" if kind[0] in "aeiou" else "a"} {kind} is a name, a mapping {{"name": ..., **arguments}} or '
                f"{'an' if base.__name__[0] in 'AEIOU' else 'a'} {base.__name__}, not {spec!r}"
            )
        return self.make_named(name, arguments)

    def make_named(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """What the entry registered under `name` makes of arguments.

        Raises:
            UnknownNameError: Nothing is registered under that name.
            ValueError: It has no such argument, and the nearest is suggested; one is missing, or of another kind than
                its type hint; or another package's entry cannot be used.
        """
        factory = self.get(name)
        assert callable(factory)  # noqa: S101
        parameters = inspect.signature(factory).parameters
        kinds = {parameter.kind for parameter in parameters.values()}
        known = {
            parameter: item
            for parameter, item in parameters.items()
            if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)
        }
        for argument, value in arguments.items():
            if argument in known:
                try:
                    check_kind(argument, value, argument_hint(known[argument]))
                except TypeError as error:
                    raise ValueError(f"{self.kind} {name!r}: {error}") from None
            elif inspect.Parameter.VAR_KEYWORD not in kinds:
                which = _nearest(argument, known) if known else "it takes none"
                raise ValueError(f"{self.kind} {name!r} has no argument {argument!r}: {which}")
        missing = [item for item in known.values() if item.default is item.empty and item.name not in arguments]
        if missing:
            spec = ", ".join(f'"{item.name}": ...' for item in missing)
            needed = " and ".join(item.name for item in missing)
            raise ValueError(f'{self.kind} {name!r} needs {needed}: give {{"name": "{name}", {spec}}}')
        thing = factory(**arguments)
        self.check_made(name, thing)
        return thing

    def check_made(self, name: str, thing: object) -> None:
        """Raises `EntryPointError` unless what the entry registered under `name` has made is of the class `base`."""
        base = attribute(self._base)
        if not isinstance(thing, base):
            owners = "".join(f" of {_distribution(point)}" for point in entry_points(group=self.group, name=name))
            raise EntryPointError(
                f"{self.kind} {name!r}{owners} makes a {type(thing).__name__}, and no {base.__module__}."
                f"{base.__qualname__}: repair it"
            )

    def summary(self, name: str) -> str:
        """First line of an entry's docstring; see `summaries`, and `get` for the errors."""
        lazily = name in self._homes and name not in self._registered
        return _summary_in_source(self._homes[name]) if lazily else summary(self.get(name))

    def summaries(self) -> dict[str, str]:
        """First line of each entry's docstring by name, or the fault of an entry point that cannot be used.

        Built-ins that are imported when asked for are not imported for this: their source is read.
        """
        found: dict[str, str] = {}
        for name in self.names():
            try:
                found[name] = self.summary(name)
            except EntryPointError as error:
                found[name] = f"cannot be used: {error}"
        for point in entry_points(group=self.group):
            if point.name in self._homes or point.name in self._registered:
                found[point.name] += f" (hides the {self.kind} of that name of {_distribution(point)})"
        return found

    def _load(self, point: EntryPoint) -> T:
        where = f"{self.kind} {point.name!r} of {_distribution(point)} (entry point {point.value})"
        PLUGINS.add(point.value.partition(":")[0].partition(".")[0])
        try:
            entry = point.load()
        except (Exception, SystemExit) as error:  # another package's code may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise EntryPointError(f"{where} cannot be imported: {reason}; repair or uninstall it") from error
        base = attribute(self._base)
        wanted = f"is a subclass of {base.__module__}.{base.__qualname__} with all its methods"
        if isinstance(entry, type):
            fits = issubclass(entry, base) and not inspect.isabstract(entry)
        else:
            fits = self._factories and callable(entry)
            wanted += ", or a function that makes one" if self._factories else ""
        if not fits:
            raise EntryPointError(f"{where} names {entry!r:.80}, which is no {self.kind}: name one that {wanted}")
        return cast(T, entry)


def attribute(place: str) -> type:
    """The class or function at "module:name", which is imported."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


@cache
def _summary_in_source(place: str) -> str:
    """The first line of the docstring of a class or function of a module, which is not imported."""
    module, _, attribute = place.partition(":")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
            return (ast.get_docstring(node) or "").split("\n", 1)[0]
    return ""


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
