#!/bin/sh
# On the CPU, torch.argmax over the classes of score maps takes many times as long as torch.max, which finds the same index.
# Expected: argmax is at most as slow as max, which returns the largest score, too.
# Behaviour: over any axis but the last, argmax is slow whatever the instructions of the CPU; on the last axis of a copy, and
#   by max(...).indices, it is not. Known to PyTorch (issue 140000), with NumPy instead of max.
# Seen: torch 2.14.1, one thread, three classes of 256x256: 17 ms by argmax, 1.2 ms by max, 1.6 ms on the last axis of a copy;
#   the same indices, the first of equal scores. 512x512x300 with lungmask's network: 7 s of the time beside the network.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'END'
import time

import torch

print("torch", torch.__version__)
torch.set_num_threads(1)
ways = {
    "argmax": lambda scores: scores.argmax(1),
    "max": lambda scores: scores.max(1).indices,
    "argmax on the last axis of a copy": lambda scores: scores.movedim(1, -1).contiguous().argmax(-1),
}


def milliseconds(way, scores):
    """Shortest of twenty calls, in processor time, which other jobs do not change."""
    found = []
    for _ in range(20):
        start = time.process_time()
        way(scores)
        found.append(1000 * (time.process_time() - start))
    return min(found)


scores = torch.randint(0, 4, (1, 3, 256, 256)).float()  # with many equal scores
assert all(torch.equal(way(scores), scores.argmax(1)) for way in ways.values()), "the indices differ"
took = {name: milliseconds(way, torch.randn(1, 3, 256, 256)) for name, way in ways.items()}
for name, ms in took.items():
    print(f"{name}: {ms:.2f} ms")
assert took["argmax"] > 4 * took["max"], "argmax is fast now"
print("as found")
END
