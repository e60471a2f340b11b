"""One CT, as a file or as a DICOM series."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datasets.io.dicom_series import Series
from datasets.io.parts import files_of


@dataclass(frozen=True)
class Scan:
    """A CT that was found.

    Attributes:
        id: names all results of it.
        path: the file, or the deepest folder that holds all slices.
        series: the slices; None for a volume file.
        reason: why this series of its study was taken.
        problem: why it cannot be read; one line that names the file.
        notes: what was passed over in it.
    """

    id: str
    path: Path
    series: Series | None = None
    reason: str = ""
    problem: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_dicom(self) -> bool:
        """Whether the scan is a DICOM series."""
        return self.series is not None or self.path.is_dir()

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the scan."""
        return files_of(self.path) if self.series is None else self.series.files

    def __str__(self) -> str:
        return str(self.path)
