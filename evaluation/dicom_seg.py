"""Lesion masks as DICOM SEG, beside the CT series that they were found in.

An object of one binary segment, written by highdicom. Its frames are the slices of the series on which there is
lesion, each with the position of its slice and a reference to it; study, frame of reference and patient are the
series'. A mask without lesion has no object: the standard knows no segmentation without a frame.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID
from pydicom.valuerep import DA, TM

from datasets.io.scan import Scan
from datasets.io.volume import DEFAULT, Reading, read_series
from evaluation.burden import NOTICE
from utils.errors import VolumeError, one_line
from utils.files import atomic_write

logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells of every attribute that it copies

_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID")
"""UIDs that the standard asks for in every CT, and without which a segmentation belongs to nothing."""

_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
"""Attributes of patient and study that the standard lets be empty: where a CT lacks them, so does its segmentation."""

_FORMATS = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
_SEXES = ("", "M", "F", "O")

_OF_ALL = ("StudyInstanceUID", "FrameOfReferenceUID")
"""What all slices of a series share."""

_SERIES_NUMBER = 1000
"""Added to that of the CT, so that both can be told apart in a list."""

_COLOUR = (53.0, 80.0, 67.0)
"""CIELab of a clear red, which viewers take by default."""


def read_source(scan: Path | Scan, reading: Reading = DEFAULT) -> list[Dataset]:
    """The headers of a CT series in the order of the volume's slices, complete enough for a segmentation.

    What the standard lets be empty is filled in empty where it is missing, and the distance of the slices is the
    measured one.

    Args:
        scan: a DICOM series.
        reading: which series to take from a folder.

    Raises:
        VolumeError: there is no such series, or a header lacks what a segmentation needs, or holds it damaged.
    """
    series = read_series(scan, reading)
    paths, grid = series.files, series.grid
    if any(one.frame is not None for one in series.slices):
        raise VolumeError(f"{paths[0]}: all slices in one file, of which no DICOM SEG is made; leave out --dicom-seg")
    headers = []
    for path in paths:
        with warnings.catch_warnings(action="ignore"):  # what matters is checked
            header = pydicom.dcmread(path, stop_before_pixels=True)
            _check(path, header)
        for name in _OF_ALL:
            if headers and header[name].value != headers[0][name].value:
                raise VolumeError(
                    f"{path}: its {name} differs from that of {paths[0].name}, a DICOM SEG needs one; export the "
                    "series again, or leave out --dicom-seg"
                )
        header.SpacingBetweenSlices = grid.spacing[2]
        if not header.get("SliceThickness"):
            header.SliceThickness = grid.spacing[2]
        headers.append(header)
    return headers


def _check(path: Path, header: Dataset) -> None:
    """Fill in what may be empty; refuse what is missing or damaged."""
    for name in _NEEDED:
        if not header.get(name) or not UID(header[name].value).is_valid:
            raise VolumeError(
                f"{path}: has no valid {name}, which a DICOM SEG needs; export the series again, or leave out "
                "--dicom-seg"
            )
    for name in _MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, "")
    damaged = [name for name, kind in _FORMATS.items() if not _can_be(kind, header[name].value)]
    damaged += ["PatientSex"] if (header.PatientSex or "") not in _SEXES else []
    if damaged:
        value = str(header[damaged[0]].value)[:20]
        raise VolumeError(
            f"{path}: its {damaged[0]} {value!r} is none, and a DICOM SEG takes it over; repair or empty it, or leave "
            "out --dicom-seg"
        )


def _can_be(kind: type, value: object) -> bool:
    try:
        kind(value or "")
    except ValueError:
        return False
    return True


def make_dicom_seg(
    mask: np.ndarray, source: Sequence[Dataset], version: str, model: str, threshold: float
) -> hd.seg.Segmentation:
    """A DICOM SEG of a lesion mask.

    Args:
        mask: (z, y, x), not 0 in lesion, on the grid of the series; some of it is lesion.
        source: headers of the slices along z, from `read_source`.
        version: of the software.
        model: what identifies the segmenter.
        threshold: at which its probabilities were cut.
    """
    algorithm = hd.AlgorithmIdentificationSequence(
        name="GASNet segmenter",
        family=codes.DCM.ArtificialIntelligence,
        version=version,
        source="GASNet",
        parameters={"model": model, "threshold": f"{threshold:g}"},
    )
    lesion = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Lesion",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=hd.UID(),
        tracking_id="GASNet lesion",
        anatomic_regions=[codes.SCT.Lung],
        display_color=hd.color.CIELabColor(*_COLOUR),
    )
    number = str(source[0].get("SeriesNumber") or "")
    with warnings.catch_warnings(action="ignore"):  # about names of patients that are unusual
        return hd.seg.Segmentation(
            source_images=source,
            pixel_array=mask > 0,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[lesion],
            series_instance_uid=hd.UID(),
            series_number=_SERIES_NUMBER + (int(number) if re.fullmatch(r"\d{1,8}", number) else 0),
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="GASNet",
            manufacturer_model_name="GASNet segmenter",
            software_versions=version,
            device_serial_number=model,
            series_description="Lesions by GASNet, research use only",
            content_label="LESION",
            content_description=NOTICE,
        )


def write_dicom_seg(
    mask: np.ndarray, source: Sequence[Dataset], path: Path, version: str, model: str, threshold: float
) -> None:
    """Write a lesion mask as DICOM SEG; the file appears whole or not at all. Arguments as for `make_dicom_seg`.

    Raises:
        VolumeError: the headers of the series do not allow it, or the file cannot be written.
    """
    try:
        segmentation = make_dicom_seg(mask, source, version, model, threshold)
    except (TypeError, ValueError) as error:  # of headers that are more unusual than what was checked
        reason = one_line(error)
        raise VolumeError(f"{path}: cannot be made of the series' headers ({reason}); leave out --dicom-seg") from None
    try:
        with atomic_write(path) as temporary:
            segmentation.save_as(temporary)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be written ({error.strerror}); check the folder and the disk") from None
