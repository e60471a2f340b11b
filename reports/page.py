"""From templates, styles and scripts to one HTML file that opens without a network.

The page's Content-Security-Policy allows nothing from elsewhere, and no script but the page's own, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from utils.files import write_text
from utils.manifest import environment

FOLDER = Path(__file__).parent

MINUS = "\N{MINUS SIGN}"

_environment = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def write_page(path: Path, template: str, scripts: Sequence[str], **content: object) -> None:
    """Fill a template and write it, whole or not at all.

    Args:
        path: of the page.
        template: file in this folder.
        scripts: files in this folder that run in the page, in order.
        content: of the template; all text is escaped.

    Raises:
        OSError: it cannot be written.
    """
    script = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Styles stand in the plots as attributes, which have no hash; they cannot load anything.
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    page = _environment.get_template(template).render(policy=policy, style=style, script=script, **content)
    write_text(path, page)


def made_with(device: torch.device) -> dict[str, str]:
    """The facts at the foot of a page about what computed its results: versions, machine, device."""
    facts = environment(device)
    versions = ", ".join(f"{name} {number}" for name, number in facts.pop("versions").items())
    del facts["threads"]  # of no consequence for results, and other ones with several processes
    return {**{name: str(value) for name, value in facts.items() if value is not None}, "versions": versions}
