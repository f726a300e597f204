"""Plots as SVG, and SVG as an image inside a page: as an image it runs nothing and loads nothing."""

import base64
import io
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG = "{http://www.w3.org/2000/svg}"


def to_svg(figure: "Figure") -> str:
    """A matplotlib figure as SVG text, the same whenever it is drawn."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "tokengym"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def width(svg: str, name: str) -> float:
    """Width of a picture in its own units, points for matplotlib's; 0 if it states none.

    Args:
        svg: Picture as SVG.
        name: Name of the figure, for the message.

    Raises:
        ValueError: The text is not SVG.
    """
    try:
        root = ElementTree.fromstring(svg)  # noqa: S314 (nothing external is resolved, and expat bounds expansion)
    except ElementTree.ParseError as error:
        raise ValueError(f"figure {name!r} is not SVG: {error}") from error
    if root.tag != f"{_SVG}svg":
        raise ValueError(f"figure {name!r} is not SVG: it is a <{root.tag}>")
    box = root.get("viewBox", "").split()
    return float(box[2]) if len(box) == 4 else 0.0


def data_uri(svg: str) -> str:
    """A picture as the source of an `<img>`."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
