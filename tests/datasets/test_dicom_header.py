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
META = ("MediaStorageSOPClassUID", "TransferSyntaxUID")


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """A slice as scanners write it, by name of what it holds."""
    folder = write_dicom(tmp_path_factory.mktemp("dicom") / "a", np.zeros((2, 7, 8), np.int16), PatientName="Doe^J")
    return {name: changed(pydicom.dcmread(min(folder.iterdir())), change) for name, change in KINDS.items()}


def changed(data, change):
    change(data)
    return data


def sequence(undefined):
    def change(data):
        inner = pydicom.Dataset()
        inner.PatientID, inner.PixelData = "another", bytes(8)
        inner["PixelData"].VR = "OW"
        item, empty = pydicom.Dataset(), pydicom.Dataset()
        item.SeriesInstanceUID, item.IconImageSequence = "1.2.3", [inner, empty]
        data.ReferencedImageSequence = data.RequestAttributesSequence = [item, item]
        data.ProcedureCodeSequence = []
        for one in (data["ReferencedImageSequence"], data["ProcedureCodeSequence"], item["IconImageSequence"]):
            one.is_undefined_length = undefined
        for one in (item, empty):
            one.is_undefined_length_sequence_item = undefined

    return change


def private(data):
    block = data.private_block(0x0029, "A VENDOR", create=True)
    nested = pydicom.Dataset()
    nested.Rows = 1
    for number, (vr, value) in enumerate(
        (("OB", bytes(200_000)), ("UN", b"\x01\x02"), ("LO", "text"), ("SQ", [nested]), ("UT", "long"), ("FD", 1.5))
    ):
        block.add_new(number, vr, value)
    data[block.get_tag(3)].is_undefined_length = True


def text(charset, name):
    def change(data):
        data.SpecificCharacterSet, data.PatientName, data.SeriesDescription = charset, name, "  Lunge  "

    return change


def padded(signed, value):
    def change(data):
        data.PixelRepresentation = signed
        data.add_new("PixelPaddingValue", "SS" if signed else "US", value)

    return change


def empty(data):
    for name in ("PatientName", "SeriesNumber", "SliceThickness", "ImageType", "AcquisitionTime", "InstanceNumber"):
        setattr(data, name, None)


def several(data):
    data.ImageType, data.ConvolutionKernel = ["ORIGINAL", "PRIMARY", "AXIAL"], ["Br40d", "3"]
    data.AcquisitionDateTime, data.SeriesNumber = "20200102101112.5+0100", "7"


KINDS = {
    "plain": lambda data: None,
    "sequences": sequence(False),
    "sequences of undefined length": sequence(True),
    "private": private,
    "Latin": text("ISO_IR 100", "Müller^Jörg"),
    "UTF-8": text("ISO_IR 192", "Wang^XiaoDong=王^小東"),
    "Japanese": text(["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    "signed padding": padded(1, -2000),
    "unsigned padding": padded(0, 63536),
    "empty": empty,
    "several values": several,
}


def encoded(data, syntax):
    """A file as bytes."""
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    if syntax == RLELossless:
        data.compress(RLELossless)
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        pydicom.dcmwrite(file, data, implicit_vr=implicit, little_endian=little, force_encoding=True)
    return file.getvalue()


def read(content):
    """What is read of a file, and whether without pydicom."""
    with pytest.MonkeyPatch.context() as patch:
        read_by_pydicom, left = pydicom.dcmread, []
        patch.setattr(pydicom, "dcmread", lambda *a, **k: left.append(1) or read_by_pydicom(*a, **k))
        return read_elements(io.BytesIO(content)), not left


def compared(content):
    """Whether a file was walked; its values are then those of pydicom."""
    with warnings.catch_warnings(action="ignore"):
        try:
            (header, meta, has_pixels), walked = read(content)
        except Exception:  # pydicom's
            return False
        if not walked:
            return False
        file = io.BytesIO(content)
        theirs = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(NAMES), force=True)
        assert has_pixels
        assert file.read(4) == b"\xe0\x7f\x10\x00"
        for name in NAMES:
            assert (name in header) == (name in theirs)
            ours, other = header.get(name), theirs.get(name)
            assert type(ours) is type(other)
            assert repr(ours) == repr(other)
        for name in META:
            assert meta.get(name) == theirs.file_meta.get(name)
    return True


@pytest.mark.fault("any of it at random")
@pytest.mark.parametrize("syntax", USUAL, ids=lambda uid: uid.name)
@pytest.mark.parametrize("kind", KINDS)
def test_usual_files_are_walked_and_have_pydicoms_values(slices, kind, syntax):
    assert compared(encoded(pydicom.dcmread(io.BytesIO(encoded(slices[kind], ExplicitVRLittleEndian))), syntax))


def test_other_files_are_left_to_pydicom(slices, tmp_path):
    plain = slices["plain"]
    for syntax in (ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
        data = pydicom.dcmread(io.BytesIO(encoded(plain, ExplicitVRLittleEndian)))
        if syntax == ExplicitVRBigEndian:
            data["PixelData"].VR = "OW"
        content = encoded(data, syntax)
        assert not compared(content)
        header, _, _ = read_elements(io.BytesIO(content))
        assert header.get("SeriesInstanceUID") == plain.SeriesInstanceUID
    content = encoded(plain, ExplicitVRLittleEndian)
    assert compared(content)
    data = pydicom.dcmread(io.BytesIO(content))
    with warnings.catch_warnings(action="ignore"):
        data.SeriesDescription = "long" * 2000
    assert not compared(encoded(data, ExplicitVRLittleEndian))
    start = content.index(b"\x08\x00\x16\x00UI")  # of the data set
    for other in (
        content[132:],  # no preamble
        content[start:],  # no meta header
        content[: content.index(b"\xe0\x7f\x10\x00") + 6],  # no pixels
        content.replace(b"\x20\x00\x13\x00IS", b"\x20\x00\x13\x00??"),  # no value representation
        content.replace(b"\x28\x00\x53\x10DS\x04\x001.0 ", b"\x28\x00\x53\x10SQ\0\0\0\0\0\0"),  # a sequence
        content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"),  # another transfer syntax
        content[:140] + b"\xff" + content[141:],  # another length of the meta header
    ):
        assert not compared(other)
    stored = np.zeros((4, 7, 8), np.int16)
    write_enhanced(write_dicom(tmp_path / "plain", stored), tmp_path / "all.dcm", stored, [0, 1, 2, 3])
    assert not compared((tmp_path / "all.dcm").read_bytes())


def disturbed(content, rng):
    """A file whose header was changed at random: bits, lengths, delimiters."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        place = rng.randrange(132, min(len(data), 3000))
        what = rng.choice(["bit", "byte", "word", "insert"])
        if what == "bit":
            data[place] ^= 1 << rng.randrange(8)
        elif what == "byte":
            data[place] = rng.randrange(256)
        elif what == "word":
            words = ["ffffffff", "00000000", "feff00e0", "feff0de0", "feffdde0", "53510000", "08001800", "e07f1000"]
            data[place : place + 4] = bytes.fromhex(rng.choice(words))
        else:
            data[place:place] = rng.randbytes(rng.choice([1, 2, 4, 8]))
    return bytes(data)


@pytest.mark.fault("any of it at random")
@pytest.mark.parametrize("syntax", USUAL, ids=lambda uid: uid.name)
def test_mutants_have_pydicoms_values_or_are_left_to_it(slices, syntax):
    rng = random.Random(0)
    again = [pydicom.dcmread(io.BytesIO(encoded(one, ExplicitVRLittleEndian))) for one in slices.values()]
    contents = [encoded(data, syntax) for data in again]
    contents = [content for content in contents if len(content) < 10_000]
    walked = sum(compared(rng.choice([disturbed, mutate_text])(rng.choice(contents), rng)) for _ in range(1000))
    assert walked > 100
