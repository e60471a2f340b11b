"""The files that a volume consists of."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from datasets.io import nifti
from datasets.io.text_headers import EXTENSIONS, read_text_header
from utils.errors import VolumeError


def files_of(path: Path) -> tuple[Path, ...]:
    """A volume file, and the file with its voxels if that is another one that exists."""
    data = path
    with suppress(VolumeError):
        if nifti.is_nifti(path):
            data = nifti.voxel_file(path)
        elif path.name.lower().endswith(EXTENSIONS):
            data = read_text_header(path).data
    return tuple(dict.fromkeys((path, data)))
