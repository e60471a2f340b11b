"""What all commands have in common: help with examples, one-line errors, exit codes, and the device."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import TextIO

import torch

from utils import distributed
from utils.errors import GasnetError
from utils.manifest import project_version
from utils.terminal import tolerant_output

log = logging.getLogger(__name__)

_PLAIN, _RED, _YELLOW = 0, 31, 33


def new_parser(doc: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring, examples included, as it is written.

    Args:
        doc: the docstring.
        prog: how the command is called; by default the name of the script.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--version", action="version", version=f"GASNet {project_version()}", help="print the version and exit"
    )
    return parser


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add ``--quiet``, which all processes but the first are always."""
    quiet = not distributed.is_rank_zero()
    parser.add_argument(
        "--quiet", action="store_true", default=quiet, help="no progress bars, warnings and errors only"
    )


def add_published_crops(parser: argparse.ArgumentParser) -> None:
    """Add ``--published-crops``."""
    parser.add_argument(
        "--published-crops",
        action="store_true",
        help="read crops of the published code as it does: ids with cor or mos are turned along y",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes CUDA where there is one (default)"
    )


def start_logging(quiet: bool) -> None:
    """Send messages to standard error, warnings and errors only when quiet; of several processes, the first does."""
    level = logging.CRITICAL if not distributed.is_rank_zero() else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr, force=True)
    for number, name, colour in (
        (logging.INFO, "info", _PLAIN),
        (logging.WARNING, "warning", _YELLOW),
        (logging.ERROR, "error", _RED),
    ):
        logging.addLevelName(number, painted(name, colour, sys.stderr))


def painted(text: str, colour: int, stream: TextIO) -> str:
    """A text in a colour (an ANSI code) where the stream is a terminal; NO_COLOR keeps it plain there, too."""
    if colour == _PLAIN or not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def choose_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the first CUDA device, or the CPU where there is none.

    Of several processes each takes a CUDA device of its own.

    Raises:
        GasnetError: there is no such device, or not one for each process.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        log.info("device: %s", name)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise GasnetError(f"--device {name}: no such device; expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise GasnetError(f"--device {name}: not supported; expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise GasnetError(
            f"--device {name}: {torch.cuda.device_count()} CUDA device(s) here; use --device cpu, or check the driver"
        )
    if device.type == "cuda" and distributed.world_size() > 1:
        return _own_device(device)
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


def _own_device(device: torch.device) -> torch.device:
    if device.index is not None:
        raise GasnetError(f"--device {device}: not for several processes; use --device cuda, each takes its own")
    number, found = distributed.local_rank(), torch.cuda.device_count()
    if number >= found:
        raise GasnetError(
            f"--device cuda: {found} CUDA device(s) here for more processes; start fewer, or use --device cpu"
        )
    return torch.device("cuda", number)


def run(main: Callable[[], int]) -> int:
    """Run a command; an error that a user can do something about becomes one line and exit code 1.

    Of several processes only the first prints, and of their errors only the one that came first is reported.

    Returns:
        The exit code: what `main` returned, 1 after an error, 130 after Ctrl-C.
    """
    with tolerant_output() as output:
        code = _without_traceback(main)
        output.flush()
        if output.error is not None:
            _print_error(
                f"standard output: {output.error.strerror}; results are in their files, but not all lines were printed"
            )
            return code or 1
        return code


def _without_traceback(main: Callable[[], int]) -> int:
    try:
        return _with_others(main)
    except GasnetError as error:
        _print_error(str(error))
        return 1
    except OSError as error:
        if error.filename is None:
            _print_error(f"{error.strerror or error}; check the disk, the temporary folder and the limits on memory")
            return 1
        _print_error(f"{error.filename}: {error.strerror}; check the path, its rights and the disk")
        return 1
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        _print_error(f"{reason}; use --device cpu or, in training, a smaller SOLVER.BATCH_SIZE")
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _print_error(message: str) -> None:
    print(f"{painted('error', _RED, sys.stderr)}: {message}", file=sys.stderr)


def _with_others(main: Callable[[], int]) -> int:
    distributed.start()
    try:
        with redirect_stdout(sys.stdout if distributed.is_rank_zero() else None):
            code = main()
    except SystemExit:  # all processes end in the same place
        distributed.stop()
        raise
    except (Exception, KeyboardInterrupt):
        if distributed.first_to_fail():
            raise
        return 1
    distributed.stop()
    return code
