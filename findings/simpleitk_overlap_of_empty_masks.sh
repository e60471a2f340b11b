#!/bin/sh
# SimpleITK's overlap measures of two empty masks are infinite or 1.8e308.
# Expected: 0, 1 or NaN, or an error; the Hausdorff filter beside it raises.
# Behaviour: LabelOverlapMeasuresImageFilter divides by zero without a word: Dice is inf, Jaccard and the false
#   positive error are the largest float64, which is finite, so that checks for NaN and inf pass and a mean over
#   scans is 1e307.
# Seen: SimpleITK 2.5.7: Dice inf, Jaccard 1.7976931348623157e+308.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 SimpleITK==2.5.7
venv/bin/python - <<'END'
import math
import sys

import SimpleITK as sitk

empty = sitk.Image(8, 8, 4, sitk.sitkUInt8)
measures = sitk.LabelOverlapMeasuresImageFilter()
measures.Execute(empty, empty)
values = measures.GetDiceCoefficient(), measures.GetJaccardCoefficient(), measures.GetFalsePositiveError()
print(f"SimpleITK {sitk.Version_VersionString()}: Dice, Jaccard, false positive error {values}")
assert values == (math.inf, sys.float_info.max, sys.float_info.max)
END
