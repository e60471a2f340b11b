#!/bin/sh
# MONAI's mean Dice leaves out scans without lesion, whatever was found in them.
# Expected: a scan without lesion in which lesions are found counts as Dice 0.
# Behaviour: DiceMetric's default, ignore_empty=True, makes such a scan NaN and the mean skips it: a segmenter that
#   finds half a litre in every healthy scan has the same mean as one that finds nothing. With ignore_empty=False it
#   is 0, and 1 where nothing is found.
# Seen: MONAI 1.6.1: 0.75 by default, 0.58 with ignore_empty=False, over one diseased scan and two healthy ones,
#   lesions found in one of them.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 monai==1.6.1 torch==2.14.1
venv/bin/python - <<'END'
from importlib.metadata import version

import torch
from monai.metrics import DiceMetric

lesion = torch.zeros(1, 1, 8, 8, 8)
lesion[..., :4, :4, :4] = 1
found = torch.zeros_like(lesion)
found[..., :4, :4, 1:5] = 1  # 48 of 64 voxels right; moved by one
nothing = torch.zeros_like(lesion)
means = []
for ignore_empty in (True, False):
    metric = DiceMetric(ignore_empty=ignore_empty)
    metric(found, lesion)
    metric(found, nothing)  # healthy, 64 voxels found
    metric(nothing, nothing)  # healthy, nothing found
    means.append(round(metric.aggregate().item(), 4))
print(f"monai {version('monai')}: mean Dice {means[0]} by default, {means[1]} with ignore_empty=False")
assert DiceMetric().ignore_empty is True
assert means == [0.75, round((0.75 + 0 + 1) / 3, 4)]
END
