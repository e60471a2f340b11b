"""Fuzzes the volume reader: mutated files must be refused or read correctly.

Each mutant is refused with a one-line error, or read and counted by what the mutation changed. NIfTI images are
compared with the file decoded independently (struct and NumPy) and with SimpleITK. MetaImage, NRRD and DICOM mutants
must not crash the program and must have the number of voxels of the file. Mutants are reproducible from the seed.

Examples:
    python -m tests.fuzz_volumes --count 20000
    python -m tests.fuzz_volumes --kind mha --count 2000
"""

import gzip
import random
import re
import resource
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from itertools import count
from pathlib import Path
from unittest.mock import patch

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from datasets.scans import open_scan
from tests.volumes import geometry, rotation, write, write_dicom
from utils.cli import add_quiet, new_parser
from utils.errors import VolumeError
from utils.progress import progress_bar

SLOW_S = 3.0
SHAPE = (6, 7, 8)
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}

FIELDS = [
    (0, "i"), (39, "B"), *((40 + 2 * k, "h") for k in range(8)), (70, "h"), (72, "h"),
    *((76 + 4 * k, "f") for k in range(8)), (108, "f"), (112, "f"), (116, "f"), (120, "h"), (122, "B"), (123, "B"),
    (252, "h"), (254, "h"), *((256 + 4 * k, "f") for k in range(18)), (344, "4s"), (348, "4s"), (352, "i"), (356, "i"),
]  # fmt: skip
"""Offset and type of the header fields that define voxel type and geometry."""

NUMBERS = [b"0", b"1", b"-1", b"2", b"6", b"7", b"8", b"99999", b"4294967297", b"1e30", b"nan"]

INTERESTING = {
    "B": [0, 1, 2, 3, 10, 127, 255],
    "h": [-32768, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 32, 64, 128, 255, 256, 512, 768, 1024, 1280, 1536, 2304, 32767],
    "i": [-(2**31), -1, 0, 1, 8, 16, 17, 348, 540, 2**16, 2**30, 2**31 - 1],
    "f": [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, 1e-30, 1e30, 3e38, float("nan"), float("inf"), -float("inf"), 348.0,
          351.0, 352.0, 353.0, 368.0, 400.0, 1e6, 2.0**31, -352.0, -1024.0],
    "4s": [b"n+1\0", b"ni1\0", b"n+2\0", b"\0\0\0\0", b"\1\0\0\0", b"\xff\xff\xff\xff", b"n+1 "],
}  # fmt: skip


def nifti_corpus() -> dict[str, bytes]:
    hu = np.random.default_rng(0).integers(-1000, 400, SHAPE).astype(np.int16)
    straight = np.diag([-0.7, -0.8, 2.5, 1.0])
    straight[:3, 3] = 12.3, -45.6, 789.1
    oblique = straight.copy()
    oblique[:3, :3] = rotation(0.1, -0.2, 0.3) @ straight[:3, :3]
    made = {}

    def add(name, array, affine, order="<", sform=1, qform=1, comment=None, slope=None):
        header = nib.Nifti1Header(endianness=order)
        header.set_data_dtype(array.dtype)
        image = nib.Nifti1Image(array.T, affine, header)
        image.set_sform(affine, sform)
        image.set_qform(affine, qform)
        if comment is not None:
            image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", comment))
        content = image.to_bytes()
        if slope is not None:  # nibabel would rescale the voxels
            content = content[:112] + struct.pack(f"{order}2f", *slope) + content[120:]
        made.update({f"{name}.nii": content, f"{name}.nii.gz": gzip.compress(content, 6, mtime=0)})

    add("int16", hu, straight)
    add("oblique", hu, oblique)
    add("big_endian", hu, straight, order=">")
    add("sform_only", hu, oblique, qform=0)
    add("qform_only", hu, oblique, sform=0)
    add("left_handed", hu, straight * [[-1], [1], [1], [1]])
    add("mask", (hu > 0).astype(np.uint8), straight)
    add("float32", hu.astype(np.float32) / 3, straight)
    add("scaled", (hu + 1024).astype(np.uint16), straight, slope=(1.5, -1024.0))
    add("extension", hu, straight, comment=b"made for a test")
    add("int32", hu.astype(np.int32), oblique, order=">")
    add("four_dimensions", hu[None], straight)
    return made


def mutate_nifti(name: str, content: bytes, corpus: dict[str, bytes], rng: random.Random) -> tuple[bytes, bool]:
    """Mutate a file, of a compressed one the content or the bytes; also return whether its checksum reveals that."""
    if name.endswith(".gz") and rng.random() < 0.4:
        return mutated(content, rng, ["anywhere", "anywhere", "cut", "append", "insert", "delete", "zero"]), True
    data = bytearray(_unpacked(content))
    for _ in range(rng.choice([1, 1, 1, 1, 2, 3])):
        way = rng.choices(["field", "splice", "dims", "other"], [4, 0.4, 0.6, 5])[0]
        if way == "field" and len(data) > 360:
            at, kind = rng.choice(FIELDS)
            value = rng.choice(INTERESTING[kind])
            if kind == "f" and rng.random() < 0.3:
                value = struct.unpack_from("<f", data, at)[0] * rng.choice([0.5, 0.999, 1.0001, 1.01, 2, -1])
            try:
                struct.pack_into(rng.choice("<<<>") + kind, data, at, value)
            except (struct.error, OverflowError):
                struct.pack_into("<f", data, at, 0.0)
        elif way == "dims" and len(data) > 360:
            rng.shuffle(sizes := list(struct.unpack_from("<3h", data, 42)))
            struct.pack_into("<3h", data, 42, *sizes)
        elif way == "splice":
            place = rng.randrange(len(data))
            data[place:] = rng.choice(list(corpus.values()))[place:]
        else:
            ways = ["header", "header", "anywhere", "cut", "append", "insert", "delete", "zero"]
            data = bytearray(mutated(bytes(data), rng, ways, head=360))
    content = bytes(data)
    return (gzip.compress(content, rng.choice([1, 6, 9]), mtime=0) if name.endswith(".gz") else content), False


def mutated(content: bytes, rng: random.Random, ways: list[str], head: int = 1000) -> bytes:
    """Change a file once in one of these ways; it is not empty, before and after."""
    data = bytearray(content)
    place = rng.randrange(len(data))
    match rng.choice(ways):
        case "header":
            data[rng.randrange(min(len(data), head))] ^= 1 << rng.randrange(8)
        case "anywhere":
            data[place] = rng.randrange(256)
        case "cut":
            del data[place + 1 :]
        case "append":
            data += rng.choice([rng.randbytes(rng.randrange(1, 64)), bytes(rng.randrange(1, 5000)), content])
        case "insert":
            data[place:place] = rng.randbytes(rng.choice([1, 2, 4, 16, 100]))
        case "delete":
            del data[place : place + rng.choice([1, 2, 4, 16])]
        case "zero":
            length = min(rng.choice([4, 64, 300]), len(data) - place)
            data[place : place + length] = bytes(length)
        case "number":
            if numbers := list(re.finditer(rb"\d+", bytes(data[:head]))):
                number = rng.choice(numbers)
                data[number.start() : number.end()] = rng.choice(NUMBERS)
    return bytes(data) or b"x"


def mutate_text(content: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 3])):
        content = mutated(content, rng, ["header", "header", "anywhere", "cut", "insert", "delete", "number"])
    return content


def _unpacked(content: bytes) -> bytes:
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def disagreement(path: Path, image: sitk.Image) -> str | None:
    """Describe how an image differs from its file as decoded by NumPy or SimpleITK; None if it does not."""
    content = _unpacked(path.read_bytes())
    order = "<" if struct.unpack_from("<i", content)[0] == 348 else ">"
    size = struct.unpack_from(f"{order}3h", content, 42)
    voxel = np.dtype(order + TYPES[struct.unpack_from(f"{order}h", content, 70)[0]])
    offset, slope, intercept = struct.unpack_from(f"{order}3f", content, 108)
    if image.GetSize() != size:
        return f"size {image.GetSize()}, the file's is {size}"
    if len(content) != offset + np.prod(size) * voxel.itemsize:
        return f"{len(content)} bytes, but the header declares another size"
    expected = np.frombuffer(content, voxel, int(np.prod(size)), int(offset)).reshape(size[::-1])
    if slope != 0 and np.isfinite(slope) and (slope, intercept) != (1, 0):
        expected = expected * np.float64(slope) + intercept
    elif sitk.GetArrayViewFromImage(image).dtype != voxel.newbyteorder("="):
        return "another type"
    found = sitk.GetArrayViewFromImage(image)
    if not np.allclose(found, expected, rtol=1e-6, atol=1e-30, equal_nan=False):
        return "other voxels"
    unpacked = path.with_name("unpacked.nii")  # SimpleITK reads no compressed file of this name
    unpacked.write_bytes(content)
    try:
        theirs = sitk.ReadImage(str(unpacked))
    except RuntimeError as error:
        if "orthonormal" in str(error) and _leans_a_little(content):
            return None  # axes that lean a little are straightened here
        return f"SimpleITK refuses it: {str(error).strip().splitlines()[-1]}"
    for what in ("Size", "Spacing", "Origin", "Direction"):
        ours, others = (np.array(getattr(i, f"Get{what}")()) for i in (image, theirs))
        if not np.allclose(ours, others, rtol=1e-4, atol=2e-3 if what == "Direction" else 1e-4):
            return f"{what} {ours.round(4)}, SimpleITK's is {others.round(4)}"
    return None


def _leans_a_little(content: bytes) -> bool:
    axes = nib.Nifti1Header(content[:348], check=False).get_best_affine()[:3, :3]
    axes = axes / np.linalg.norm(axes, axis=0)
    return 1e-4 < np.abs(axes.T @ axes - np.eye(3)).max() <= 1e-3


def changed(image: sitk.Image, original: sitk.Image) -> str:
    (size, *others), (expected, *originals) = geometry(image), geometry(original)
    if size != expected:
        return "another size with as many voxels"
    if others != originals:
        return "another plausible geometry"
    ours, theirs = (sitk.GetArrayViewFromImage(i) for i in (image, original))
    if ours.dtype != theirs.dtype:
        return "another scaling or type of as many bytes"
    return "nothing" if np.array_equal(ours, theirs) else "voxels, in a file without checksum"


def fuzz(kind: str, mutants: int, seed: int, progress: bool = False) -> tuple[Counter, list[str]]:
    """Read mutants of NIfTI (nifti), MetaImage (mha), NRRD (nrrd) or one slice of a DICOM series (dicom).

    Returns:
        Number of mutants by outcome, and descriptions of failures (expected: none).
    """
    rng, counts, wrong = random.Random(seed), Counter(), []
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings(action="ignore"):
        folder = Path(place) / "case"
        folder.mkdir()
        files = nifti_corpus() if kind == "nifti" else other_corpus(kind, folder)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        targets = {name: folder if kind == "dicom" else folder / name for name in files}
        originals = {name: open_scan(target).read() for name, target in targets.items()}
        for number in progress_bar(range(mutants), "fuzzing", unit="mutant", shown=progress):
            name = rng.choice(list(files))
            if kind == "nifti":
                mutant, told = mutate_nifti(name, files[name], files, rng)
            else:
                mutant, told = mutate_text(files[name], rng), False
            (folder / name).write_bytes(mutant)
            before = time.monotonic()
            try:
                image = open_scan(targets[name]).read()
                what = changed(image, originals[name])
                if told and _unpacked(mutant) not in files.values():
                    found = f"changed {what} despite the checksum"
                elif kind == "nifti":
                    found = None if told else disagreement(folder / name, image)
                else:
                    sizes = [sitk.GetArrayViewFromImage(one).nbytes for one in (image, originals[name])]
                    found = f"{sizes[0]} bytes of voxels" if sizes[0] % sizes[1] else None
                what = f"read, changed: {what}"
            except VolumeError as error:
                in_one_line = "\n" not in str(error) and str(targets[name]) in str(error)
                what, found = "refused", None if in_one_line else f"not one line with the file's name: {error}"
            except Exception as error:
                what, found = "failed", f"{type(error).__name__}: {error}"
            if time.monotonic() - before > SLOW_S:
                found = f"took {time.monotonic() - before:.1f} s"
            (folder / name).write_bytes(files[name])
            counts[what] += 1
            if found is not None:
                wrong.append(f"{number} {name}: {found}")
    return counts, wrong


def other_corpus(kind: str, folder: Path) -> dict[str, bytes]:
    stored = np.random.default_rng(0).integers(0, 1400, SHAPE).astype(np.int16)
    if kind == "dicom":
        uids = (f"1.2.826.0.1.3680043.8.498.{10**35 + number}" for number in count())
        with patch("tests.volumes.generate_uid", uids.__next__):  # mutants would be others each time
            write_dicom(folder, stored)
    else:
        write(folder / f"raw.{kind}", stored - 1024, compress=False)
        write(folder / f"zip.{kind}", stored - 1024)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def main() -> int:
    parser = new_parser(__doc__, "python -m tests.fuzz_volumes")
    parser.add_argument("--kind", choices=["nifti", "mha", "nrrd", "dicom"], default="nifti")
    parser.add_argument("--count", type=int, default=20_000, help="number of mutants (default 20000)")
    parser.add_argument("--seed", type=int, default=0)
    add_quiet(parser)
    options = parser.parse_args()
    start = time.monotonic()
    counts, wrong = fuzz(options.kind, options.count, options.seed, not options.quiet)
    for what, number in counts.most_common():
        print(f"{number:8} {what}")
    seconds, peak = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{options.count} mutants of {options.kind}, seed {options.seed}: {seconds:.0f} s, at most {peak:.0f} MiB")
    for finding in wrong:
        print(f"wrong: {finding}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
