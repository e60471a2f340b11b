"""How results came about: ``manifest.json``, beside every result."""

from __future__ import annotations

import json
import logging
import platform
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from configs.settings import Settings
from utils import distributed
from utils.errors import FolderError, GasnetError
from utils.files import write_text

log = logging.getLogger(__name__)

NAME = "manifest.json"
_FORMAT = "GASNet manifest"
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-image", "SimpleITK", "nibabel", "pydicom", "pyimgaug")
"""Whose versions may change a result."""


@cache
def project_version() -> str:
    """The version of this code, from pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


@cache
def git_revision() -> str | None:
    """The commit that is checked out, with ``-modified`` where tracked files differ from it; None outside of git."""
    try:
        # A copy of the code inside some other repository is not at that one's revision.
        top = _git("rev-parse", "--show-toplevel")
        if Path(top).resolve() != ROOT:
            return None
        return _git("rev-parse", "HEAD") + ("-modified" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Versions of everything that may change a result, and the machine, but for names of hosts and users."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    found = {"gasnet": project_version(), "git": git_revision(), "versions": versions, "platform": platform.platform()}
    if device is not None:
        found["device"] = str(device)
        found["threads"] = torch.get_num_threads()
        if device.type == "cuda":
            found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest of this project, perhaps a damaged one.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return _FORMAT.encode() in file.read(200)


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """What is known of the runs that wrote to a folder, the latest last; nothing where there is no manifest.

    A damaged manifest is named and passed over: it is no reason to lose the results beside it.
    """
    path = folder / NAME
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        if not (isinstance(runs, list) and all(isinstance(run, dict) for run in runs)):
            raise TypeError("runs are not what they should be")
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s: not readable (%s); it is begun anew", path, error)
        return []
    return runs


@contextmanager
def recording(
    folder: Path,
    *,
    device: torch.device | None = None,
    settings: Settings | None = None,
    seed: int | None = None,
    **facts: Any,
) -> Iterator[None]:
    """Keep a record of a block of code in the manifest of the folder that it writes to.

    The record is written when the block begins, with the outcome ``running``, and again when it ends: ``finished``,
    ``failed`` with the reason, or ``stopped`` (Ctrl-C, SIGTERM). One that still says ``running`` was killed. Of several
    processes the first writes.

    Args:
        folder: of the results; earlier runs that wrote there stay in the manifest.
        device: that computes, if any.
        settings: of the experiment, if any.
        seed: of everything random, if anything is; that of the settings by default.
        facts: more that is worth knowing, such as the model; JSON values and paths.

    Raises:
        FolderError: the folder holds a ``manifest.json`` of another program.
        OSError: the manifest cannot be written.
    """
    if not distributed.is_rank_zero():
        yield
        return
    path = folder / NAME
    if path.exists() and path.stat().st_size and not is_manifest(path):
        raise FolderError(f"{path}: of another program, and is not replaced; move it away, or choose another folder")
    script = Path(sys.argv[0])
    name = script.name if script.parent.resolve() == ROOT else str(script)
    record = {
        "command": shlex.join([name, *sys.argv[1:]]),
        "outcome": "running",
        "started": _now(),
        **environment(device),
        "processes": distributed.world_size(),
        "seed": settings.exp.seed if seed is None and settings is not None else seed,
        **facts,
        "settings": None if settings is None else settings.model_dump(by_alias=True, mode="json"),
    }
    earlier = read_manifest(folder)
    since = time.monotonic()

    def write(outcome: str) -> None:
        if outcome != "running":
            record.update(outcome=outcome, ended=_now(), seconds=round(time.monotonic() - since, 3))
        text = json.dumps({"format": _FORMAT, "runs": [*earlier, record]}, indent=2, default=str)
        write_text(path, text + "\n")

    write("running")
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        write("stopped")
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, (GasnetError, OSError)) else type(error).__name__
        write(f"failed: {reason}")
        raise
    write("finished")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
