"""Render templates, styles and scripts to a single HTML file that opens without a network.

The Content-Security-Policy of the page allows no external content, and only the page's own script, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from utils.files import write_text
from utils.ledger import environment

FOLDER = Path(__file__).parent

MINUS = "\N{MINUS SIGN}"

_environment = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def write_page(path: Path, template: str, scripts: Sequence[str], **content: object) -> None:
    """Render a template and write the page atomically.

    Args:
        path: path of the page.
        template: template file in this folder.
        scripts: script files in this folder, in the order in which they run.
        content: variables of the template; all text is escaped.

    Raises:
        OSError: it cannot be written.
    """
    script = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Plots have inline style attributes, which cannot be hashed; they cannot load anything.
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    page = _environment.get_template(template).render(policy=policy, style=style, script=script, **content)
    write_text(path, page)


def made_with(device: torch.device) -> dict[str, str]:
    """Facts for the footer of a page: versions, machine and device that computed the results."""
    facts = environment(device)
    versions = ", ".join(f"{name} {number}" for name, number in facts.pop("versions").items())
    del facts["threads"]  # does not change results, and differs with several processes
    return {**{name: str(value) for name, value in facts.items() if value is not None}, "versions": versions}
