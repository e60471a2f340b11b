"""Check the files of public scans before they are cropped."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from datasets.geometry import check_same_geometry
from datasets.public.find import Found
from datasets.public.sets import Mask, PublicScan
from datasets.volumes import read_labels
from utils.errors import GasnetError, VolumeError
from utils.progress import progress_bar


def check_scans(found: Found, progress: bool) -> None:
    """Check the files of all scans, one volume at a time; scans that fail move to `found.failed`."""
    for case_id, scan in progress_bar(list(found.scans.items()), "checking the files", unit="scan", shown=progress):
        try:
            found.odd += check_scan(scan)
        except GasnetError as error:
            found.failed[case_id] = str(error)
            del found.scans[case_id]


def check_scan(scan: PublicScan) -> list[str]:
    """Check the files of a scan, except for the voxels of CTs without a voxel label.

    Returns:
        Findings that do not exclude the scan, one line each.

    Raises:
        VolumeError: a file cannot be read; a mask lies on another grid than its CT, has labels that the set does not
            have, or is a lung mask without lung; or a CT that should be in HU has grey values.
    """
    odd = []
    geometry = scan.ct.geometry()
    if scan.lesion is not None and not _count_labels(scan.lesion, scan, geometry):
        odd.append(f"{scan.lesion.path}: holds no lesion")
    if scan.lung is not None and not _count_labels(scan.lung, scan, geometry):
        raise VolumeError(f"{scan.lung.path}: holds no lung; use --lungs lungmask")
    if scan.lesion is not None:  # the few scans for tests, and the labelled one
        ct = scan.ct.read()  # must outlive the view
        values = sitk.GetArrayViewFromImage(ct)
        lowest, highest = float(values.min()), float(values.max())
        mapped = lowest >= 0 and highest <= 255
        if mapped and not scan.grey:
            raise VolumeError(
                f"{scan.ct}: values of {lowest:g}..{highest:g}, as if mapped to 0..255, in a set in HU; download it "
                "again, or crop it with lungCrop.py --grey-window"
            )
        if scan.grey and not mapped:
            odd.append(f"{scan.ct}: values of {lowest:g}..{highest:g}, not mapped to 0..255; read as HU")
    return odd


def _count_labels(mask: Mask, scan: PublicScan, geometry: sitk.Image) -> int:
    """Check a mask; return the number of voxels with counted labels."""
    image = read_labels(mask.path)
    check_same_geometry(mask.path, image, scan.ct, geometry)
    voxels = sum(np.bincount(plane.ravel(), minlength=256) for plane in sitk.GetArrayViewFromImage(image))
    unknown = sorted(set(np.flatnonzero(voxels).tolist()) - mask.labels.known)
    if unknown:
        raise VolumeError(
            f"{mask.path}: holds the labels {', '.join(map(str, unknown))}, which the set does not have; choose the "
            "labels that count with --lesion-labels or --lung-labels"
        )
    return int(voxels[sorted(mask.labels.counted)].sum())
