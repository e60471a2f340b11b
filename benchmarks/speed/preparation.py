"""Crops, paste-back and lungs by thresholding on one large CT: seconds and peak memory, against SciPy's way.

Every way runs in a process of its own, kept to one or two cores, and takes its turn with the others. Its memory is
the most that this process held, less what it held after the imports.

Examples:
    python -m benchmarks.speed.preparation
    python -m benchmarks.speed.preparation --quick
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from benchmarks.speed.measure import alternate, as_text, compared
from datasets.crop import CROP_SIZE, LINEAR, NEAREST, Box, LungMaskCrop, crop_to_lungs, map_window
from datasets.io.grid import Grid
from datasets.io.volume import read_ct, read_geometry, read_labels, read_volume, write_volume
from datasets.lungs import segment_by_threshold
from lungCrop import crop_scans
from post_processing import restore_mask
from utils.cli import new_parser
from utils.memory import peak_memory_mib

SHAPE, QUICK_SHAPE = (300, 512, 512), (75, 128, 128)
"""(z, y, x) of the CT, which fills 360x360x300 mm in either case."""

EXTENT_MM = (300.0, 360.0, 360.0)

THRESHOLD = 0.5


def make_body(shape: tuple[int, int, int], seed: int = 0) -> tuple[sitk.Image, np.ndarray]:
    """A schematic chest: two lungs and a trachea in a body, with noise.

    Args:
        shape: (z, y, x).
        seed: of the noise.

    Returns:
        The CT in HU, int16, and its lung labels.
    """
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    hu = np.random.default_rng(seed).integers(-30, 31, shape, np.int16)
    hu += np.where((y / 0.7) ** 2 + (x / 0.9) ** 2 < 1, 40, -1000).astype(np.int16)
    lungs = np.zeros(shape, np.uint8)
    for label, middle in ((1, -0.42), (2, 0.42)):
        lungs[(z / 0.85) ** 2 + (y / 0.5) ** 2 + ((x - middle) / 0.32) ** 2 < 1] = label
    hu[lungs > 0] -= 890
    hu[(z > 0.1) & (y**2 + x**2 < 0.05**2)] = -990
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing([mm / n for mm, n in zip(reversed(EXTENT_MM), reversed(shape), strict=True)])
    return image, lungs


# ------------------------------------------------------------------------------------------- SciPy's way


def scipys_box(lungs: sitk.Image) -> tuple[np.ndarray, Box]:
    """The mask of the large components, and the box around them, by labelling every voxel of the scan."""
    components, _ = ndimage.label(sitk.GetArrayViewFromImage(lungs) > 0)
    kept = np.bincount(components.ravel()) >= 1e-3 * components.size
    kept[0] = False
    mask = kept[components]
    return mask, ndimage.find_objects(mask.astype(np.uint8))[0]


def scipys_resize(array: np.ndarray, size: tuple[int, int, int], order: int) -> np.ndarray:
    """`ndimage.zoom` to a size."""
    return ndimage.zoom(array, np.divide(size, array.shape), order=order, mode="nearest")


def scipys_crop(ct: sitk.Image, lungs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn the scan, label its lungs, convert it to float32, cut the box out and zoom it."""
    lung = sitk.GetImageFromArray(lungs)
    lung.CopyInformation(ct)
    ct, lung = sitk.DICOMOrient(ct, "LPS"), sitk.DICOMOrient(lung, "LPS")
    mask, box = scipys_box(lung)
    hu = sitk.GetArrayFromImage(sitk.Cast(ct, sitk.sitkFloat32))[box]
    image = map_window(scipys_resize(hu, CROP_SIZE, LINEAR))
    return image, scipys_resize(mask[box].astype(np.uint8), CROP_SIZE, NEAREST)


def published_paste_back(ct: sitk.Image, mask: np.ndarray) -> sitk.Image:
    """Segment the lungs of the scan again, and zoom the mask into the box around them."""
    lungs = sitk.GetImageFromArray(segment_by_threshold(ct))
    _, box = scipys_box(lungs)
    pasted = np.zeros(ct.GetSize()[::-1], np.uint8)
    pasted[box] = scipys_resize(mask, pasted[box].shape, NEAREST)
    return Grid.of(ct).image(pasted)


# --------------------------------------------------------------------------------- what is measured, by name


@cache
def _inputs(folder: Path) -> tuple[sitk.Image, np.ndarray]:
    return read_ct(folder / "ct.nii"), sitk.GetArrayFromImage(read_labels(folder / "lungs.nii"))


def _scipy_crop_files(folder: Path) -> None:
    ct, lungs = read_ct(folder / "ct.nii"), sitk.GetArrayFromImage(read_labels(folder / "lungs.nii"))
    for name, crop in zip(("image", "lung"), scipys_crop(ct, lungs), strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(crop), str(folder / f"scipy_{name}.nii.gz"), useCompression=True)


def _our_crop_files(folder: Path) -> None:
    scan, lungs = {"ct": folder / "ct.nii"}, {"ct": folder / "lungs.nii"}
    failed = crop_scans(scan, folder / "cohort", LungMaskCrop(segment_by_threshold), lungs=lungs, progress=False)
    assert not failed


def _published_paste_back_files(folder: Path, extension: str = ".nii") -> None:
    mask = sitk.GetArrayFromImage(read_volume(folder / "mask.nii.gz"))
    pasted = published_paste_back(read_ct(folder / "ct.nii"), mask)
    sitk.WriteImage(pasted, str(folder / f"published{extension}"), useCompression=extension != ".nii")


def _our_paste_back_files(folder: Path, extension: str = ".nii", crop: str = "mask") -> None:
    restored = restore_mask(folder / "ct.nii", folder / f"{crop}.nii.gz", THRESHOLD)
    write_volume(restored, folder / "pasted" / f"{crop}{extension}")


WAYS: dict[str, Callable[[Path], Any]] = {
    "scipy_crop": lambda folder: scipys_crop(*_inputs(folder)),
    "our_crop": lambda folder: crop_to_lungs(*_inputs(folder)),
    "scipy_crop_files": _scipy_crop_files,
    "our_crop_files": _our_crop_files,
    "published_paste_back": _published_paste_back_files,
    "our_paste_back": _our_paste_back_files,
    "our_paste_back_of_probabilities": lambda folder: _our_paste_back_files(folder, crop="probability"),
    "published_paste_back_gz": lambda folder: _published_paste_back_files(folder, ".nii.gz"),
    "our_paste_back_gz": lambda folder: _our_paste_back_files(folder, ".nii.gz"),
    "lungs": lambda folder: segment_by_threshold(read_ct(folder / "ct.nii")),
}

COMPARISONS = (
    ("crop and resize, in memory", "scipy_crop", "our_crop"),
    ("lungCrop, lungs given, .nii to .nii.gz", "scipy_crop_files", "our_crop_files"),
    ("paste-back of a mask, to .nii", "published_paste_back", "our_paste_back"),
    ("paste-back of a probability, to .nii", "published_paste_back", "our_paste_back_of_probabilities"),
    ("paste-back of a mask, to .nii.gz", "published_paste_back_gz", "our_paste_back_gz"),
)
"""What, baseline, ours."""


# ------------------------------------------------------------------------------------------------ measuring


@contextmanager
def fresh_process(way: str, folder: Path, cores: int) -> Iterator[Callable[[], float]]:
    """A process that runs one of `WAYS` whenever it is called, and answers with its peak memory in MiB.

    Args:
        way: name of it.
        folder: of the inputs, which `write_inputs` made.
        cores: that it may use.
    """
    usable = sorted(os.sched_getaffinity(0))[:cores]
    threads = {name: str(cores) for name in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")}
    command = [sys.executable, "-m", "benchmarks.speed.preparation", "--serve", way, str(folder)]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        env=os.environ | threads,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, usable),
    )

    def turn() -> float:
        process.stdin.write("go\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    with process:
        yield turn
        process.stdin.close()


def serve(way: str, folder: Path) -> None:
    """The other side of `fresh_process`."""
    at_first = _resident_mib()
    for _ in sys.stdin:
        WAYS[way](folder)
        print(peak_memory_mib() - at_first, flush=True)


def write_inputs(folder: Path, shape: tuple[int, int, int]) -> None:
    """A CT, its lungs, and masks at the crop's resolution."""
    ct, lungs = make_body(shape)
    write_volume(ct, folder / "ct.nii")
    write_volume(Grid.of(ct).image(lungs), folder / "lungs.nii")
    image, _ = crop_to_lungs(ct, lungs)
    smooth = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=CROP_SIZE), 4)
    write_volume(Grid.of(image).image((smooth > smooth.std()).astype(np.uint8)), folder / "mask.nii.gz")
    probability = 1 / (1 + np.exp(-4 * (smooth / smooth.std() - 1)))
    write_volume(Grid.of(image).image(probability.astype(np.float32)), folder / "probability.nii.gz")


def rows(quick: bool) -> list[dict[str, Any]]:
    """Measure everything, on one core and on two.

    Args:
        quick: a CT of 128x128x75 instead of 512x512x300, and two repetitions instead of five.

    Returns:
        Rows of `benchmarks.speed.measure.compared`, with peaks of memory in MiB and in volumes of float32.
    """
    repetitions = 2 if quick else 5
    most = min(2, len(os.sched_getaffinity(0)))
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, QUICK_SHAPE if quick else SHAPE)
        found = [
            _compare(folder, repetitions, f"{what}, {cores} core(s)", (baseline, cores), (ours, cores))
            for what, baseline, ours in COMPARISONS
            for cores in range(1, most + 1)
        ]
        lungs = f"lungs by thresholding, 1 core and {most}"
        return [*found, _compare(folder, repetitions, lungs, ("lungs", 1), ("lungs", most))]


def _compare(
    folder: Path, repetitions: int, what: str, baseline: tuple[str, int], ours: tuple[str, int]
) -> dict[str, Any]:
    """A row for two ways, each with its cores."""
    peaks = {}
    with ExitStack() as processes:
        names = [f"{way}, {cores} core(s)" for way, cores in (baseline, ours)]
        turns = [processes.enter_context(fresh_process(way, folder, cores)) for way, cores in (baseline, ours)]
        ways = {
            name: lambda name=name, turn=turn: peaks.update({name: turn()})
            for name, turn in zip(names, turns, strict=True)
        }
        row = compared(what, alternate(ways, repetitions), *names)
    volume_mib = np.prod(read_geometry(folder / "ct.nii").size) * 4 / 2**20
    for who, name in zip(("baseline", "ours"), names, strict=True):
        row |= {f"{who}_peak_mib": round(peaks[name]), f"{who}_peak_volumes": round(peaks[name] / volume_mib, 2)}
    return row


def peaks_as_text(measured: Sequence[Mapping[str, Any]]) -> str:
    """The memory in `rows` as a table for the eye."""
    lines = [f"{'peak memory, in volumes of float32':52} {'baseline':>11} {'ours':>11}"]
    lines += [
        f"{row['what']:52} {row['baseline_peak_volumes']:11.2f} {row['ours_peak_volumes']:11.2f}" for row in measured
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = new_parser(__doc__, "python -m benchmarks.speed.preparation")
    parser.add_argument("--quick", action="store_true", help="a small CT and two repetitions")
    parser.add_argument("--serve", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve[0], Path(options.serve[1]))
        return
    measured = rows(options.quick)
    print(as_text(measured), peaks_as_text(measured), sep="\n\n")


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
