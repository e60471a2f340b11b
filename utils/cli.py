"""What all commands share: help with examples, one-line errors, exit codes, the device and the part."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from utils import distributed
from utils.errors import GasnetError
from utils.ledger import project_version

log = logging.getLogger(__name__)


def new_parser(doc: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring, examples included, as it is written."""
    parser = argparse.ArgumentParser(
        prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    version = f"GASNet {project_version()}"
    parser.add_argument("--version", action="version", version=version, help="print the version and exit")
    return parser


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add ``--quiet``; ranks other than 0 are always quiet."""
    quiet = not distributed.is_rank_zero()
    parser.add_argument(
        "--quiet", action="store_true", default=quiet, help="no progress bars, warnings and errors only"
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


def whole_number(text: str) -> int:
    """Parse a number of at least 0; anything else is an `argparse.ArgumentTypeError`."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text}")
    return int(text)


def start_logging(quiet: bool) -> None:
    """Send the messages of rank 0 to standard error, warnings and errors only when quiet."""
    level = logging.CRITICAL if not distributed.is_rank_zero() else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr, force=True)
    for number, name in ((logging.INFO, "info"), (logging.WARNING, "warning"), (logging.ERROR, "error")):
        logging.addLevelName(number, name)


def run(main: Callable[[], int]) -> int:
    """Run a command; an error that a user can do something about becomes one line and exit code 1.

    With several ranks, only rank 0 prints, and only the error that came first is reported.

    Returns:
        The exit code: what `main` returned, 1 after an error, 130 after Ctrl-C.
    """
    if sys.stderr is None:  # closed by the shell
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # characters that the terminal's encoding lacks
    try:
        return _on_all_ranks(main)
    except GasnetError as error:
        message = str(error)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        message = f"{name}{error.strerror or error}; check the path, its rights and the disk"
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # PyTorch's, named so as not to import PyTorch for --help
            raise
        reason = str(error).split(". ")[0]
        message = f"{reason}; use --device cpu or, in training, a smaller SOLVER.BATCH_SIZE"
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"error: {message}", file=sys.stderr)
    return 1


def _on_all_ranks(main: Callable[[], int]) -> int:
    distributed.start()
    try:
        with redirect_stdout(sys.stdout if distributed.is_rank_zero() else None):
            code = main()
    except SystemExit:  # raised by all ranks
        distributed.stop()
        raise
    except (Exception, KeyboardInterrupt):
        if distributed.first_to_fail():
            raise
        return 1
    distributed.stop()
    return code
