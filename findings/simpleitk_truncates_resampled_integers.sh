#!/bin/sh
# SimpleITK cuts resampled integers off toward zero instead of rounding them.
# Expected: an integer image that is interpolated linearly is rounded: it differs from the same image in floating point
#   by at most half a grey value, and not in the mean.
# Behaviour: Resample drops the fraction: negative HU, that is lung, rise by half a HU in the mean, and DiscreteGaussian
#   does so once per axis. Of a mask of 0 and 1 only voxels remain that lie fully inside: a small lesion loses a fifth
#   of its volume. Cast to floating point before, and round or cut at 0.5 afterwards.
# Seen: SimpleITK 2.5.7: +0.5 HU (Resample) and +1.5 HU (DiscreteGaussian) in lung; a ball of 2,103 voxels keeps 79 %,
#   by way of floating point 100 %.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 SimpleITK==2.5.7
venv/bin/python - <<'END'
import numpy as np
import SimpleITK as sitk


def finer(image):
    """Voxels of 0.6 instead of 1 mm, interpolated linearly."""
    return sitk.Resample(image, [65, 65, 33], sitk.Transform(), sitk.sitkLinear, (0, 0, 0), (0.6, 0.6, 0.6))


def mean(image):
    return float(sitk.GetArrayFromImage(image).mean())


lung = sitk.GetImageFromArray(np.random.default_rng(0).integers(-950, -700, (20, 40, 40)).astype(np.int16))
exact = sitk.Cast(lung, sitk.sitkFloat32)
shifts = {
    "Resample": mean(finer(lung)) - mean(finer(exact)),
    "DiscreteGaussian": mean(sitk.DiscreteGaussian(lung, 1.0)) - mean(sitk.DiscreteGaussian(exact, 1.0)),
}
z, y, x = np.ogrid[:20, :40, :40]
ball = sitk.GetImageFromArray(((z - 10) ** 2 + (y - 20) ** 2 + (x - 20) ** 2 < 64).astype(np.uint8))
volume = sitk.GetArrayFromImage(ball).sum()
kept = sitk.GetArrayFromImage(finer(ball)).sum() * 0.6**3 / volume
through_floats = (sitk.GetArrayFromImage(finer(sitk.Cast(ball, sitk.sitkFloat32))) >= 0.5).sum() * 0.6**3 / volume
print("SimpleITK", sitk.Version_VersionString(), *(f"{name}: {shift:+.2f} HU" for name, shift in shifts.items()))
print(f"of {volume} voxels: {kept:.0%} remain of a mask of integers, {through_floats:.0%} by way of floating point")
assert 0.45 < shifts["Resample"] < 0.5
assert 1.4 < shifts["DiscreteGaussian"] < 1.6
assert round(kept, 2) == 0.79
assert round(through_floats, 2) == 1
END
