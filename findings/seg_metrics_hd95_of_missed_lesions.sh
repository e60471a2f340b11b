#!/bin/sh
# seg-metrics gives a scan in which nothing was found the best possible surface distances.
# Expected: an error, NaN or infinity; there is no distance to a surface that does not exist.
# Behaviour: hd, hd95, msd, mdsd and stdsd are 0, as for a perfect mask; the mean over scans falls with each scan missed.
# Seen: seg-metrics 1.2.8: Dice 0, hd95 0.0 mm; for the mask that is half right, Dice 0.5, hd95 5.0 mm.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check seg-metrics==1.2.8 numpy==2.4.6 SimpleITK==2.5.7
venv/bin/python - <<'END'
import numpy as np
from seg_metrics.seg_metrics import write_metrics

lesion = np.zeros((20, 40, 40), np.uint8)
lesion[5:15, 10:20, 10:20] = 1
half_right = np.roll(lesion, 5, axis=2)  # 5 mm to the side
surfaces = ["hd", "hd95", "msd", "mdsd", "stdsd"]
found = {}
for name, mask in {"half right": half_right, "nothing": np.zeros_like(lesion)}.items():
    (scores,) = write_metrics(
        labels=[1], gdth_img=lesion, pred_img=mask, spacing=np.array([5.0, 1.0, 1.0]), metrics=["dice", *surfaces]
    )
    found[name] = {key: float(values[0]) for key, values in scores.items() if key != "label"}
    print(name, found[name])
assert found["half right"]["dice"] == 0.5
assert found["half right"]["hd95"] == 5
assert found["nothing"] == dict.fromkeys(["dice", *surfaces], 0)
print("as found")
END
