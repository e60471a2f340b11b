"""One CT, as a file or as a DICOM series."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from datasets.dicom import read_hu
from datasets.formats import files_of
from datasets.geometry import blank, check_geometry, located
from datasets.series import Series
from datasets.volumes import DEFAULT, Reading, read_geometry, read_volume
from utils.errors import VolumeError


@dataclass(frozen=True)
class Scan:
    """A CT that was found."""

    id: str  # names all results of it
    path: Path  # the file, or the deepest folder that holds all slices
    series: Series | None = None  # the slices; None for a volume file
    reason: str = ""  # why this series of its study was taken
    problem: str | None = None  # why it cannot be read; one line that names the file
    notes: tuple[str, ...] = ()  # what was concluded about it, and what was passed over in it
    image: sitk.Image | None = None  # the voxels of a scan that is no file

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_dicom(self) -> bool:
        """Whether the scan is a DICOM series."""
        return self.series is not None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the scan."""
        return files_of(self.path) if self.series is None else self.series.files

    def complete_series(self, reading: Reading = DEFAULT) -> Series | None:
        """The DICOM series; None for a volume file.

        Raises:
            VolumeError: the series is not complete, or larger than `reading` permits.
        """
        if self.problem is not None:
            raise VolumeError(self.problem)
        if self.series is not None:
            check_geometry(self, *self.series.geometry, reading.max_voxels)
        return self.series

    def geometry(self, reading: Reading = DEFAULT) -> sitk.Image:
        """The geometry of the scan as an image of zeros (uint8), from its headers alone; errors as for `read`."""
        series = self.complete_series(reading)
        return read_geometry(self.path, reading) if series is None else blank(*series.geometry)

    def read(self, reading: Reading = DEFAULT) -> sitk.Image:
        """Read the scan: the values of a file, or a DICOM series in HU (int16 if that holds them).

        Raises:
            VolumeError: as `datasets.volumes.read_volume`, or the DICOM series is not complete.
        """
        series = self.complete_series(reading)
        if self.image is not None:
            return self.image
        if series is None:
            return read_volume(self.path, reading)
        return located(read_hu(series.slices), *series.geometry[1:])
