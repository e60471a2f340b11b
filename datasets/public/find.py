"""Find the scans of a public set in an unpacked download, match their masks, and check these.

A file is identified by the nearest folder above it that has one of the set's names, however deep the archives were
unpacked, and by its own name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from datasets.public.sets import CT, LESION, LUNG, Case, Labels, PublicSet
from datasets.scan import Scan
from datasets.volumes import is_volume_file, read_labels
from utils.errors import VolumeError
from utils.files import walk_files

log = logging.getLogger(__name__)

_ARCHIVES = (".zip", ".rar", ".7z", ".tar", ".tgz")


@dataclass(frozen=True)
class Mask:
    """A mask file and its labels."""

    path: Path
    labels: Labels


@dataclass(frozen=True)
class PublicScan:
    """A scan of a public set.

    Attributes:
        id: id, unique over all sets.
        group: its list, unless it is labelled or held out.
        patient: equal for scans of the same patient.
        ct: the CT.
        lesion: lesion mask; None if the set has none for this scan.
        lung: lung mask; None if lungs are to be found.
        grey: whether the CT is distributed as grey values 0..255.
    """

    id: str
    group: str
    patient: str
    ct: Scan
    lesion: Mask | None = None
    lung: Mask | None = None
    grey: bool = False


@dataclass
class Found:
    """The content of an unpacked download.

    Attributes:
        scans: complete scans by id.
        failed: reason by id of the incomplete ones.
        counts: number of files found and number in the complete set, by kind of file.
        odd: other findings, one line each.
    """

    scans: dict[str, PublicScan] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)


def find_public_scans(public_set: PublicSet, download: Path, skip: Path | None = None) -> Found:
    """Find the scans of a public set, and match their masks to them; reads no voxels.

    Args:
        public_set: the set; if it has lung masks, every scan needs one.
        download: folder in which the download was unpacked.
        skip: folder below `download` that is not part of it.

    Raises:
        VolumeError: there is no such folder, or it has no CT of the set.
    """
    title = public_set.title
    if not download.is_dir():
        raise VolumeError(f"{download}: no such folder; expected the unpacked download of {title}")
    found, counts = Found(), dict.fromkeys(public_set.expected, 0)
    cases: dict[str, Case] = {}
    files: dict[str, dict[str, list[Path]]] = {}
    archives = False
    for path in walk_files(download, lambda folder: skip is not None and folder.resolve() == skip.resolve()):
        kind, case = public_set.kind(path.relative_to(download)), public_set.case(path.name)
        if not is_volume_file(path):
            archive = path.suffix.lower() in _ARCHIVES
            archives |= archive
            found.odd.append(f"{path}: {'an archive; unpack it if its files are missing' if archive else 'no volume'}")
        elif kind is None:
            found.odd.append(f"{path}: in no folder of {title}; ignored")
        elif case is None:
            found.odd.append(f"{path}: not a name of {title}; ignored")
        else:
            cases[case.id] = case
            files.setdefault(case.id, {}).setdefault(kind, []).append(path)
            counts[public_set.row(kind, case)] += 1
    found.counts = {row: (number, public_set.expected[row]) for row, number in counts.items()}
    if public_set.missing_lesions_note and counts[f"{LESION}s"] < public_set.expected[f"{LESION}s"]:
        found.odd.append(public_set.missing_lesions_note)
    for case_id in sorted(cases):
        try:
            scan = _scan(public_set, cases[case_id], files[case_id], found.odd)
            if scan is not None:
                found.scans[case_id] = scan
        except VolumeError as error:
            found.failed[case_id] = str(error)
    if not found.scans and not found.failed:
        unpacked = "; unpack the archives in it" if archives else ""
        expected = " or ".join(f"{name}/" for name, kind in public_set.folders.items() if kind.startswith(CT))
        raise VolumeError(f"{download}: no CT of {title} here{unpacked}; expected {expected} below it")
    return found


def _scan(public_set: PublicSet, case: Case, files: dict[str, list[Path]], odd: list[str]) -> PublicScan | None:
    """The scan of a case, from its files by kind; None without a CT."""
    cts = [path for kind, paths in files.items() if kind.startswith(CT) for path in paths]
    if not cts:
        odd.append(f"{', '.join(str(path) for paths in files.values() for path in paths)}: no CT for it; ignored")
        return None
    ct = _only(cts, CT)
    group = next((group for kind, group in public_set.group_of_kind.items() if kind in files), case.names.group)
    lesion = _mask(public_set, case, files, LESION, odd)
    if lesion is None and public_set.groups[group] == "valid":
        raise VolumeError(f"{ct}: no lesion mask for it; complete the download")
    if lesion is not None and public_set.groups[group] == "validh":
        raise VolumeError(f"{ct}: without findings by its folder, but {lesion.path} is a lesion mask; check both")
    lung = None
    if public_set.lung is not None:
        lung = _mask(public_set, case, files, LUNG, odd)
        if lung is None:
            raise VolumeError(f"{ct}: no lung mask for it; complete the download, or use --lungs lungmask")
    return PublicScan(case.id, group, case.patient, Scan(case.id, ct), lesion, lung, case.names.grey)


def _mask(public_set: PublicSet, case: Case, files: dict[str, list[Path]], wanted: str, odd: list[str]) -> Mask | None:
    for kind, labels in public_set.masks.items():
        if wanted in labels and kind in files:
            path = _only(files[kind], kind)
            if kind != wanted:
                odd.append(f"{case.id}: no {wanted} of its own; taken from {path}")
            return Mask(path, labels[wanted])
    return None


def _only(paths: Sequence[Path], kind: str) -> Path:
    if len(paths) > 1:
        raise VolumeError(f"{' and '.join(map(str, paths))}: {len(paths)} files for one {kind}; keep one of them")
    return paths[0]


def check_masks(scan: PublicScan) -> None:
    """Check the labels of a scan's masks; a lesion mask without lesion is a warning.

    Raises:
        VolumeError: a mask cannot be read, has labels that the set does not have, or is a lung mask without lung.
    """
    for kind, mask in ((LUNG, scan.lung), (LESION, scan.lesion)):
        if mask is None:
            continue
        image = read_labels(mask.path)  # must outlive the view
        planes = sitk.GetArrayViewFromImage(image)
        found = set(np.flatnonzero(sum(np.bincount(plane.ravel(), minlength=256) for plane in planes)).tolist())
        if unknown := sorted(found - mask.labels.known):
            raise VolumeError(
                f"{mask.path}: holds the labels {', '.join(map(str, unknown))}, which the set does not have; choose "
                "the labels that count with --lesion-labels or --lung-labels"
            )
        if not found & mask.labels.counted:
            if kind == LUNG:
                raise VolumeError(f"{mask.path}: holds no lung; use --lungs lungmask")
            log.warning("%s: holds no lesion", mask.path)
