"""Writes a volume as a DICOM CT series, one file per slice, as scanners export it; used for phantoms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from utils.errors import VolumeError
from utils.files import atomic_folder

_INTERCEPT = -1024
"""HU of stored value 0."""


def write_series(ct: sitk.Image, folder: Path, patient: str, seed: str) -> None:
    """Write a CT as a DICOM series; the folder is created atomically.

    Args:
        ct: CT in HU, whole numbers of at least -1024.
        folder: folder of the slices, which must not exist yet.
        patient: PatientID and PatientName.
        seed: the UIDs depend only on this text.

    Raises:
        VolumeError: the folder cannot be written.
    """
    stored = (sitk.GetArrayViewFromImage(ct).astype(np.int32) - _INTERCEPT).astype(np.uint16)
    axes, spacing = np.reshape(ct.GetDirection(), (3, 3)).T, ct.GetSpacing()
    uids = {name: generate_uid(entropy_srcs=[seed, name]) for name in ("Study", "Series", "FrameOfReference")}
    try:
        with atomic_folder(folder) as temporary:
            for k, plane in enumerate(stored):
                header = _header(patient, uids, generate_uid(entropy_srcs=[seed, str(k)]))
                header.InstanceNumber = k + 1
                header.ImagePositionPatient = [f"{mm:.9g}" for mm in ct.TransformIndexToPhysicalPoint((0, 0, k))]
                header.ImageOrientationPatient = [f"{cosine:.9g}" for cosine in axes[:2].ravel()]
                header.PixelSpacing = [f"{spacing[1]:.9g}", f"{spacing[0]:.9g}"]
                header.SliceThickness = f"{spacing[2]:.9g}"
                header.Rows, header.Columns = plane.shape
                header.PixelData = plane.tobytes()
                header.save_as(temporary / f"slice_{k + 1:04d}.dcm", enforce_file_format=True)
    except OSError as error:
        raise VolumeError(f"{folder}: cannot be written ({error.strerror}); check the folder and the disk") from None


def _header(patient: str, uids: dict[str, str], instance: str) -> pydicom.Dataset:
    """Attributes that all slices of a series share, and one slice's own UID."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, instance
    for name, uid in uids.items():
        setattr(header, f"{name}InstanceUID" if name != "FrameOfReference" else "FrameOfReferenceUID", uid)
    header.Modality, header.SeriesNumber, header.SeriesDescription = "CT", 1, "synthetic chest CT"
    header.PatientID = header.PatientName = patient
    header.PatientBirthDate = header.PatientSex = header.StudyDate = header.StudyTime = ""
    header.BodyPartExamined, header.PatientPosition, header.AcquisitionNumber = "CHEST", "HFS", 1
    header.PositionReferenceIndicator, header.KVP = "", None  # may be empty; CHEST is unpaired, so no Laterality
    header.StudyID = header.AccessionNumber = header.ReferringPhysicianName = header.Manufacturer = ""
    header.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
    header.RescaleIntercept, header.RescaleSlope, header.RescaleType = _INTERCEPT, 1, "HU"
    return header
