"""Plots as SVG that can stand inside a page: nothing that acts, nothing from elsewhere, names that don't collide."""

import io
import re
from html import escape
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG = "{http://www.w3.org/2000/svg}"
_ELEMENTS = frozenset(
    {"svg", "g", "defs", "path", "use", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text", "tspan"}
    | {"title", "desc", "image", "clipPath", "pattern", "marker", "mask", "symbol"}
    | {"linearGradient", "radialGradient", "stop"}
)
_REFERENCE = re.compile(r"url\(\s*['\"]?(.*?)['\"]?\s*\)", re.IGNORECASE)


def to_svg(figure: "Figure") -> str:
    """A matplotlib figure as SVG text, the same whenever it is drawn."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "tokengym"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def clean_svg(svg: str, prefix: str) -> str:
    """The drawing alone: no scripts, styles, handlers or references to elsewhere, and `prefix` before every id.

    Raises:
        ValueError: The text is not SVG.
    """
    try:
        root = ElementTree.fromstring(svg)  # noqa: S314 (nothing external is resolved, and expat bounds expansion)
    except ElementTree.ParseError as error:
        raise ValueError(f"figure {prefix!r} is not SVG: {error}") from error
    if root.tag != f"{_SVG}svg":
        raise ValueError(f"figure {prefix!r} is not SVG: it is a <{root.tag}>")
    root.attrib = {name: value for name, value in root.attrib.items() if name in ("width", "height", "viewBox")}
    return _text(root, prefix, ' xmlns="http://www.w3.org/2000/svg" stroke-linejoin="round"')


def _text(element: ElementTree.Element, prefix: str, more: str = "") -> str:
    tag = str(element.tag).removeprefix(_SVG)
    if tag not in _ELEMENTS:
        return ""
    attributes = "".join(
        f' {name}="{escape(value)}"'
        for name, value in (_attribute(*item, prefix) for item in element.attrib.items())
        if value is not None
    )
    inner = escape(element.text or "")
    inner += "".join(_text(child, prefix) + escape(child.tail or "") for child in element)
    return f"<{tag}{more}{attributes}>{inner.strip()}</{tag}>"


def _attribute(name: str, value: str, prefix: str) -> tuple[str, str | None]:
    """An attribute's name and value in the page; no value where it has no place there."""
    name = name.rpartition("}")[2]  # xlink:href is href today
    if name == "id":
        return name, f"{prefix}-{value}"
    if name == "href":
        if value.startswith("#"):
            return name, f"#{prefix}-{value[1:]}"
        return name, value if value.startswith("data:image/png;base64,") else None
    if name.lower().startswith("on") or not re.fullmatch(r"[A-Za-z-]+[0-9]?", name):
        return name, None
    references = _REFERENCE.findall(value)
    if all(reference.startswith("#") for reference in references) and "\\" not in value:
        return name, _REFERENCE.sub(lambda match: f"url(#{prefix}-{match[1][1:]})", value)
    return name, None
