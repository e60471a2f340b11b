"""MetaImage and NRRD: what ITK does not check.

ITK takes 1 mm where a header gives no spacing, and does not find voxels by a Windows path. It notices data that is
missing, not data that is left over, as where a damaged header describes a smaller volume.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory

from isal import isal_zlib

from utils.errors import VolumeError

log = logging.getLogger(__name__)

_LONGEST_HEADER = 1 << 20
_CHUNK = 1 << 22
_NRRD = (".nrrd", ".nhdr")

EXTENSIONS = (".mha", ".mhd", *_NRRD)


@dataclass(frozen=True)
class TextHeader:
    """What the header of a MetaImage or NRRD file says of its voxels.

    Attributes:
        path: the file with the header.
        content: its first bytes, all of the header among them.
        data: the file with the voxels.
        start: where they begin in it, in bytes.
        compressed: whether they are compressed with zlib or gzip; None for encodings whose length is not known.
        named: the name of `data` in the header; None if the voxels follow the header.
    """

    path: Path
    content: bytes
    data: Path
    start: int
    compressed: bool | None
    named: str | None


def read_text_header(path: Path) -> TextHeader:
    """Read and check the header of a MetaImage or NRRD file.

    Args:
        path: ``.mha``, ``.mhd``, ``.nrrd`` or ``.nhdr``.

    Raises:
        VolumeError: it has no spacing, one that is not in mm, no end, or voxels that are missing or in several files.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_HEADER)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    return _nrrd(path, content) if path.name.lower().endswith(_NRRD) else _metaimage(path, content)


def check_data_length(header: TextHeader, expected: int) -> None:
    """Compare the length of the voxels with the header.

    Args:
        header: of the file.
        expected: bytes of all voxels.

    Raises:
        VolumeError: they are longer or shorter, or damaged.
    """
    data, start = header.data, header.start
    if header.compressed is None:
        return
    try:
        length = sum(map(len, _inflated(data, start, expected))) if header.compressed else data.stat().st_size - start
    except (OSError, isal_zlib.error) as error:
        raise VolumeError(f"{data}: damaged or unreadable ({error}); copy the file again") from None
    if length != expected:
        raise VolumeError(
            f"{header.path}: {length} bytes of voxels, its header promises {expected}; copy the file again"
        )


@contextmanager
def for_itk(header: TextHeader) -> Iterator[Path]:
    """A file that ITK reads: the file itself, or a copy of its header that says where the voxels are."""
    path, name = header.path, header.named
    if name is None or path.parent / name == header.data:
        yield path
        return
    log.warning("%s: its voxels are read from %s; the header names %s", path, header.data, name)
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        field = rb"(?im)^((?:ElementDataFile\s*=|data ?file:)\s*)" + re.escape(os.fsencode(name))
        place = bytes(header.data.resolve())
        copy.write_bytes(re.sub(field, lambda found: found[1] + place, header.content))
        yield copy


def _fields(head: bytes, separator: str) -> dict[str, str]:
    fields = {}
    for line in head.decode("utf-8", "surrogateescape").splitlines():
        key, found, value = line.partition(separator)
        if found:
            fields[key.strip().lower()] = value.strip()
    return fields


def _metaimage(path: Path, content: bytes) -> TextHeader:
    end = content.lower().find(b"elementdatafile")
    stop = content.find(b"\n", end) + 1
    if end < 0 or stop == 0:
        raise VolumeError(f"{path}: its header has no ElementDataFile; export it again")
    fields = _fields(content[:stop], "=")
    if "elementspacing" not in fields and "elementsize" not in fields:
        raise VolumeError(f"{path}: does not say how large its voxels are (no ElementSpacing); set it in the header")
    name = fields.get("elementdatafile", "")
    compressed = fields.get("compresseddata", "false").lower() == "true"
    if name == "LIST" or "%" in name:
        raise VolumeError(f"{path}: its voxels are in several files; convert it to .mha or .nii.gz")
    if fields.get("headersize", "0") not in ("0", "-1"):
        raise VolumeError(f"{path}: its voxels begin at an offset; convert it to .mha or .nii.gz")
    if name.upper() == "LOCAL":
        return TextHeader(path, content, path, stop, compressed, None)
    return TextHeader(path, content, _voxel_file(path, name), 0, compressed, name)


def _voxel_file(path: Path, name: str) -> Path:
    """The file of voxels that a header names, by a path of this system or of Windows, or beside the header."""
    windows = PureWindowsPath(name)
    for place in (path.parent / name, path.parent / windows.as_posix(), path.parent / windows.name):
        if place.is_file():
            return place
    raise VolumeError(f"{path}: its voxels, {name}, are missing; copy both files")


def _nrrd(path: Path, content: bytes) -> TextHeader:
    ends = [place + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if (place := content.find(mark)) >= 0]
    fields = _fields(content[: min(ends, default=len(content))], ":")
    name = fields.get("data file", fields.get("datafile"))
    if not ends and (name is None or len(content) == _LONGEST_HEADER):
        raise VolumeError(f"{path}: its header has no end; export it again")
    if "space directions" not in fields and "spacings" not in fields:
        raise VolumeError(
            f"{path}: does not say how large its voxels are (no space directions); set them in the header"
        )
    units = {unit.strip().lower() for unit in fields.get("space units", "").split('"')[1::2]}
    if units - {"mm", ""}:
        raise VolumeError(f"{path}: its spacing is not in mm but in {', '.join(sorted(units))}; convert it")
    if any(key in fields for key in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise VolumeError(f"{path}: its voxels are behind an offset; save it as one file")
    encoding = fields.get("encoding", "").lower()
    compressed = encoding != "raw" if encoding in ("raw", "gzip", "gz") else None
    if name is None:
        return TextHeader(path, content, path, min(ends), compressed, None)
    if name.split()[0] == "LIST" or "%" in name:
        raise VolumeError(f"{path}: its voxels are in several files; save it as one file")
    return TextHeader(path, content, _voxel_file(path, name), 0, compressed, name)


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
