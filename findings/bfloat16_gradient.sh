#!/bin/sh
# In bfloat16 on CPUs with AVX-512 but without AMX, Conv3d gets a wrong gradient of its weights.
# Expected: close to the gradient in float32, as on CPUs with AMX.
# Behaviour: if the input has fewer slices than the kernel and the output more than one, the gradient is infinite, NaN, or
#   of no relation to the right one.
# Seen: torch 2.14.1, two slices and a kernel of three: a cosine of 0 to 0.7, or NaN; 1, 3 and 4 slices: 1.000. A CPU
#   that cannot show it says so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'END'
import sys

import torch
from torch.nn.functional import conv3d, cosine_similarity

print("torch", torch.__version__)
has = torch.cpu.get_capabilities()
if not has.get("avx512_f") or has.get("amx_bf16"):
    print("this CPU cannot show it: it has no AVX-512, or it has AMX")
    sys.exit(0)


def likeness(slices):
    """Lowest cosine of the gradients in bfloat16 and in float32, over ten repetitions."""
    found = []
    for seed in range(10):
        torch.manual_seed(seed)
        x, weight, g = torch.randn(2, 16, slices, 8, 8), torch.randn(16, 16, 3, 3, 3), torch.randn(2, 16, slices, 8, 8)
        gradients = []
        for kind in (torch.float32, torch.bfloat16):
            w = weight.to(kind, copy=True).requires_grad_()
            conv3d(x.to(kind), w, padding=1).backward(g.to(kind))
            gradients.append(w.grad.float().flatten())
        found.append(cosine_similarity(*gradients, dim=0).nan_to_num(0).item())
    return min(found)


for slices in (1, 2, 3, 4):
    print(f"{slices} slices, kernel 3: cosine with the gradient in float32 {likeness(slices):.3f}")
assert min(map(likeness, (1, 3, 4))) > 0.99, "another case is wrong, too"
assert likeness(2) < 0.9, "the fault is gone"
print("as found")
END
