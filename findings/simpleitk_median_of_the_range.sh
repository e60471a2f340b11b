#!/bin/sh
# SimpleITK's medians of a region change with voxels outside of it.
# Expected: the median HU of a lesion or lung depends on its own voxels, as the mean does.
# Behaviour: both filters for statistics of labels take it from a histogram over the range of the whole image, of 128 bins
#   (256 in LabelStatisticsImageFilter): a bin is 27 HU wide in a CT of -1024 to 2400 HU, and 242 HU with a metal
#   implant. One bright voxel elsewhere moves the median.
# Seen: SimpleITK 2.5.7: a lesion with a median of -450 HU: LabelIntensityStatistics -451 to -418, LabelStatistics
#   -479 to -429, depending on the brightest voxel of the CT.
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

rng = np.random.default_rng(0)
hu = np.clip(rng.normal(-850, 60, (20, 64, 64)), -1024, 400).astype(np.int16)
mask = np.zeros(hu.shape, np.uint8)
mask[5:12, 10:30, 10:30] = 1
hu[mask > 0] = rng.normal(-451, 80, mask.sum())
true = float(np.median(hu[mask > 0]))
found = {"LabelIntensityStatistics": [], "LabelStatistics": []}
for brightest in (400, 3071, 15000, 30000):
    hu[0, 0, 0] = brightest  # outside of the lesion
    ct, lesion = sitk.GetImageFromArray(hu), sitk.GetImageFromArray(mask)
    intensity = sitk.LabelIntensityStatisticsImageFilter()
    intensity.Execute(lesion, ct)
    statistics = sitk.LabelStatisticsImageFilter()
    statistics.UseHistogramsOn()
    statistics.Execute(ct, lesion)
    assert abs(intensity.GetMean(1) - hu[mask > 0].mean()) < 1e-6
    medians = intensity.GetMedian(1), statistics.GetMedian(1)
    print(f"brightest voxel {brightest} HU: medians {medians[0]:.0f} and {medians[1]:.0f} HU, NumPy {true:.0f}")
    for name, median in zip(found, medians):
        found[name].append(median)
assert all(max(medians) - min(medians) > 30 for medians in found.values())
END
