"""``--help`` is quick: none of the libraries that take long to import is imported for it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLOW = {
    *("SimpleITK", "cv2", "highdicom", "imgaug", "lungmask", "matplotlib", "nibabel", "numpy", "onnx", "pandas"),
    *("pydantic", "pydicom", "scipy", "skimage", "tensorboard", "torch", "torchvision", "yaml"),
}


@pytest.mark.parametrize(
    "command",
    [
        *("lungCrop.py", "train.py", "test.py", "post_processing.py", "predict.py", "export.py"),
        *("-m datasets.scans", "-m datasets.make_splits", "-m datasets.phantom", "-m datasets.public"),
    ],
)
def test_help_imports_no_large_library(command):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command.split(), "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert imported & SLOW == set()
