"""How much of the lungs is lesion, and a grade for it: numbers for research, not findings for a patient.

The grade follows the classes CT-0 to CT-4 of MosMedData (Morozov et al., 2020, arXiv:2005.06465), which radiologists
gave by eye: by the share of the parenchyma that is involved, in the lung that is more affected. Here the share is
counted in voxels of a predicted mask, which differs from what an eye estimates, most of all near the limits; and the
smallest false finding makes CT-1 of a CT-0.
"""

from dataclasses import dataclass

import numpy as np

NOTICE = "For research use only; not a medical device."
"""Stands wherever a person sees results of a scan."""

RIGHT, LEFT, NO_SIDE = 1, 2, 3
"""Labels of lungs; the last is lung of which the side is not known."""

GRADING = (
    "CT-0 to CT-4 by the predicted share of the more affected lung (of both lungs where the sides are not known): CT-0 "
    "none, CT-1 up to 25 %, CT-2 up to 50 %, CT-3 up to 75 %, CT-4 above. The classes are those of MosMedData (Morozov "
    "et al. 2020), which radiologists gave by eye"
)
"""What `severity` does, for people."""

_LIMITS = (0.0, 25.0, 50.0, 75.0)
"""Percent of lung up to which a scan is CT-0, CT-1, CT-2 and CT-3."""


@dataclass(frozen=True)
class Burden:
    """What a lesion mask says of one scan, at its native resolution; None where a number has no meaning."""

    lesion_ml: float
    lung_ml: float
    lesion_percent_of_lung: float | None
    right_lung_percent: float | None
    left_lung_percent: float | None
    lesion_mean_hu: float | None
    severity: str | None


def severity(percent_of_lung: float | None) -> str | None:
    """The class CT-0 to CT-4 of a share of lung, 0..100; None without lungs.

    CT-0 is 0 %, CT-1 above 0 and up to 25 %, CT-2 up to 50 %, CT-3 up to 75 %, CT-4 above 75 %; on which side the
    limits themselves lie is our choice.
    """
    if percent_of_lung is None:
        return None
    return f"CT-{sum(percent_of_lung > limit for limit in _LIMITS)}"


def measure_burden(lesion: np.ndarray, lungs: np.ndarray, hu: np.ndarray, voxel_ml: float) -> Burden:
    """Volumes, shares, density and grade of the lesion of one scan.

    The volume and the mean HU are those of the whole mask. Shares count lesion inside the lungs alone, so that none
    exceeds 100 %: interpolation can take a mask a little over the border of the lungs. With the voxels L of the lesion
    and P of a lung, the share is 100 |L ∩ P| / |P|. The grade is that of the more affected lung, by the share of a
    side that has voxels; where no side has any, by the share of all lung.

    Arrays are (z, y, x): lesion bool, lungs `RIGHT`, `LEFT`, `NO_SIDE` or 0, and HU; `voxel_ml` is of one voxel.
    """
    involved = np.bincount(lungs[lesion], minlength=NO_SIDE + 1)
    right, left, whole = (np.count_nonzero(part) for part in (lungs == RIGHT, lungs == LEFT, lungs))
    right_percent = 100 * int(involved[RIGHT]) / right if right else None
    left_percent = 100 * int(involved[LEFT]) / left if left else None
    of_both = 100 * int(involved[RIGHT:].sum()) / whole if whole else None
    sides = [side for side in (right_percent, left_percent) if side is not None]
    voxels = np.count_nonzero(lesion)
    return Burden(
        lesion_ml=voxels * voxel_ml,
        lung_ml=whole * voxel_ml,
        lesion_percent_of_lung=of_both,
        right_lung_percent=right_percent,
        left_lung_percent=left_percent,
        lesion_mean_hu=float(hu[lesion].mean(dtype=np.float64)) if voxels else None,
        severity=severity(max(sides) if sides else of_both),
    )
