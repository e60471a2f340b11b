"""The public data sets of the paper: which files of an unpacked download are which scan.

| set | scans | ids here | lists |
|---|---|---|---|
| CovidSeg (A) | 20, all labelled | covidseg_coronacases_001, covidseg_radiopaedia_10_85902_1 | A_sub1, A_sub2 |
| MedSeg (B) | 9, all labelled | medseg_1 | B |
| MosMed (C, D) | 1110, 50 labelled | mosmed_study_0255 | C, D_healthy, D_diseased |

A file is known by the nearest folder above it that has one of the sets' names, however deep the archives were
unpacked, and by its own name. Nothing here reads a voxel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datasets.io.volume import is_volume_file, volume_id
from utils.errors import VolumeError

ALL_LABELS = frozenset(range(256))

GREY_WINDOW = (-1250.0, 250.0)
"""HU that became 0 and 255 in CovidSeg's scans from Radiopaedia."""

_DEEPEST = 8
_ARCHIVES = (".zip", ".rar", ".7z", ".tar", ".tgz")

_COVIDSEG = re.compile(r"coronacases(?:_org)?_(\d+)")
_RADIOPAEDIA = re.compile(r"radiopaedia(?:[-_].*)?[-_](\d+)_(\d+)_(\d+)(?:-dcm)?")


@dataclass(frozen=True)
class Mask:
    """A mask file, and what the labels in it mean.

    Attributes:
        path: of the file.
        counted: labels that are lung, or lesion.
        known: labels that may stand in the file; another one is a finding.
    """

    path: Path
    counted: frozenset[int]
    known: frozenset[int]


@dataclass(frozen=True)
class PublicScan:
    """A scan of a public set.

    Attributes:
        id: unique over all sets.
        group: the list that it belongs to, unless it is labelled or held out: A_sub1, A_sub2, B, C, D_healthy or
            D_diseased.
        patient: scans of one patient have the same.
        ct: file.
        lesion: None where the set has no voxel label for it.
        lung: None where lung masks are not asked for.
        grey: whether the set ships it mapped to 0..255.
    """

    id: str
    group: str
    patient: str
    ct: Path
    lesion: Mask | None = None
    lung: Mask | None = None
    grey: bool = False


@dataclass
class Found:
    """What an unpacked download holds.

    Attributes:
        scans: id to scan, of all that are whole.
        failed: id to reason, of those that are not.
        counts: kind of file to (found, that the set should have).
        odd: findings that cost no scan, a line each.
    """

    scans: dict[str, PublicScan] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PublicSet:
    """A public set: how its downloads are laid out, and what its labels mean.

    Attributes:
        name: of the set on the command line, and before the ids of its scans.
        title: as the paper calls it.
        cts: the folders of its CTs, for messages.
        folders: name of a folder, in small letters and digits alone, to the kind of the files in it.
        case: name of a file, without its extension, to that of its scan, in which all ways of writing it agree; None
            for files that are not the set's.
        row: kind of a file and scan to the row of the table of counts.
        group: scan and kinds of its files to the list that it belongs to.
        expected: row of the table to the number that the set should have.
        lesion_labels: (counted, known) of lesion masks.
        lung_labels: likewise; None where the set ships no lung masks.
        letter: that the paper gives to the set's voxel-labelled scans.
        label: the scan that is the labelled one, unless another is chosen.
    """

    name: str
    title: str
    cts: str
    folders: Mapping[str, str]
    case: Callable[[str], str | None]
    row: Callable[[str, str], str]
    group: Callable[[str, Collection[str]], str]
    expected: Mapping[str, int]
    lesion_labels: tuple[frozenset[int], frozenset[int]]
    lung_labels: tuple[frozenset[int], frozenset[int]] | None
    letter: str
    label: str | None = None

    def id_of(self, name: str) -> str | None:
        """The id of the scan that a file of this name, with or without extension or the set's name, belongs to."""
        name = volume_id(Path(name)).lower()
        case = self.case(name.removeprefix(f"{self.name}_"))
        return None if case is None else f"{self.name}_{case}"


def _covidseg_case(name: str) -> str | None:
    """``coronacases_001`` or ``radiopaedia_10_85902_1``, of short and of long names.

    Of ``radiopaedia_org_covid-19-pneumonia-10_85902_1-dcm`` three numbers identify the scan: that of the Radiopaedia
    case in its title (10), that of the study (85902) and that of the series (1). They are all that the short names of
    the masks keep.
    """
    if match := _COVIDSEG.fullmatch(name):
        return f"coronacases_{int(match[1]):03d}"
    if match := _RADIOPAEDIA.fullmatch(name):
        return "radiopaedia_{}_{}_{}".format(*(int(number) for number in match.groups()))
    return None


def _medseg_case(name: str) -> str | None:
    return str(int(name)) if re.fullmatch(r"\d{1,4}", name) else None


def _mosmed_case(name: str) -> str | None:
    match = re.fullmatch(r"study_(\d{1,6})(?:_mask)?", name)
    return f"study_{int(match[1]):04d}" if match else None


def _covidseg_row(kind: str, case: str) -> str:
    return f"CTs of {case.split('_')[0]}" if kind == "CT" else f"{kind}s"


def _mosmed_row(kind: str, case: str) -> str:
    return f"CTs in {kind}" if kind.startswith("CT-") else f"{kind}s"


def _covidseg_group(case: str, kinds: Collection[str]) -> str:
    return "A_sub2" if case.startswith("radiopaedia") else "A_sub1"


def _mosmed_group(case: str, kinds: Collection[str]) -> str:
    return "D_healthy" if "CT-0" in kinds else "C" if "lesion mask" in kinds else "D_diseased"


def patient_of(case_id: str) -> str:
    """What the scans of one patient share: the id, but for CovidSeg's of Radiopaedia, the number of their case.

    A case of Radiopaedia is one patient, with one study or several: radiopaedia_10_85902_1 and _3 are one patient, and
    so are, by their case, radiopaedia_29_86490_1 and 29_86491_1.
    """
    return case_id.rsplit("_", 2)[0] if "_radiopaedia_" in case_id else case_id


COVIDSEG = PublicSet(
    name="covidseg",
    title="CovidSeg (A)",
    cts="ct_scans/ or COVID-19-CT-Seg_20cases/",
    folders={
        "ctscans": "CT",
        "covid19ctseg20cases": "CT",
        "lungmask": "lung mask",
        "infectionmask": "lesion mask",
        "lungandinfectionmask": "lung and infection mask",
    },
    case=_covidseg_case,
    row=_covidseg_row,
    group=_covidseg_group,
    expected={
        "CTs of coronacases": 10,
        "CTs of radiopaedia": 10,
        "lung masks": 20,
        "lesion masks": 20,
        "lung and infection masks": 20,
    },
    lesion_labels=(frozenset({1}), frozenset({0, 1})),
    lung_labels=(frozenset({1, 2}), frozenset({0, 1, 2})),
    letter="A",
    label="covidseg_coronacases_001",
)
"""Folders of both layouts in which it is shipped. Lung masks: 1 and 2 the lungs; lesion masks: 1 infection."""

_LUNG_AND_INFECTION = {
    "lung mask": (frozenset({1, 2, 3}), frozenset({0, 1, 2, 3})),
    "lesion mask": (frozenset({3}), frozenset({0, 1, 2, 3})),
}
"""Labels of CovidSeg's masks of both: 1 and 2 the lungs, 3 the infection in them."""

MEDSEG = PublicSet(
    name="medseg",
    title="MedSeg (B)",
    cts="rp_im/",
    folders={"rpim": "CT", "rplungmsk": "lung mask", "rpmsk": "lesion mask"},
    case=_medseg_case,
    row=lambda kind, case: f"{kind}s",
    group=lambda case, kinds: "B",
    expected={"CTs": 9, "lung masks": 9, "lesion masks": 9},
    lesion_labels=(frozenset({1, 2}), frozenset({0, 1, 2, 3})),
    lung_labels=(frozenset({1, 2}), frozenset({0, 1, 2, 3})),
    letter="B",
)
"""Lesion masks: 1 ground glass, 2 consolidation, 3 pleural effusion. Lung masks: 1 right, 2 left, 3 artefact."""

MOSMED = PublicSet(
    name="mosmed",
    title="MosMed (C, D)",
    cts="studies/CT-0/ to studies/CT-4/",
    folders={**{f"ct{grade}": f"CT-{grade}" for grade in range(5)}, "masks": "lesion mask", "mask": "lesion mask"},
    case=_mosmed_case,
    row=_mosmed_row,
    group=_mosmed_group,
    expected={
        "CTs in CT-0": 254,
        "CTs in CT-1": 684,
        "CTs in CT-2": 125,
        "CTs in CT-3": 45,
        "CTs in CT-4": 2,
        "lesion masks": 50,
    },
    lesion_labels=(frozenset({1}), frozenset({0, 1})),
    lung_labels=None,
    letter="C",
)
"""COVID19_1110: CT-0 without findings, CT-1 to CT-4 with. Lesion masks: 1 ground glass and consolidation."""

SETS = {public_set.name: public_set for public_set in (COVIDSEG, MEDSEG, MOSMED)}


def find_public_scans(
    public_set: PublicSet,
    download: Path,
    given_lungs: bool = True,
    lesion_labels: Collection[int] | None = None,
    lung_labels: Collection[int] | None = None,
    skip: Path | None = None,
) -> Found:
    """Find the scans of a public set, and match their masks to them.

    Where CovidSeg's masks of lungs or of lesions are missing, its masks of both stand in.

    Args:
        public_set: which set it is.
        download: folder in which the download was unpacked.
        given_lungs: match the set's own lung masks; every scan then needs one.
        lesion_labels: labels of lesion masks that are lesion, instead of the set's rule. All others are then not.
        lung_labels: labels of lung masks that are lung, likewise.
        skip: folder below `download` that is not part of it.

    Raises:
        VolumeError: there is no such folder, or no CT of the set in it.
    """
    if not download.is_dir():
        raise VolumeError(f"{download}: no such folder; expected the unpacked download of {public_set.title}")
    found = Found()
    files: dict[str, dict[str, list[Path]]] = {}  # id to kind to files
    counts = dict.fromkeys(public_set.expected, 0)
    archives = False
    for path in _files(download, skip):
        kind = _kind(public_set, path.relative_to(download))
        case_id = public_set.id_of(path.name)
        if not is_volume_file(path):
            archive = path.suffix.lower() in _ARCHIVES
            archives |= archive
            found.odd.append(f"{path}: {'an archive; unpack it if its files are missing' if archive else 'no volume'}")
        elif kind is None:
            found.odd.append(f"{path}: in no folder of {public_set.title}; passed over")
        elif case_id is None:
            found.odd.append(f"{path}: not a name of {public_set.title}; passed over")
        else:
            files.setdefault(case_id, {}).setdefault(kind, []).append(path)
            counts[public_set.row(kind, case_id.removeprefix(f"{public_set.name}_"))] += 1
    found.counts = {row: (number, public_set.expected[row]) for row, number in counts.items()}

    if public_set is MOSMED and counts["lesion masks"] < public_set.expected["lesion masks"]:
        found.odd.append(
            "lesion masks are missing: scans of C without theirs are taken for D, and a model that is trained on them "
            "must not be tested on them"
        )
    labels = {
        "lesion mask": _labels(public_set.lesion_labels, lesion_labels),
        "lung mask": _labels(public_set.lung_labels, lung_labels),
    }
    for case_id, of_case in sorted(files.items()):
        cts = [path for kind, paths in of_case.items() if kind.startswith("CT") for path in paths]
        if not cts:
            paths = [str(path) for paths in of_case.values() for path in paths]
            found.odd.append(f"{', '.join(paths)}: no CT for it; passed over")
            continue
        try:
            found.scans[case_id] = _scan(public_set, case_id, of_case, cts, labels, given_lungs, found.odd)
        except VolumeError as error:
            found.failed[case_id] = str(error)
    if not found.scans and not found.failed:
        unpacked = "; unpack the archives in it" if archives else ""
        raise VolumeError(f"{download}: no CT of {public_set.title} here{unpacked}; expected {public_set.cts} below it")
    return found


def _labels(
    rule: tuple[frozenset[int], frozenset[int]] | None, chosen: Collection[int] | None
) -> tuple[frozenset[int], frozenset[int]] | None:
    return rule if chosen is None else (frozenset(chosen), ALL_LABELS)


def _files(folder: Path, skip: Path | None) -> Iterator[Path]:
    """All files below a folder, also behind links to folders; hidden ones and what macOS adds left out."""
    seen = set() if skip is None else {skip.resolve()}
    levels = [(folder, 0)]
    while levels:
        place, depth = levels.pop()
        if place.resolve() in seen or depth > _DEEPEST:
            continue
        seen.add(place.resolve())
        for path in sorted(place.iterdir(), reverse=True):
            if path.name.startswith(".") or path.name == "__MACOSX":
                continue
            if path.is_dir():
                levels.append((path, depth + 1))
            else:
                yield path


def _kind(public_set: PublicSet, path: Path) -> str | None:
    """What kind of file the nearest folder with a name of the set says it is."""
    plain = (re.sub(r"[^a-z0-9]", "", folder.lower()) for folder in reversed(path.parts[:-1]))
    return next((public_set.folders[name] for name in plain if name in public_set.folders), None)


def _scan(
    public_set: PublicSet,
    case_id: str,
    of_case: Mapping[str, list[Path]],
    cts: list[Path],
    labels: Mapping[str, tuple[frozenset[int], frozenset[int]] | None],
    given_lungs: bool,
    odd: list[str],
) -> PublicScan:
    ct = _only(cts, "CT")
    case = case_id.removeprefix(f"{public_set.name}_")
    group = public_set.group(case, of_case)
    lesion = _mask(of_case, "lesion mask", labels, case_id, odd)
    if lesion is None and not group.startswith("D"):
        raise VolumeError(f"{ct}: no lesion mask for it; complete the download")
    if lesion is not None and group == "D_healthy":
        raise VolumeError(f"{ct}: without findings by its folder, but {lesion.path} is a lesion mask; check both")
    lung = _mask(of_case, "lung mask", labels, case_id, odd) if given_lungs else None
    if lung is None and given_lungs:
        raise VolumeError(f"{ct}: no lung mask for it; complete the download, or use --lungs lungmask")
    return PublicScan(case_id, group, patient_of(case_id), ct, lesion, lung, case.startswith("radiopaedia"))


def _mask(
    of_case: Mapping[str, list[Path]],
    kind: str,
    labels: Mapping[str, tuple[frozenset[int], frozenset[int]] | None],
    case_id: str,
    odd: list[str],
) -> Mask | None:
    if kind in of_case:
        return Mask(_only(of_case[kind], kind), *labels[kind])
    if "lung and infection mask" in of_case:
        path = _only(of_case["lung and infection mask"], "lung and infection mask")
        odd.append(f"{case_id}: no {kind} of its own; taken from {path}")
        return Mask(path, *_LUNG_AND_INFECTION[kind])
    return None


def _only(paths: list[Path], kind: str) -> Path:
    if len(paths) > 1:
        raise VolumeError(f"{' and '.join(map(str, paths))}: {len(paths)} files for one {kind}; keep one of them")
    return paths[0]
