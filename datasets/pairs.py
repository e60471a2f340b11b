"""Which mask belongs to which scan: one rule for lesion labels, lung masks and cropped masks.

A DICOM SEG belongs to the series that it refers to, if one scan alone has its UID. Any other mask matches by the first
of these that fits: the scan's id; its id and a suffix such as ``_mask``; the same name once the suffixes of CTs
(``_ct``, nnU-Net's ``_0000``) and of masks are removed; the same for the name of the file or folder alone. A mask named
alike in every folder (``mask.nii.gz``) has the name of its folder. Names are compared in Unicode's composed form (NFC).
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

from datasets.segments import is_segmentation, referenced_series
from datasets.volumes import Scan, is_volume_file, volume_id
from utils.errors import VolumeError
from utils.files import names_a_file, walk_files, without_partial_suffix

_MASK_WORDS = "label|lesion|mask|seg|segmentation|infection|annotation|annot|gt|roi|lung|lungmask|prediction|pred"
_MASK_SUFFIX = re.compile(rf"[._-]({_MASK_WORDS})s?$", re.IGNORECASE)
_CT_SUFFIX = re.compile(r"[._-](ct|image|img|scan|volume|0000)$", re.IGNORECASE)
_MASK_NAME = re.compile(rf"({_MASK_WORDS})s?", re.IGNORECASE)


def _without_mask_suffix(name: str) -> str:
    """``a_lesion_mask`` becomes ``a``."""
    while (shorter := _MASK_SUFFIX.sub("", name)) not in (name, ""):
        name = shorter
    return name


def bare_name(name: str) -> str:
    """What the names of a CT and of its masks have in common: ``a`` of ``a_ct`` and ``a_lesion_mask``."""
    return _CT_SUFFIX.sub("", _without_mask_suffix(name))


def is_mask_name(name: str) -> bool:
    """Whether a file name without extension says that it is a mask, whatever lies beside it."""
    return _MASK_NAME.fullmatch(_without_mask_suffix(name)) is not None or _without_mask_suffix(name) != name


def mask_of(name: str, beside: Collection[str]) -> str | None:
    """The CT that a file is a mask of, by its name and those of all files beside it, without extensions; or None."""
    core = _without_mask_suffix(name)
    if _MASK_NAME.fullmatch(core):  # the same in every folder, as mask.nii.gz beside ct.nii.gz
        return min((ct for ct in beside if ct != name and not is_mask_name(ct)), default=None)
    if core == name:
        return None
    if core in beside:
        return core
    return min((ct for ct in beside if ct != name and _CT_SUFFIX.sub("", ct) == core), default=None)


def match_masks(folder: Path, scans: Mapping[str, Scan]) -> tuple[dict[str, Path], list[Path]]:
    """Match mask files to scans: mask by the id of its scan, and the masks that match no scan.

    They lie in a folder, at any depth; or are one file, if there is one scan. Files that are scans are ignored.

    Raises:
        VolumeError: there is no such folder, no mask matches, a mask fits several scans, or a scan several masks.
    """
    if folder.is_file() and len(scans) == 1:
        return {next(iter(scans)): folder}, []
    if not folder.is_dir():
        raise VolumeError(f"{folder}: no such folder; expected masks named as their scans")
    own = {path.resolve() for scan in scans.values() for path in scan.files}
    files = (path for path in walk_files(folder) if names_a_file(path) and path.resolve() not in own)
    files = (path for path in files if without_partial_suffix(path.name) == path.name)
    masks = [path for path in files if is_volume_file(path) or is_segmentation(path)]
    by_name = [_index(scans, tier) for tier in range(4)]
    drawn_on = [(scan.series.first.series, case_id) for case_id, scan in scans.items() if scan.series is not None]
    uses = Counter(uid for uid, _ in drawn_on)  # anonymisers give one UID to several patients
    by_uid = {uid: case_id for uid, case_id in drawn_on if uses[uid] == 1}
    places = {scan.path.parent.name for scan in scans.values()}
    folders = {path: path.relative_to(folder).parts[:-1] for path in masks}
    mirrored = any(not places.isdisjoint(parts) for parts in folders.values())
    matched: dict[str, Path] = {}
    unmatched = []
    for path in masks:
        case_id = None if is_volume_file(path) else by_uid.get(referenced_series(path) or None)
        if case_id is None and (case_id := _scan_of(path, folder, by_name)) is not None and folders[path] and mirrored:
            # Where masks lie in folders named as those of scans, one in another folder is not that scan's.
            place = scans[case_id].path.parent.name
            case_id = case_id if place in folders[path] or place in path.name else None
        if case_id is None:
            unmatched.append(path)
        elif case_id in matched:
            raise VolumeError(f"{path} and {matched[case_id]} both belong to {case_id}; keep one of them")
        else:
            matched[case_id] = path
    if not matched and scans:
        found = f"such as {masks[0].name} for {next(iter(scans))}" if masks else "it holds no volumes"
        raise VolumeError(f"{folder}: no mask matches any scan, {found}; name masks as their scans")
    return matched, unmatched


def _index(scans: Mapping[str, Scan], tier: int) -> dict[str, set[str]]:
    """Ids by the name that a mask must have in a tier."""
    found: dict[str, set[str]] = defaultdict(set)
    for case_id, scan in scans.items():
        name = composed(case_id if tier < 3 else volume_id(scan.path))
        found[name if tier < 2 else _CT_SUFFIX.sub("", name)].add(case_id)
    return found


def composed(name: str) -> str:
    """A name in Unicode's composed form: file systems and archives of Macs decompose names."""
    return unicodedata.normalize("NFC", name)


def _scan_of(path: Path, folder: Path, by_name: list[dict[str, set[str]]]) -> str | None:
    """The id of the scan that a mask belongs to, by the first tier in which one fits.

    Raises:
        VolumeError: several fit in that tier.
    """
    *folders, _ = (composed(part) for part in path.relative_to(folder).parts)
    stem = composed(volume_id(path) if is_volume_file(path) else path.stem)
    if folders and _MASK_NAME.fullmatch(stem):
        names = ["_".join(folders), folders[-1]]
    else:
        names = ["_".join([*folders, stem]), stem]
    for tier, ids in enumerate(by_name):
        for name in names:
            fitting = ids.get(name if tier == 0 else _without_mask_suffix(name), set())
            if len(fitting) > 1:
                raise VolumeError(f"{path}: fits the scans {', '.join(sorted(fitting))}; name it as one of them")
            if fitting:
                return next(iter(fitting))
    return None
