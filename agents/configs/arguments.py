"""Settings of agents as named arguments: checked against the configuration's fields, and shown in signatures."""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...registry import unknown_name

_logger = logging.getLogger(__name__)


def configure(config_class: type, values: Mapping[str, Any], others: Iterable[str] = ()) -> Any:
    """A configuration with some fields set, also by the names that they had in the version before.

    Args:
        config_class: Class of the configuration.
        values: Values of fields by name.
        others: Names that the caller takes beside the fields, one of which an unknown name may have meant.

    Raises:
        TypeError: A name is that of no field, and the nearest is suggested; or a field is given under both names.
    """
    known = [field.name for field in dataclasses.fields(config_class)]
    values = _with_new_names(config_class, values)
    for name in values:
        if name not in known:
            raise TypeError(str(unknown_name(f"setting of {config_class.__name__}", name, {*known, *others})))
    return config_class(**values)


def _with_new_names(config_class: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, those of fields by their names in the version before under their names of today."""
    renamed, found = getattr(config_class, "renamed", {}), dict(values)
    for old in [name for name in values if name in renamed]:
        new = renamed[old]
        if new in values:
            raise TypeError(f"{config_class.__name__} is given {new} and {old}, its old name: leave out {old}")
        _logger.warning("%s.%s is called %s now, and its old name goes with the next version",
                        config_class.__name__, old, new)  # fmt: skip
        found[new] = found.pop(old)
    return found


def full_signature(init: Callable[..., None], base: Callable[..., None], config_class: type) -> inspect.Signature:
    """The arguments of an agent, with the fields of its configuration in place of `**config`.

    Args:
        init: `__init__` of the agent's class.
        base: `__init__` that it passes its arguments on to if it takes any.
        config_class: Class of the configuration.
    """
    parameters = inspect.signature(init).parameters
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values()):
        parameters = inspect.signature(base).parameters
    own = [item for name, item in parameters.items() if name != "self" and item.kind is not item.VAR_KEYWORD]
    if len(own) + 1 < len(parameters) and dataclasses.is_dataclass(config_class):
        config = inspect.signature(config_class).parameters.values()
        own += [item.replace(kind=item.KEYWORD_ONLY) for item in config]
    return inspect.Signature(own)
