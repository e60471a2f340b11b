import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

pytest.importorskip("triton")

SIZES = {"D": "i32", "H": "i32", "W": "i32", "voxels": "i32", "parts": "i32", "part_voxels": "i32"}
NUMBERS = {"slope": "fp32", "eps": "fp32"}
MAPS = ("y", "g", "x", "out")


def test_the_kernels_agree_with_float64_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/models/fast/kernel_checks.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("channels", [24])
def test_the_kernels_compile_for_a_gpu_that_is_not_there(channels):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from models.fast import kernels

    found = [value for name, value in vars(kernels).items() if name.endswith("_kernel")]
    assert len(found) == 8
    wide, tall = kernels._tile(channels)
    constants = {"stride": channels, "y_stride": channels, "g_stride": 2 * channels, "C": channels, "BV": tall}
    constants |= {"TILES": 3, "BP": 64, "SD": 2, "SH": 2, "SW": 2}
    for kernel in found:
        names = kernel.arg_names
        wide_here = kernels._MERGED if "merge" in kernel.__name__ else wide
        here = {name: value for name, value in (constants | {"BC": wide_here}).items() if name in names}
        signature = {
            name: "constexpr" if name in here else (SIZES | NUMBERS).get(name, "*bf16" if name in MAPS else "*fp32")
            for name in names
        }
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
        source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in here.items()}, aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert len(compiled.asm["cubin"]) > 1000
        # Rows of aligned channels are read several elements at a time.
        if "normalise" in kernel.__name__:
            assert "ld.global.v" in compiled.asm["ptx"] or "ld.global.b64" in compiled.asm["ptx"]
