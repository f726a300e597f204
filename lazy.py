"""Imports put off until they are needed: torch and transformers take seconds, Gymnasium and numpy tenths of one."""

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Iterable[str]], moved: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package that exports names of its modules, each imported at its first use.

    Args:
        package: Name of the package, its `__name__`.
        homes: Modules of the package, each with the names that are found there; under "" the names of modules
            themselves.
        moved: Names of the last version, each with its new place, "module:name": using one gives a
            `DeprecationWarning`.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if moved and name in moved:
            module, _, new_name = moved[name].partition(":")
            message = f"{package}.{name} is now {module}.{new_name}; the old name goes with the next version"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            return getattr(import_module(module), new_name)
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = home_of[name]
        value = getattr(import_module(f"{package}.{home}"), name) if home else import_module(f"{package}.{name}")
        setattr(sys.modules[package], name, value)  # found without this function from now on
        return value

    def listed() -> list[str]:
        own = vars(sys.modules[package])
        return sorted({*own.get("__all__", ()), *(name for name in own if name.startswith("__"))})

    return get, listed


def after_import(name: str, action: Callable[[], object]) -> None:
    """Calls `action` once the top-level module of that name has been imported; at once if it has been already."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _AfterImport(name, action))


class _AfterImport(MetaPathFinder, Loader):
    """Finds and loads one module as Python would without it, calls the action, and is gone."""

    def __init__(self, name: str, action: Callable[[], object]) -> None:
        self._name = name
        self._action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._action()
