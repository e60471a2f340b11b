"""Which mask belongs to which scan: one rule for lesion labels, lung masks and cropped masks.

A mask matches by the first of these that fits: the scan's id; its id and a suffix such as ``_mask``; the same name once
the suffixes of CTs (``_ct``, nnU-Net's ``_0000``) and of masks are removed; the same for the name of the file or folder
alone. A mask named alike in every folder (``mask.nii.gz``) has the name of its folder.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from datasets.io.scan import Scan
from datasets.io.volume import is_volume_file, volume_id
from utils.errors import VolumeError
from utils.files import visible_files

_MASK_WORDS = "label|lesion|mask|seg|segmentation|infection|annotation|annot|gt|roi|lung|lungs|lungmask|prediction|pred"
_MASK_SUFFIX = re.compile(rf"[._-]({_MASK_WORDS})s?$", re.IGNORECASE)
_CT_SUFFIX = re.compile(r"[._-](ct|image|img|scan|volume|0000)$", re.IGNORECASE)
_MASK_NAME = re.compile(rf"({_MASK_WORDS})s?", re.IGNORECASE)


def without_mask_suffix(name: str) -> str:
    """A name without the suffixes of masks: ``a_lesion_mask`` becomes ``a``."""
    while (shorter := _MASK_SUFFIX.sub("", name)) not in (name, ""):
        name = shorter
    return name


def without_ct_suffix(name: str) -> str:
    """A name without the suffix of a CT: ``a_ct`` and ``a_0000`` become ``a``."""
    return _CT_SUFFIX.sub("", name)


def mask_of(name: str, beside: Iterable[str]) -> str | None:
    """The CT that a file is a mask of, by the names of the files beside it; None if it is no mask.

    Args:
        name: file name without extension.
        beside: names of all files in its folder.
    """
    core = without_mask_suffix(name)
    if core == name:
        return None
    return next((ct for ct in sorted(set(beside) - {name}) if core == ct or core == without_ct_suffix(ct)), None)


def match_masks(folder: Path, scans: Mapping[str, Scan | Path]) -> tuple[dict[str, Path], list[Path]]:
    """Match mask files to scans by their names.

    Args:
        folder: folder of masks, at any depth; or one file, if there is one scan. Files that are scans are ignored.
        scans: scan by id.

    Returns:
        Mask by the id of its scan, and the masks that match no scan.

    Raises:
        VolumeError: there is no such folder, no mask matches, a mask fits several scans, or a scan several masks.
    """
    if folder.is_file() and len(scans) == 1:
        return {next(iter(scans)): folder}, []
    if not folder.is_dir():
        raise VolumeError(f"{folder}: no such folder; expected masks named as their scans")
    own = {path.resolve() for scan in scans.values() for path in _files(scan)}
    masks = [path for path in visible_files(folder) if is_volume_file(path) and path.resolve() not in own]
    by_name = [_index(scans, tier) for tier in range(4)]
    matched: dict[str, Path] = {}
    unmatched = []
    for path in masks:
        case_id = _scan_of(path, folder, by_name)
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


def _files(scan: Scan | Path) -> tuple[Path, ...]:
    return scan.files if isinstance(scan, Scan) else (scan,)


def _index(scans: Mapping[str, Scan | Path], tier: int) -> dict[str, set[str]]:
    """Ids by the name that a mask must have in a tier."""
    found: dict[str, set[str]] = defaultdict(set)
    for case_id, scan in scans.items():
        path = scan.path if isinstance(scan, Scan) else scan
        name = case_id if tier < 3 else volume_id(path)
        found[name if tier < 2 else without_ct_suffix(name)].add(case_id)
    return found


def _scan_of(path: Path, folder: Path, by_name: list[dict[str, set[str]]]) -> str | None:
    """The id of the scan that a mask belongs to, by the first tier in which one fits.

    Raises:
        VolumeError: several fit in that tier.
    """
    *folders, _ = path.relative_to(folder).parts
    stem = volume_id(path)
    if folders and _MASK_NAME.fullmatch(stem):
        names = ["_".join(folders), folders[-1]]
    else:
        names = ["_".join([*folders, stem]), stem]
    for tier, ids in enumerate(by_name):
        for name in names:
            fitting = ids.get(name if tier == 0 else without_mask_suffix(name), set())
            if len(fitting) > 1:
                raise VolumeError(f"{path}: fits the scans {', '.join(sorted(fitting))}; name it as one of them")
            if fitting:
                return next(iter(fitting))
    return None
