"""Work on many scans where a failure of one does not stop the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from tqdm.contrib.logging import logging_redirect_tqdm

from utils import distributed
from utils.errors import GasnetError, one_line
from utils.progress import progress_bar

log = logging.getLogger(__name__)

T = TypeVar("T")

OF_ONE_ITEM = (ArithmeticError, EOFError, LookupError, MemoryError, OSError, RuntimeError, ValueError)
"""What libraries raise for data that they cannot take, beside what files and memory do."""


def for_each(
    items: Iterable[tuple[str, T]],
    work: Callable[[str, T], None],
    doing: str,
    *,
    total: int,
    unit: str = "scan",
    progress: bool = True,
) -> dict[str, str]:
    """Process items one by one; an item that fails is logged, and the others are processed.

    Errors of the data or the system, such as a full disk or too little memory, fail one item, too; its reason then has
    their type.

    Args:
        items: id and item.
        work: called with an id and its item; a `GasnetError` or one of `OF_ONE_ITEM` fails this item only.
        doing: label of the progress bar, such as ``cropping``.
        total: number of items.
        unit: what an item is, in the singular.
        progress: show a progress bar.

    Returns:
        Id to reason of the items that failed.
    """
    failed: dict[str, str] = {}
    with logging_redirect_tqdm(), progress_bar(None, doing, unit=unit, total=total, shown=progress) as bar:
        for case_id, item in items:
            try:
                work(case_id, item)
            except GasnetError as error:
                failed[case_id] = str(error)
                log.warning("%s", error)
            except OF_ONE_ITEM as error:
                failed[case_id] = f"cannot be processed ({type(error).__name__}: {one_line(error)})"
                log.warning("%s: %s", case_id, failed[case_id])
                log.debug("%s", case_id, exc_info=True)
            bar.update()
    return failed


def gather_failures(failed: Mapping[str, str], order: Sequence[str]) -> dict[str, str]:
    """The failures of all ranks, in the order of the ids; all ranks must call this."""
    of_all = {case_id: reason for part in distributed.gather(dict(failed)) for case_id, reason in part.items()}
    return {case_id: of_all[case_id] for case_id in order if case_id in of_all}


def failure_lines(failed: Mapping[str, str]) -> Iterator[str]:
    """One line per failed item, for the summary of a command."""
    return (f"failed: {case_id}: {reason}" for case_id, reason in failed.items())


def print_failures(failed: Mapping[str, str]) -> int:
    """Print the failed items at the end of a command.

    Returns:
        The exit code: 1 if an item failed, otherwise 0.
    """
    for line in failure_lines(failed):
        print(line)
    return 1 if failed else 0
