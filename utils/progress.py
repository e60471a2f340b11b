"""Progress bars, and work on many scans in which the failure of one does not stop the others."""

import ctypes
import hashlib
import logging
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from utils import distributed
from utils.errors import GasnetError, one_line
from utils.ledger import Ledger, Recipe

log = logging.getLogger(__name__)

T = TypeVar("T")

OF_ONE_ITEM = (ArithmeticError, EOFError, LookupError, MemoryError, OSError, RuntimeError, ValueError)
"""What libraries raise for data that they cannot take, beside what files and memory do."""


def progress_bar(items: Iterable[Any] | None, doing: str, *, unit: str, shown: bool = True, **options: Any) -> tqdm:
    """A tqdm bar on standard error, updated every half minute in pipes and files; without items, by its `update`."""
    terminal = sys.stderr.isatty()
    options |= {"dynamic_ncols": terminal, "mininterval": 0.1 if terminal else 30.0}
    return tqdm(items, doing, unit=unit, disable=not shown, file=sys.stderr, **options)


def for_each(
    items: Mapping[str, T],
    work: Callable[[str, Any], None],
    doing: str,
    *,
    unit: str = "scan",
    progress: bool = True,
    prepare: Callable[[str, T], Any] | None = None,
) -> dict[str, str]:
    """Process items, given by id, one by one; an item that fails is logged, and the others are processed.

    `work` is called with an id and its item: a `GasnetError` or one of `OF_ONE_ITEM`, such as a full disk, fails this
    item only. `prepare`, which must not write anything, prepares an item in a thread while the one before it is worked
    on. Returns id to reason of the items that failed.
    """
    failed: dict[str, str] = {}
    with logging_redirect_tqdm(), progress_bar(None, doing, unit=unit, total=len(items), shown=progress) as bar:
        for case_id, item in _one_ahead(items, prepare):
            try:
                work(case_id, item.result() if isinstance(item, Future) else item)
            except GasnetError as error:
                failed[case_id] = str(error)
                log.warning("%s", error)
            except OF_ONE_ITEM as error:
                failed[case_id] = f"cannot be processed ({type(error).__name__}: {one_line(error)})"
                log.warning("%s: %s", case_id, failed[case_id])
            bar.update()
    return failed


def _one_ahead(items: Mapping[str, T], prepare: Callable[[str, T], Any] | None) -> Iterator[tuple[str, Any]]:
    """Items by id or, with `prepare`, futures of the prepared ones, of which only the next one is started."""
    if prepare is None:
        yield from items.items()
        return
    pool, busy = ThreadPoolExecutor(1), []

    def prepare_one(case_id: str, item: T) -> Any:
        busy.append(threading.get_ident())
        try:
            return prepare(case_id, item)
        finally:
            busy.clear()

    try:
        left = ((case_id, pool.submit(prepare_one, case_id, item)) for case_id, item in items.items())
        ahead = next(left, None)
        while ahead is not None:
            now, ahead = ahead, next(left, None)
            yield now
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for thread in busy:  # after Ctrl-C; the interpreter would wait for the lungs of a scan
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))


def do_left(
    ledger: Ledger,
    recipes: Mapping[str, Recipe],
    begin: Callable[[], Callable[[str, Any], None]],
    doing: str,
    *,
    part: tuple[int, int] | None = None,
    overwrite: bool = False,
    inputs: Sequence[Path] = (),
    prepare: Callable[[str, Recipe], Any] | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Make the results that are missing or not up to date; with several ranks, each makes its share.

    The recipes are those of all results, also of other parts, by id. `begin`, which is called if any is left, returns
    the function that makes a result from its id and recipe, and enters it; `prepare` is that of `for_each`. Results of
    scans that were in `inputs`, files and folders, and are gone are removed. Failures are entered in the ledger, where
    other parts read them. All ranks must call this.

    Returns:
        Id to reason of the results that could not be made.
    """
    asked = {case_id: recipe for case_id, recipe in recipes.items() if is_in_part(case_id, part)}

    def find_left() -> list[str]:
        if inputs:
            ledger.remove_gone(inputs, recipes, lambda case_id: is_in_part(case_id, part))
        return ledger.left(asked, overwrite)

    # Looked up before any rank writes, so that all ranks share the same list.
    left = distributed.on_rank_zero(find_left)
    failed: dict[str, str] = {}
    if mine := {case_id: recipes[case_id] for case_id in distributed.shard(left)}:
        failed = for_each(mine, begin(), doing, prepare=prepare, progress=progress)
    gathered = {case_id: reason for of_rank in distributed.gather(failed) for case_id, reason in of_rank.items()}
    if distributed.is_rank_zero():
        ledger.note_failures(asked, gathered)
    return {case_id: gathered[case_id] for case_id in left if case_id in gathered}


def is_in_part(case_id: str, part: tuple[int, int] | None) -> bool:
    """Whether a scan belongs to part I of N; that depends on its id alone. None is the whole."""
    if part is None:
        return True
    digest = hashlib.sha256(unicodedata.normalize("NFC", case_id).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % part[1] == part[0] - 1


def print_failures(failed: Mapping[str, str]) -> int:
    """Print one line per failed item; return the exit code, 1 if there is any."""
    for case_id, reason in failed.items():
        print(f"failed: {case_id}: {reason}")
    return 1 if failed else 0
