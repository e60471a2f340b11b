"""Headers are walked as pydicom reads them: equal values for every file, or pydicom reads it."""

import io
import random
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from datasets.dicom_header import NAMES, read_elements
from tests.fuzz_volumes import mutate_text
from tests.volumes import write_dicom, write_enhanced

USUAL = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless)


def sequences(undefined):
    inner, item, empty = (pydicom.Dataset() for _ in range(3))
    inner.PatientID, item.SeriesInstanceUID, item.IconImageSequence = "another", "1.2.3", [inner, empty]
    item["IconImageSequence"].is_undefined_length = undefined
    item.is_undefined_length_sequence_item = empty.is_undefined_length_sequence_item = undefined
    data = pydicom.Dataset()
    data.ReferencedImageSequence, data.ProcedureCodeSequence = [item, item], []
    for one in data:
        one.is_undefined_length = undefined
    block = data.private_block(0x0029, "A VENDOR", create=True)
    for number, (vr, value) in enumerate((("OB", bytes(70_000)), ("UN", b"\1\2"), ("LO", "text"), ("SQ", [inner]))):
        block.add_new(number, vr, value)
    return data


def tags(padding=None, **values):
    data = pydicom.Dataset()
    for name, value in values.items():
        setattr(data, name, value)
    if padding is not None:
        data.add_new("PixelPaddingValue", "SS" if data.PixelRepresentation else "US", padding)
    return data


KINDS = {
    "plain": tags(),
    "sequences": sequences(False),
    "sequences of undefined length": sequences(True),
    "Latin": tags(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg", SeriesDescription="  Lunge  "),
    "UTF-8": tags(SpecificCharacterSet="ISO_IR 192", PatientName="Wang^XiaoDong=王^小東"),
    "Japanese": tags(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎"),
    "signed padding": tags(PixelRepresentation=1, padding=-2000),
    "unsigned padding": tags(PixelRepresentation=0, padding=63536),
    "empty": tags(**dict.fromkeys(("PatientName", "SeriesNumber", "SliceThickness", "ImageType", "AcquisitionTime"))),
    "several values": tags(
        ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], ConvolutionKernel=["Br40d", "3"], SeriesNumber="7",
        AcquisitionDateTime="20200102101112.5+0100",
    ),
}  # fmt: skip
"""What a slice holds besides the usual."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = write_dicom(tmp_path_factory.mktemp("dicom") / "a", np.zeros((2, 7, 8), np.int16), PatientName="Doe^J")
    return min(folder.iterdir()).read_bytes()


def encoded(plain, kind, syntax):
    data = pydicom.dcmread(io.BytesIO(plain))
    data.update(KINDS[kind])
    if syntax == RLELossless:
        data.compress(RLELossless)
    data.file_meta.TransferSyntaxUID = syntax
    data["PixelData"].VR = "OW"
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        pydicom.dcmwrite(file, data, implicit_vr=implicit, little_endian=little, force_encoding=True)
    return file.getvalue()


def compared(content):
    """Whether a file was walked; its values are then those of pydicom."""
    with warnings.catch_warnings(action="ignore"):
        try:
            header = read_elements(io.BytesIO(content))
        except Exception:  # pydicom's
            return False
        start, length = header.get("PixelData", (0, 0))
        if not length:
            return False
        file = io.BytesIO(content)
        theirs = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=NAMES, force=True)
        place = file.tell()
        assert file.read(4) == b"\xe0\x7f\x10\x00"
        assert start - place in (8, 12)
        assert length in [int.from_bytes(content[start - size : start], "little") for size in (4, 2)]
        for name in NAMES:
            assert (name in header) == (name in theirs)
            assert type(header.get(name)) is type(theirs.get(name))
            assert repr(header.get(name)) == repr(theirs.get(name))
        for name in ("MediaStorageSOPClassUID", "TransferSyntaxUID"):
            assert header.get(name) == theirs.file_meta.get(name)
    return True


@pytest.mark.fault("any of it at random")
@pytest.mark.parametrize("kind", KINDS)
def test_usual_files_are_walked_and_have_pydicoms_values(plain, kind):
    assert all(compared(encoded(plain, kind, syntax)) for syntax in USUAL)


def test_other_files_are_left_to_pydicom(plain, tmp_path):
    assert compared(plain)
    for syntax in (ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
        content = encoded(plain, "plain", syntax)
        assert not compared(content)
        header = read_elements(io.BytesIO(content))
        assert header.get("SeriesInstanceUID") == pydicom.dcmread(io.BytesIO(plain)).SeriesInstanceUID
    for other in (
        plain[132:],  # no preamble
        plain[plain.index(b"\x08\x00\x16\x00UI") :],  # no meta header
        plain[: plain.index(b"\xe0\x7f\x10\x00")],  # no pixels
        plain.replace(b"\x28\x00\x53\x10DS\x04\x001.0 ", b"\x28\x00\x53\x10SQ\0\0\0\0\0\0"),  # a sequence
        plain.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"),  # another transfer syntax
    ):
        assert not compared(other)
    stored = np.zeros((4, 7, 8), np.int16)
    write_enhanced(write_dicom(tmp_path / "plain", stored), tmp_path / "all.dcm", stored, [0, 1, 2, 3])
    assert not compared((tmp_path / "all.dcm").read_bytes())


def disturbed(content, rng):
    """A file in whose header a word was replaced by a delimiter or a length."""
    place = rng.randrange(132, min(len(content), 3000))
    words = ["ffffffff", "00000000", "feff00e0", "feff0de0", "feffdde0", "53510000", "08001800", "e07f1000"]
    return content[:place] + bytes.fromhex(rng.choice(words)) + content[place + 4 :]


@pytest.mark.fault("any of it at random")
def test_mutants_have_pydicoms_values_or_are_left_to_it(plain):
    rng = random.Random(0)
    contents = [
        encoded(plain, kind, syntax) for kind in KINDS for syntax in USUAL if "seq" not in kind or rng.random() < 0.3
    ]
    walked = sum(compared(rng.choice([disturbed, mutate_text])(rng.choice(contents), rng)) for _ in range(1500))
    assert walked > 150
