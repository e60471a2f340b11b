"""The output folder of predict.py and test.py: the ledger of masks, and what is written about all scans."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch

from datasets.volumes import write_volume
from reports.cases import Column, write_case_report
from reports.page import made_with
from reports.views import ReportCase, encode_case, read_view
from utils import distributed
from utils.files import atomic_write, wait_for_lock, write_text
from utils.ledger import LEDGER, Entry, Ledger, Recipe, recording
from utils.progress import do_left

log = logging.getLogger(__name__)

FOLDERS = MASKS, PROBABILITIES, DICOM_SEG, FIGURES, VIEWS = "masks", "probabilities", "dicom_seg", "figures", ".views"
"""Subfolders of the output; the last one is hidden and holds what the report shows of each scan."""

SHARED = ("model", "threshold")
"""Options that all masks in a folder share."""

PREDICTED = "predicted"
"""Kind of the masks of predict.py in the ledger."""


def view_path(output: Path, case_id: str) -> Path:
    """Path of what the report shows of a scan."""
    return output / VIEWS / f"{case_id}.view"


def write_result(
    ledger: Ledger,
    case_id: str,
    recipe: Recipe,
    facts: Mapping[str, Any],
    images: Mapping[Path, sitk.Image],
    shown: ReportCase,
    others: Mapping[Path, Callable[[Path], None]],
) -> None:
    """Write the files of a scan and its entry in the ledger: images, what the report shows if it is wanted, and others.

    Raises:
        FolderError: a file of that name is there and was not written by this command.
    """
    view = [view_path(ledger.folder, case_id)] if "report" in recipe.wanted else []
    with ledger.writing(case_id, [*images, *others, *view], recipe) as entered:
        entered |= facts
        for path, image in images.items():
            write_volume(image, path)
        for path, write in others.items():
            with atomic_write(path) as temporary:
                write(temporary)
        for path in view:
            write_text(path, json.dumps(encode_case(shown), separators=(",", ":")))


def ways_of(done: Mapping[str, Entry]) -> dict[str, int]:
    """Number of scans by what computed them, such as ``segmenter by OpenVINO 2026.4.1 in float32``."""
    return dict(Counter(entry.facts.get("computed_by", "not recorded") for entry in done.values()))


def write_report(
    output: Path,
    title: str,
    columns: Sequence[Column],
    done: Mapping[str, Entry],
    facts: Mapping[str, str],
    device: torch.device,
) -> None:
    """Write report.html about results, from their stored views; those without a readable view are left out."""
    views = []
    for case_id in done:
        try:
            views.append(read_view(view_path(output, case_id).read_bytes()))
        except (OSError, ValueError):
            log.warning("%s: not readable, and not in the report", view_path(output, case_id))
    facts = {**facts, **made_with(device), "computed_by": ", ".join(ways_of(done))}
    write_case_report(output / "report.html", title, columns, views, facts)


def make_results(
    ledger: Ledger,
    recipes: Mapping[str, Recipe],
    begin: Callable[[], Callable[[str, Any], None]],
    doing: str,
    names: Sequence[str],
    write: Callable[[dict[str, Entry], dict[str, str]], None],
    *,
    part: tuple[int, int] | None = None,
    overwrite: bool = False,
    prepare: Callable[[str, Recipe], Any] | None = None,
    progress: bool = True,
    **facts: Any,
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Make the results that are missing or not up to date, and write the files about all scans.

    All ranks must call this; arguments as for `do_left` and, with the facts of the run, `recording`. The files, whose
    names are given, are about the results of other parts, too; parts wait for each other. `write` is called with the
    entries of the results that were made, and with the reasons of those that failed, by id. Results that are not among
    `recipes` are named in a warning; `overwrite` removes those of other models.

    Returns:
        On rank 0 the entries of all results that are there; and the reason by id of those that could not be made now.

    Raises:
        FolderError: the folder holds results of another model, or files of these names that are somebody else's.
    """
    output, summary = ledger.folder, Ledger(ledger.folder, f"{ledger.kind}.summary")
    files = [output / name for name in names]

    def check() -> None:
        summary.check("summary", files)
        ledger.check_alone(recipes, SHARED, overwrite)

    distributed.on_rank_zero(check)
    with distributed.lock_folder_on_rank_zero(output, *FOLDERS, part=part), recording(output, **facts):
        now_failed = do_left(
            ledger, recipes, begin, doing, part=part, overwrite=overwrite, prepare=prepare, progress=progress
        )
        if not distributed.is_rank_zero():
            return {}, now_failed
        with wait_for_lock(output / LEDGER / ".summary.lock"):
            entries, failed = ledger.entries(), ledger.failures(recipes)
            done = {
                case_id: entries[case_id]
                for case_id, recipe in recipes.items()
                # What was made before a failure is not up to date, unless the failure is on record with it.
                if case_id in entries
                and entries[case_id].is_of(recipe)
                and failed.get(case_id) in (None, entries[case_id].facts.get("problem"))
            }
            with summary.writing("summary", files):
                write(done, failed)
    ledger.name_others(recipes)
    if left := len(recipes.keys() - done.keys() - failed.keys()):
        log.warning("%s: %d scan(s) have no results yet, or of other options; the last part adds them", output, left)
    return done, now_failed
