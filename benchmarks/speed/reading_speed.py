"""Speed of reading a cohort: from disk, from the page cache, and from the cache of decoded scans."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from benchmarks.speed.timing import alternate, compared
from configs.settings import ImageSettings, SplitSettings
from datasets.cohort import TRAINING, Case, read_cohort
from datasets.samples import Samples

SPACING = (2.0, 1.5, 6.0)


def write_cohort(root: Path, size: tuple[int, int, int], scans: int, labelled: int | None = None) -> None:
    """Write a cohort of noisy ellipsoid lungs with a bright lesion; files have a realistic size.

    Args:
        root: cohort folder.
        size: crop size, (z, y, x).
        scans: number of scans in each of LABELED, WO_LABEL and HEALTHY.
        labelled: number of scans in LABELED, if different.
    """
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in size), indexing="ij")
    lung = ((np.abs(x) - 0.5) / 0.4) ** 2 + (y / 0.9) ** 2 + (z / 1.1) ** 2 < 1
    lesion = lung & ((x - 0.5) ** 2 + y**2 + z**2 < 0.1)
    (root / "id_txt").mkdir(parents=True)
    for split in TRAINING:
        number = labelled if split == "LABELED" and labelled is not None else scans
        ids = [f"{split.lower()}_{place}" for place in range(number)]
        for case_id in ids:
            noise = 20 * ndimage.gaussian_filter(rng.standard_normal(size, np.float32), 0.7)
            image = np.clip(200 - 120 * lung + 80 * (lesion & (split != "HEALTHY")) + noise, 0, 255)
            volumes = {"images": image.astype(np.float32), "lung": lung.astype(np.uint8)}
            if split == "LABELED":
                volumes["lesion"] = lesion.astype(np.uint8)
            for folder, array in volumes.items():
                written = sitk.GetImageFromArray(array)
                written.SetSpacing(SPACING)
                path = root / folder / f"{case_id}.nii.gz"
                path.parent.mkdir(exist_ok=True)
                sitk.WriteImage(written, str(path))
        (root / "id_txt" / f"{getattr(SplitSettings(), split.lower())}.txt").write_text("\n".join(ids))


def read_written_cohort(root: Path, size: tuple[int, int, int]) -> dict[str, list[Case]]:
    """Read the cases of a cohort written by `write_cohort`."""
    return read_cohort(root, {split: getattr(SplitSettings(), split.lower()) for split in TRAINING}, size)


def _forget_files(cases: Sequence[Case]) -> None:
    """Drop files from the page cache, so that they are read from disk next."""
    for case in cases:
        for path in (case.image, case.lung, case.lesion):
            if path is not None:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rows(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Seconds and volumes per second for reading scans with their masks.

    Args:
        device: unused.
        quick: use small scans.
    """
    size = (16, 64, 64) if quick else (40, 160, 160)
    scans = 6
    with TemporaryDirectory() as folder:
        write_cohort(Path(folder) / "cohort", size, scans)
        cases = read_written_cohort(Path(folder) / "cohort", size)["LABELED"]
        image = ImageSettings(size=size, slices=16)
        plain, cached = (Samples(cases, "LABELED", image, 0, megabytes) for megabytes in (0, 2000))

        def read_all(samples: Samples) -> None:
            for case in cases:
                for array in samples.read(case):
                    array.copy()

        def read_from_disk() -> None:
            _forget_files(cases)
            read_all(plain)

        ways = {"disk": read_from_disk, "page cache": lambda: read_all(plain), "cache": lambda: read_all(cached)}
        seconds = alternate(ways, repetitions=3 if quick else 5)
    shape = "x".join(map(str, size))
    return [
        compared(
            f"{scans} scans of {shape} with masks, from {baseline}",
            seconds,
            baseline,
            "cache",
            baseline_volumes_per_s=scans / np.median(seconds[baseline]),
            ours_volumes_per_s=scans / np.median(seconds["cache"]),
        )
        for baseline in ("disk", "page cache")
    ]
