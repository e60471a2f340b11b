"""What all commands share: help with examples, one-line errors, exit codes, the device and the part."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TextIO

from utils import distributed
from utils.errors import GasnetError, one_line
from utils.ledger import project_version

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


def add_part(parser: argparse.ArgumentParser) -> None:
    """Add ``--part``."""
    parser.add_argument(
        "--part",
        type=_part,
        metavar="I/N",
        help="do the scans of part I of N only, for job arrays; a scan is always of the same part",
    )


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected a part such as 1/8, from 1/8 to 8/8, got {text}")
    return int(match[1]), int(match[2])


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


def run(main: Callable[[], int]) -> int:
    """Run a command; an error that a user can do something about becomes one line and exit code 1.

    Of several processes only the first prints, and of their errors only the one that came first is reported. Characters
    that the encoding of the terminal lacks are escaped.

    Returns:
        The exit code: what `main` returned, 1 after an error, 130 after Ctrl-C.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        if hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    code = _without_traceback(main)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # the interpreter would report it again
            if stream is sys.stdout:
                reason = f"{error.strerror}; results are in their files, but not all lines were printed"
                _print_error(f"standard output: {reason}")
                code = code or 1
    return code


def _without_traceback(main: Callable[[], int]) -> int:
    try:
        return _with_others(main)
    except GasnetError as error:
        _print_error(str(error))
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        if error.errno in (errno.EMFILE, errno.ENFILE):
            _print_error(name + one_line(error))
        elif name:
            _print_error(f"{name}{error.strerror}; check the path, its rights and the disk")
        else:
            _print_error(f"{error.strerror or error}; check the disk, the temporary folder and the limits on memory")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # PyTorch's, named so as not to import PyTorch for --help
            raise
        reason = str(error).split(". ")[0]
        _print_error(f"{reason}; use --device cpu or, in training, a smaller SOLVER.BATCH_SIZE")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 1


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
