"""Names that users pick things by: built-ins first, then third parties' entry points, loaded when asked for."""

import difflib
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, cast

T = TypeVar("T")
E = TypeVar("E")


class UnknownNameError(LookupError):
    """A name that nothing is registered under; the message suggests the nearest ones."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not among `known`, suggesting the nearest."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UnknownNameError(f"unknown {kind} {name!r}: {hint}known are {', '.join(names)}")


class Registry(Generic[T]):
    """Built-in entries by name, joined by the entry-point group `tokengym.<kind>s` of installed distributions.

    A built-in wins over an entry point of the same name. Two distributions that claim one name raise `ValueError` when
    that name is asked for. An unknown name raises `UnknownNameError`.

    Args:
        kind: what is registered, for messages and for the group's name.
        modules: modules that register built-ins, imported when a name is first asked for.
    """

    def __init__(self, kind: str, modules: Iterable[str] = ()) -> None:
        self.kind = kind
        self.group = f"tokengym.{kind}s"
        self._modules = tuple(modules)
        self._builtin: dict[str, T] = {}

    def register(self, name: str) -> Callable[[E], E]:
        """Decorator that registers a built-in under `name`."""

        def add(entry: E) -> E:
            self._builtin[name] = cast(T, entry)
            return entry

        return add

    def names(self) -> list[str]:
        """All names that `get` accepts, sorted; loads no third-party code."""
        self._load()
        return sorted({*self._builtin, *(point.name for point in entry_points(group=self.group))})

    def get(self, name: str) -> T:
        """The entry registered under `name`; a third party's is imported here and not before."""
        self._load()
        if name in self._builtin:
            return self._builtin[name]
        points = tuple(entry_points(group=self.group, name=name))
        if len(points) > 1:
            owners = " and ".join(sorted(_distribution(point) for point in points))
            raise ValueError(f"{self.kind} {name!r} is claimed by {owners}: uninstall one of them")
        if not points:
            raise unknown_name(self.kind, name, self.names())
        return points[0].load()

    def _load(self) -> None:
        for module in self._modules:
            import_module(module)


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
