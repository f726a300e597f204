"""Settings of configuration classes with what their docstrings say of them, for help texts and the documentation."""

import dataclasses
import inspect
import re
from typing import Any, get_type_hints

import docstring_parser


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


def settings_of(config: type) -> list[Setting]:
    """Settings of a configuration class: its own fields, then those of its bases, the nearest base first.

    A field is explained by the nearest class whose docstring has it among its attributes.
    """
    classes = [one for one in config.__mro__ if dataclasses.is_dataclass(one)]
    defaults = {field.name: _default(field) for field in dataclasses.fields(config) if field.init}
    order = dict.fromkeys(name for one in classes for name in inspect.get_annotations(one) if name in defaults)
    hints, texts = get_type_hints(config, include_extras=True), dict.fromkeys(defaults, ("", ""))
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
