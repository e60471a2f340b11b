"""MetaImage and NRRD: whether their voxels have the length that the header promises.

ITK notices data that is missing, not data that is left over, as where a damaged header describes a smaller volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from isal import isal_zlib

from utils.errors import VolumeError

_LONGEST_HEADER = 1 << 20
_CHUNK = 1 << 22


def check_data_length(path: Path, expected: int) -> None:
    """Compare the length of the voxels in a MetaImage or NRRD file with its header.

    Args:
        path: ``.mha``, ``.mhd`` or ``.nrrd``.
        expected: bytes of all voxels.

    Raises:
        VolumeError: they are longer or shorter, damaged, or spread over several files.
    """
    with path.open("rb") as file:
        head = file.read(_LONGEST_HEADER)
    found = _nrrd(path, head) if path.name.lower().endswith(".nrrd") else _metaimage(path, head)
    if found is None:
        return
    data, start, compressed = found
    try:
        length = sum(map(len, _inflated(data, start, expected))) if compressed else data.stat().st_size - start
    except (OSError, isal_zlib.error) as error:
        raise VolumeError(f"{data}: damaged or unreadable ({error}); copy the file again") from None
    if length != expected:
        raise VolumeError(f"{path}: {length} bytes of voxels, its header promises {expected}; copy the file again")


def _fields(head: bytes, separator: str) -> dict[str, str]:
    fields = {}
    for line in head.decode("utf-8", "surrogateescape").splitlines():
        key, found, value = line.partition(separator)
        if found:
            fields[key.strip().lower()] = value.strip()
    return fields


def _metaimage(path: Path, head: bytes) -> tuple[Path, int, bool]:
    end = head.lower().find(b"elementdatafile")
    stop = head.find(b"\n", end) + 1
    if end < 0 or stop == 0:
        raise VolumeError(f"{path}: its header has no ElementDataFile; export it again")
    fields = _fields(head[:stop], "=")
    name = fields.get("elementdatafile", "")
    compressed = fields.get("compresseddata", "false").lower() == "true"
    if name == "LIST" or "%" in name:
        raise VolumeError(f"{path}: its voxels are in several files; convert it to .mha or .nii.gz")
    if fields.get("headersize", "0") not in ("0", "-1"):
        raise VolumeError(f"{path}: its voxels begin at an offset; convert it to .mha or .nii.gz")
    if name.upper() == "LOCAL":
        return path, stop, compressed
    data = path.parent / name
    if not data.is_file():
        raise VolumeError(f"{path}: its voxels, {name}, are missing; copy both files")
    return data, 0, compressed


def _nrrd(path: Path, head: bytes) -> tuple[Path, int, bool] | None:
    ends = [place + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if (place := head.find(mark)) >= 0]
    if not ends:
        raise VolumeError(f"{path}: its header has no end; export it again")
    fields = _fields(head[: min(ends)], ":")
    if any(key in fields for key in ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip")):
        raise VolumeError(f"{path}: its voxels are in another file or behind an offset; save it as one file")
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        return None
    return path, min(ends), encoding != "raw"


def _inflated(path: Path, start: int, enough: int) -> Iterator[bytes]:
    """The decompressed pieces of a zlib or gzip stream, up to a little more than `enough` bytes."""
    inflate = isal_zlib.decompressobj(wbits=32 + 15)  # zlib or gzip
    length = 0
    with path.open("rb") as file:
        file.seek(start)
        pending = file.read(_CHUNK)
        while pending and length <= enough and not inflate.eof:
            piece = inflate.decompress(pending, _CHUNK)
            length += len(piece)
            yield piece
            pending = inflate.unconsumed_tail or file.read(_CHUNK)
    if length <= enough and not inflate.eof:
        raise isal_zlib.error("it ends too early")
