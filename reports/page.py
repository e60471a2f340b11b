"""Render template, style, script and plots to a single HTML file that opens without a network.

The Content-Security-Policy of the page allows no external content, and only the page's own script, by its hash. Plots
are inline SVG: text stays text, and text and axes take the colours of the page.
"""

import base64
import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.files import write_text
from utils.ledger import environment

FOLDER = Path(__file__).parent

MINUS = "\N{MINUS SIGN}"

INK = "#010203"
"""Placeholder for the text colour of the page."""

_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": True,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Plot:
    """An SVG element and its caption, which describes the plot in words."""

    svg: str
    caption: str


_environment = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def write_page(path: Path, **content: object) -> None:
    """Render the page, with the variables of its template as content, all text escaped, and write it atomically."""
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Plots have inline style attributes, which cannot be hashed; they cannot load anything.
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    page = _environment.get_template("page.html").render(policy=policy, style=style, script=script, **content)
    write_text(path, page)


def made_with(device: torch.device) -> dict[str, str]:
    """Facts for the footer of a page: versions, machine and device that computed the results."""
    facts = environment(device)
    versions = ", ".join(f"{name} {number}" for name, number in facts.pop("versions").items())
    del facts["threads"]  # does not change results, and differs with several processes
    return {**{name: str(value) for name, value in facts.items() if value is not None}, "versions": versions}


def draw(name: str, title: str, caption: str, paint: Callable[[Axes], None], left: float) -> Plot:
    """Draw a plot, whose name is one word, unique in the page; `left` is space for labels in inches."""
    width, height = 3.9, 2.5
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        # Fixed margins: measuring all text would take most of the time of a plot.
        figure = Figure(figsize=(width, height))
        bottom, right, top = 0.45, 0.12, 0.28
        box = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
        axes = figure.add_axes(box)
        axes.set_title(title, loc="left", fontweight="bold")
        paint(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor")
    # Several plots share a page: the name of the plot makes ids unique.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    head = '<svg viewBox="{}" role="img" aria-label="{}">'
    label = escape(f"{title}. {caption}")
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', lambda tag: head.format(tag[1], label), svg, count=1)
    return Plot(svg, caption)
