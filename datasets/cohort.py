"""Find, check and read a cohort: folders of crops and lists of ids.

    ROOT/images/<id>.nii[.gz]   ROOT/lung/<id>.nii[.gz]   ROOT/lesion/<id>.nii[.gz]   ROOT/id_txt/<split>.txt

The role of a list is determined by its key in DATASET.SPLIT, not by its name.
"""

import hashlib
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from configs.settings import Settings
from datasets import TRAINING, WINDOW, WITH_LESION
from datasets.crop import has_no_geometry, recorded
from datasets.geometry import check_same_geometry, lps_view, shape_of
from datasets.pairs import composed
from datasets.volumes import read_geometry, read_labels, read_volume, volume_id
from utils import distributed
from utils.errors import CohortError, GasnetError, VolumeError
from utils.files import sha256, write_text
from utils.ledger import Entry, Ledger
from utils.progress import progress_bar

log = logging.getLogger(__name__)

FOLDERS = ("images", "lung", "lesion")
"""Folders of the crops in a cohort, in the order of what `LungMaskCrop.crop` returns."""

LIST_FOLDER = "id_txt"
"""Folder of the lists in a cohort."""

CROPS = "crops"
"""Kind of the crops in the ledger. Fact: ``note``, what tests should say."""

HEALTHY = ("HEALTHY", "VALIDH", "TESTH")
"""Splits of healthy scans."""

_MAX_LISTED = 20
_NO_FILE_NAME = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]")  # folders and control characters
_LONGEST_ID = 240  # bytes; file systems take names of 255


@dataclass(frozen=True)
class Case:
    """Files of one scan of a cohort."""

    id: str
    image: Path
    lung: Path
    lesion: Path | None  # None if the scan has no voxel label
    content: str = ""  # checksum of the CT's voxels or, if the crop's header has none, of the crop's
    note: str | None = None  # what tests on the scan should say


@dataclass(frozen=True)
class Volumes:
    """The arrays of one case, (z, y, x)."""

    image: np.ndarray  # float32, 0..255
    lung: np.ndarray  # uint8, 0 or 1
    lesion: np.ndarray  # uint8, 0 or 1; all 0 if the case has no voxel label
    geometry: sitk.Image  # the image as it was read: size, spacing, origin and direction of the arrays


def lesion_folder(root: Path) -> Path:
    """Return the folder of the lesion masks; the published spelling ``leision`` is accepted with a warning."""
    if not (root / "lesion").is_dir() and (root / "leision").is_dir():
        log.warning("%s: using this folder for the lesion masks; its usual name is lesion", root / "leision")
        return root / "leision"
    return root / "lesion"


def find_volume(folder: Path, case_id: str) -> Path | None:
    """Find ``<id>.nii.gz`` or ``<id>.nii`` in a folder, in any Unicode form; None if neither exists."""
    names = [f"{composed(case_id)}{extension}" for extension in (".nii.gz", ".nii")]
    paths = [folder / name for name in names]
    if not case_id.isascii() and folder.is_dir():
        paths += sorted(path for path in folder.iterdir() if composed(path.name) in names)
    return next((path for path in paths if path.is_file()), None)


def read_id_list(path: Path, repeats: bool = False) -> list[str]:
    """Read a list of ids, one per line, in composed form; blank lines and line ends of any system are ignored.

    With `repeats`, an id that is listed twice is kept, with a warning.

    Raises:
        CohortError: the list cannot be read, or contains an id twice or one that is not a plain file name.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # universal newlines
    except UnicodeDecodeError:
        raise CohortError(f"{path}: not UTF-8 text; expected one id per line") from None
    except OSError as error:
        raise CohortError(
            f"{path}: {error.strerror}; write one id per line, or make the lists with python -m datasets.make_splits"
        ) from None
    ids = [composed(line.strip()) for line in lines if line.strip()]
    for case_id in ids:
        if case_id in (".", "..") or _NO_FILE_NAME.search(case_id) or len(case_id.encode()) > _LONGEST_ID:
            raise CohortError(
                f"{path}: the id {case_id[:60]!r} is not a file name; expected the name without its folder"
            )
    if len(set(ids)) < len(ids):
        twice = next(case_id for case_id in ids if ids.count(case_id) > 1)
        if not repeats:
            raise CohortError(f"{path}: the id {twice} is listed twice; list it once")
        log.warning("%s: the id %s is listed more than once; it is drawn as often in each epoch", path, twice)
    return ids


def write_id_lists(root: Path, lists: Mapping[str, Iterable[str] | None], made_by: str) -> None:
    """Write lists to id_txt/ of a cohort, one id per line.

    None removes a list, which would contradict the others. The command replaces and removes its own lists only.

    Raises:
        FolderError: a list that differs was written or edited by somebody else.
    """
    ledger, changed = Ledger(root, LIST_FOLDER), _changed_lists(root, lists)
    ledger.check(made_by, changed)
    entry = ledger.entry(made_by)
    known = {root / name for name in ({} if entry is None else entry.files)}
    written = [root / LIST_FOLDER / f"{name}.txt" for name, ids in lists.items() if ids is not None]
    with ledger.writing(made_by, [path for path in written if path in changed or path in known]):
        for path, text in changed.items():
            if text is not None:
                write_text(path, text)


def check_id_lists(root: Path, lists: Mapping[str, Iterable[str] | None], made_by: str) -> None:
    """Raise the errors that `write_id_lists` would raise."""
    Ledger(root, LIST_FOLDER).check(made_by, _changed_lists(root, lists))


def _changed_lists(root: Path, lists: Mapping[str, Iterable[str] | None]) -> dict[Path, str | None]:
    """Text by path of the lists that the folder does not have like this; None for lists to remove."""
    changed = {}
    for name, ids in lists.items():
        path = root / LIST_FOLDER / f"{name}.txt"
        text = None if ids is None else "".join(f"{case_id}\n" for case_id in ids)
        if text != (path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None):
            changed[path] = text
    return changed


def crop_entries(root: Path) -> dict[str, Entry]:
    """Ledger entries of the crops by id, in composed form."""
    return {composed(case_id): entry for case_id, entry in Ledger(root, CROPS).entries().items()}


def identity(case: Case) -> list[str]:
    """The id of a case, and checksums of its CT and of the files of its masks."""
    return [case.id, case.content, *(sha256(path) for path in (case.lung, case.lesion) if path is not None)]


def warn_of_other_scan(crop: Path, scan: object, files: Sequence[Path]) -> None:
    """Warn if a crop was made from other files than those of a scan, as far as its cohort's ledger tells."""
    entry = Ledger(crop.parents[1], CROPS).entry(volume_id(crop))
    source = None if entry is None else entry.sources.get("scan")
    if source is not None and not source.is_of(files):
        log.warning("%s: is not the file that %s was made from; if the CT was replaced, crop it again", scan, crop)


def contents_of(root: Path, ids: Collection[str]) -> dict[str, str]:
    """Checksum by id of the voxels of the CTs of crops, from their headers; of a crop that has none, that of its own.

    Raises:
        CohortError: a crop was not written to the end.
        VolumeError: a crop cannot be read.
    """
    entries = crop_entries(root)
    if unfinished := [case_id for case_id in ids if case_id in entries and not entries[case_id].finished]:
        raise CohortError(f"{root}: {unfinished[0]} is not finished; run lungCrop.py again")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = [find_volume(root / FOLDERS[0], case_id) for case_id in ids]
        return dict(zip(ids, pool.map(lambda path: recorded(path)[1] or _checksum_of_crop(path), paths), strict=True))


def _checksum_of_crop(path: Path) -> str:
    values = sitk.GetArrayFromImage(read_volume(path)).astype(np.float32)
    return "crop " + hashlib.sha256(values.tobytes()).hexdigest()[:32]


def checksum_of_voxels(ct: sitk.Image) -> str:
    """A checksum of a CT's voxels, the same for all file types and orientations.

    Values are in HU, and are rounded and clipped to -1024..3071.
    """
    values = lps_view(sitk.GetArrayViewFromImage(ct), ct)
    digest = hashlib.sha256(str(values.shape).encode())
    for plane in values:
        digest.update(np.clip(np.rint(plane), -1024, 3071).astype("<i2").tobytes())
    return digest.hexdigest()[:32]


def read_volumes(case: Case) -> Volumes:
    """Read the arrays of a case.

    Raises:
        VolumeError: a file cannot be read, does not fit the image, or has values that `Volumes` does not permit.
    """
    image = read_volume(case.image)
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    if values.min() < 0 or values.max() > 255 or values.min() == values.max():
        raise VolumeError(
            f"{case.image}: values of {values.min():g}..{values.max():g}; expected different values from 0 to 255, "
            "as lungCrop.py writes them"
        )
    lung = _read_mask(case.lung, case.image, image, highest=2)
    if not lung.any():
        raise VolumeError(f"{case.lung}: empty; expected the lungs of the scan")
    lesion = np.zeros_like(lung) if case.lesion is None else _read_mask(case.lesion, case.image, image, highest=1)
    return Volumes(values, lung, lesion, image)


def _read_mask(path: Path, image_path: Path, image: sitk.Image, highest: int) -> np.ndarray:
    mask = read_labels(path)
    check_same_geometry(path, mask, image_path, image)
    values = sitk.GetArrayViewFromImage(mask)
    if values.max() > highest:
        expected = " or ".join(str(label) for label in range(highest + 1))
        raise VolumeError(f"{path}: holds the label {values.max()}, expected {expected}; make it with lungCrop.py")
    return (values > 0).astype(np.uint8)


def read_cohort(
    root: Path | str,
    splits: Mapping[str, str | None],
    size: tuple[int, int, int],
    window: tuple[float, float] = WINDOW,
    progress: bool = False,
) -> dict[str, tuple[Case, ...]]:
    """Find and check all scans of a cohort.

    Args:
        root: cohort folder.
        splits: name of the list (``.txt`` is optional) by key of DATASET.SPLIT; None omits the split.
        size: (z, y, x) that all volumes must have.
        window: HU that became 0 and 255 in all crops; crops without a record have the published window.
        progress: show a progress bar while the volumes are read.

    Returns:
        Cases by split, for all splits with a list.

    Raises:
        CohortError: one line per problem: missing lists and files, empty splits, contradictory splits, files that do
            not fit each other, masks that are not binary, healthy scans with a lesion mask, labelled ones without.
    """
    root = Path(root)
    if not (root / "images").is_dir():
        raise CohortError(
            f"{root.absolute()}: no cohort here (no folder images/); make one with python lungCrop.py, set "
            "DATASET.ROOT to yours, or try sh demo.sh"
        )
    problems: list[str] = []
    ids: dict[str, list[str]] = {}
    for key, name in splits.items():
        if name is None:
            continue
        path = root / LIST_FOLDER / (name if name.endswith(".txt") else f"{name}.txt")
        try:
            ids[key] = read_id_list(path, repeats=key == "LABELED")
            if not ids[key]:
                problems.append(f"{path}: empty; {key} needs at least one id")
        except CohortError as error:
            problems.append(str(error))
    problems += _contradictions(ids)

    folders = {"images": root / "images", "lung": root / "lung", "lesion": lesion_folder(root)}
    cohort: dict[str, tuple[Case, ...]] = {}
    for key, case_ids in ids.items():
        needed = FOLDERS if key in WITH_LESION else FOLDERS[:2]
        cases = []
        for case_id in case_ids:
            files = {what: find_volume(folders[what], case_id) for what in needed}
            if missing := [str(folders[what]) for what, path in files.items() if path is None]:
                problems.append(f"{key}: {case_id}.nii.gz is missing in {', '.join(missing)}")
            else:
                cases.append(Case(case_id, files["images"], files["lung"], files.get("lesion")))
        cohort[key] = tuple(cases)
    _warn_of_published_crops(root, cohort)

    # Check a scan that is listed with and without its voxel label once, with the label.
    distinct = {case.image: case for case in sorted(_all(cohort), key=lambda case: case.lesion is not None)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked = pool.map(lambda case: _problem(case, size, window), distinct.values())
        bar = progress_bar(
            checked, "checking the cohort", unit="scan", shown=progress, total=len(distinct), leave=False
        )
        problems += filter(None, bar)
    if not problems:
        problems += _implausible_labels(cohort, folders["lesion"])
    if not problems:
        notes = {case_id: entry.facts.get("note") for case_id, entry in crop_entries(root).items()}
        contents = contents_of(root, {case.id for case in _all(cohort)})
        cohort = {
            key: tuple(replace(case, content=contents[case.id], note=notes.get(case.id)) for case in cases)
            for key, cases in cohort.items()
        }
        problems += _copies(cohort)
    if problems:
        more = [f"... and {len(problems) - _MAX_LISTED} more"] if len(problems) > _MAX_LISTED else []
        first = f"{root}: {len(problems)} problem(s) in this cohort"
        raise CohortError("\n".join([first, *problems[:_MAX_LISTED], *more]))
    return cohort


def read_cohort_of(
    settings: Settings, splits: Mapping[str, str | None], progress: bool = False
) -> dict[str, tuple[Case, ...]]:
    """Read the cohort of an experiment on rank 0 and broadcast it; see `read_cohort`."""
    dataset, image = settings.dataset, settings.image
    return distributed.on_rank_zero(lambda: read_cohort(dataset.root, splits, image.size, image.window, progress))


def notes_of(cases: Iterable[Case]) -> list[str]:
    """What tests on cases should say, such as which labels count as lesion."""
    return sorted({case.note for case in cases if case.note})


def _warn_of_published_crops(root: Path, cohort: Mapping[str, tuple[Case, ...]]) -> None:
    published = {}
    for case in _all(cohort):
        with suppress(GasnetError):  # reported with the other problems
            if has_no_geometry(read_geometry(case.image)):
                published[case.id] = case
    if published:
        log.warning(
            "%s: %d crop(s) of the published code (spacing 1, origin 0, identity direction), the first %s: volumes in "
            "ml are meaningless, and those whose id contains cor or mos lie upside down against the others; crop the "
            "CTs again with lungCrop.py",
            *(root, len(published), next(iter(published))),
        )


def _all(cohort: Mapping[str, Iterable[Case]]) -> list[Case]:
    return [case for cases in cohort.values() for case in cases]


def _problem(case: Case, size: tuple[int, int, int], window: tuple[float, float]) -> str | None:
    try:
        found = shape_of(read_geometry(case.image))
        if found != size:
            return f"{case.image}: {found} voxels, IMAGE.SIZE is {size}; make both agree (lungCrop.py --size)"
        if (cropped := recorded(case.image)[0]) != window:
            return (
                f"{case.image}: cropped with the window {list(cropped)}, IMAGE.WINDOW is {list(window)}; make both "
                "agree (lungCrop.py --window)"
            )
        read_volumes(case)
    except GasnetError as error:
        return str(error)
    return None


def _implausible_labels(cohort: Mapping[str, Iterable[Case]], folder: Path) -> list[str]:
    """Healthy scans with a lesion mask, and labelled ones without a lesion; held-out ones are warned of."""
    problems = []
    for key, cases in cohort.items():
        for case in {case.id: case for case in cases}.values():
            path = find_volume(folder, case.id) if key in HEALTHY else case.lesion
            if path is None:
                continue
            voxels = int(np.count_nonzero(sitk.GetArrayFromImage(read_labels(path))))
            if key in HEALTHY and voxels:
                problems.append(
                    f"{key}: {case.id} has a lesion mask of {voxels} voxels, {path}; list it as diseased, or remove "
                    "the mask if it is healthy"
                )
            elif key == "LABELED" and not voxels:
                problems.append(f"{key}: {path} is empty; list {case.id} as healthy, or label its lesions")
            elif key not in HEALTHY and not voxels:
                log.warning("%s: %s is empty: the scan has no Dice, and counts as without lesion", key, path)
    return problems


def _contradictions(ids: Mapping[str, list[str]]) -> list[str]:
    """Ids in two splits that must not share a scan."""
    return [
        f"{case_id} is listed in both {a} and {b}; take it out of one of them"
        for a, b in combinations(ids, 2)
        if side_of(a) != side_of(b) or (a in HEALTHY) != (b in HEALTHY)
        for case_id in sorted(set(ids[a]) & set(ids[b]))
    ]


def _copies(cohort: Mapping[str, Iterable[Case]]) -> list[str]:
    """CTs that stand under two ids in training and in a held-out split, or in validation and in testing."""
    problems = []
    for a, b in combinations(cohort, 2):
        if side_of(a) == side_of(b):
            continue
        ids = {case.content: case.id for case in cohort[a]}
        problems += [
            f"{case.id} in {b} is the same CT as {ids[case.content]} in {a}; take one of them out"
            for case in cohort[b]
            if case.content in ids and ids[case.content] != case.id
        ]
    return problems


def side_of(split: str) -> str:
    """``training``, ``validation`` or ``testing``, by the key of a split."""
    return "training" if split in TRAINING else "testing" if split.startswith("TEST") else "validation"
