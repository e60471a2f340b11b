"""Small volumes with a given geometry, written with libraries of their own: SimpleITK, nibabel and pydicom."""

import itertools

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from datasets.crop import crop_image, resize
from utils.errors import VolumeError

SPACING = (0.7, 0.8, 2.5)
ORIGIN = (-12.3, 45.6, 789.1)


def image_of(array, spacing=SPACING, origin=ORIGIN, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection([float(value) for value in np.ravel(direction)])
    return image


def write(path, array, compress=True, **geometry):
    """Write an array, or an image, with SimpleITK itself; compressed where the type can be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, sitk.Image) else image_of(array, **geometry)
    sitk.WriteImage(image, str(path), useCompression=compress and not path.name.endswith((".nii", ".mhd")))
    return path


def touched(folder, *names):
    """Empty files in a folder, which is returned; folders between are made."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def pixels(path_or_image):
    """The (z, y, x) array of an image or a file."""
    image = path_or_image if isinstance(path_or_image, sitk.Image) else sitk.ReadImage(str(path_or_image))
    return sitk.GetArrayFromImage(image)


def geometry(path_or_image):
    """Size, spacing, origin and direction, for comparisons to the last bit."""
    image = path_or_image if isinstance(path_or_image, sitk.Image) else sitk.ReadImage(str(path_or_image))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def crop_to_box(image, box, size, order):
    """The part of an upright image inside a box, resized, as `LungMaskCrop` does it."""
    return crop_image(resize(pixels(image)[box], size, order), image, box)


def dice(a, b):
    a, b = np.asarray(a) > 0, np.asarray(b) > 0
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def rotation(x, y, z):
    c, s = np.cos, np.sin
    about_x = np.array([[1, 0, 0], [0, c(x), -s(x)], [0, s(x), c(x)]])
    about_y = np.array([[c(y), 0, s(y)], [0, 1, 0], [-s(y), 0, c(y)]])
    about_z = np.array([[c(z), -s(z), 0], [s(z), c(z), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def orientations():
    """The 48 directions of scans along the axes, half of them left-handed."""
    for axes in itertools.permutations(np.eye(3)):
        for signs in itertools.product((1, -1), repeat=3):
            yield np.array(axes) * signs


def write_dicom(
    folder,
    stored,
    slope=1.0,
    intercept=-1024.0,
    spacing=SPACING,
    origin=ORIGIN,
    direction=(1, 0, 0, 0, 1, 0, 0, 0, 1),
    shift=(0, 0, 0),
    name="slice",
    **tags,
):
    """Write a CT series, one file a slice, named so that the names do not follow the positions.

    `stored` are the values (z, y, x) before slope and intercept (None leaves both out); `shift` is a gantry tilt, in mm
    from slice to slice; `name` begins the names of the files; `tags` are more DICOM tags of all slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    axes = np.reshape(direction, (3, 3)).T.astype(float)
    for k, values in enumerate(stored):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = pydicom.Dataset()
        data.file_meta = meta
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = series, study, frame
        data.Modality, data.PatientID, data.InstanceNumber = "CT", "phantom", k + 1
        position = np.array(origin) + k * (axes[2] * spacing[2] + np.array(shift))
        data.ImagePositionPatient = [round(float(value), 6) for value in position]
        data.ImageOrientationPatient = [round(float(value), 9) for value in axes[:2].ravel()]
        data.PixelSpacing, data.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        data.Rows, data.Columns = values.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        if intercept is not None:
            data.RescaleSlope, data.RescaleIntercept = slope, intercept
        data.PixelData = np.ascontiguousarray(values, np.int16).tobytes()
        for tag, value in tags.items():
            setattr(data, tag, value)
        data.save_as(folder / f"{name}{len(stored) - k:03d}.dcm", enforce_file_format=True)
    return folder


def refused(path, call, match, error=VolumeError):
    """`call` raises an error of one line that names the file and matches."""
    with pytest.raises(error, match=match) as caught:
        call()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def changed_slice(path, to=None, **tags):
    """Write a DICOM slice, or those of a folder, again, or to another path, with other tags; None removes one."""
    if path.is_dir():
        for slice_path in path.iterdir():
            changed_slice(slice_path, **tags)
        return
    data = pydicom.dcmread(path)
    for tag, value in tags.items():
        if value is None:
            delattr(data, tag)
        else:
            setattr(data, tag, value)
    data.save_as(to or path)


def edited(folder, change):
    """Change the headers of a folder's slices in the order of their names by `change(number, data)`."""
    for number, path in enumerate(sorted(folder.iterdir())):
        data = pydicom.dcmread(path)
        change(number, data)
        data.save_as(path)
    return folder


def write_enhanced(folder, path, stored, order, slope=2.0, intercept=-1000.0):
    """Write a series of `write_dicom` as one enhanced CT; `order` has the index of the slice of each frame."""
    sources = sorted((pydicom.dcmread(file) for file in folder.iterdir()), key=lambda s: s.ImagePositionPatient[2])
    first = sources[0]
    data = pydicom.Dataset()
    data.file_meta = first.file_meta
    for element in first:
        if element.keyword not in ("PixelData", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            data[element.tag] = element
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]

    def group(**tags):
        item = pydicom.Dataset()
        for tag, value in tags.items():
            setattr(item, tag, value)
        return [item]

    data.SharedFunctionalGroupsSequence = group(
        PlaneOrientationSequence=group(ImageOrientationPatient=first.ImageOrientationPatient),
        PixelMeasuresSequence=group(PixelSpacing=first.PixelSpacing, SliceThickness=2.5),
        PixelValueTransformationSequence=group(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU"),
    )
    data.PerFrameFunctionalGroupsSequence = [
        group(
            PlanePositionSequence=group(ImagePositionPatient=sources[k].ImagePositionPatient),
            FrameContentSequence=group(DimensionIndexValues=[number + 1]),
        )[0]
        for number, k in enumerate(order)
    ]
    data.NumberOfFrames, data.PixelData = len(order), stored[order].tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
