"""The published augmentation: imgaug in the axial plane, the same for all slices and masks of a volume."""

from collections.abc import Sequence

import numpy as np

try:
    import cv2
    import imgaug
    import imgaug.augmenters as iaa
    from imgaug.augmentables.segmaps import SegmentationMapsOnImage
except ImportError as error:
    raise ImportError(
        f"imgaug cannot be imported ({error}); if libGL is missing, pip installed the desktop build of OpenCV "
        "instead of the headless one: run scripts/environment.sh, or see the README"
    ) from error

NOISE = 0.005
"""Half-width of the uniform noise on intensities in [0, 1]."""

PROBABILITY = 0.2
"""Probability of each augmentation but the flip."""

SCALE = (1.0, 1.05)
ROTATION = (-5, 5)  # degrees
BLUR_SD = (0.0, 0.8)  # voxels
BLUR_KERNELS = ([1.0], [1.0], [1 / 8, 3 / 4, 1 / 8], [1 / 3, 1 / 3, 1 / 3])
JITTER = (0.0, 0.4)
"""Range of the elastic deformation's largest displacement along each axis, in voxels."""
INSET = (0.01, 0.03)
"""Range of the SD of the distances by which a perspective transform cuts each corner, as a share of the slice."""


_CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])  # x, y of a slice, as shares
_CENTRE = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # from an index to the voxel's centre, in voxels


def build_affine() -> iaa.Augmenter:
    """Build the published affine transform.

    Beyond its border, the image is continued with black, its edge, a mirror image or its other side, drawn anew for
    each sample. Masks are always continued with 0, so mirrored tissue carries no label.
    """
    return iaa.Affine(
        scale={"x": SCALE, "y": SCALE},
        translate_percent=None,
        translate_px=None,
        rotate=ROTATION,
        shear=None,
        order=[0, 1],
        cval=0,
        mode=imgaug.ALL,
        fit_output=False,
        backend="auto",
    )


def build_blur() -> iaa.Augmenter:
    """Build the published blur: by a Gaussian or by the mean over a square, of the width 0, 1, 2 or 3.

    A square of two voxels would move the image by half a voxel along each axis. It is replaced by a centred kernel of
    the same variance.
    """

    def draw_kernel(image: np.ndarray, channels: int, random_state: imgaug.random.RNG) -> np.ndarray:
        line = BLUR_KERNELS[random_state.integers(len(BLUR_KERNELS))]
        return np.outer(line, line)

    return iaa.OneOf([iaa.GaussianBlur(sigma=BLUR_SD), iaa.Convolve(draw_kernel)])


def build_elastic() -> iaa.Augmenter:
    """Build the published elastic deformation: a jitter of each pixel, interpolated by cubic convolution.

    Sigma is too small to smooth the jitter. Masks take the nearest voxel, which is always their own.
    """
    return iaa.ElasticTransformation(alpha=JITTER, sigma=0.0005, order=3, cval=0, mode="constant")


def build_perspective() -> iaa.Augmenter:
    """Build the published perspective transform, by one resampling.

    imgaug resizes its result back to the size of the slice, and rounds image and mask apart: masks land half a voxel
    beside their image. Here, the quadrilateral is mapped onto the whole slice at once.
    """
    return iaa.Lambda(func_images=_warp_images, func_segmentation_maps=_warp_maps)


def _draw_perspective(random_state: imgaug.random.RNG, height: int, width: int) -> np.ndarray:
    """Draw a matrix from indices (x, y, 1) of a slice to those of the warped slice."""
    size = np.array([width, height], np.float32)
    inset = np.abs(random_state.normal(0, random_state.uniform(*INSET), _CORNERS.shape))
    inside = np.abs(_CORNERS - inset).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(inside * size, _CORNERS.astype(np.float32) * size)
    return np.linalg.inv(_CENTRE) @ matrix @ _CENTRE


def _warp(channels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Resample (y, x, channels), float32, linearly."""
    height, width, count = channels.shape
    # OpenCV takes four channels at most.
    parts = (np.ascontiguousarray(channels[..., first : first + 4]) for first in range(0, count, 4))
    return np.concatenate(
        [cv2.warpPerspective(part, matrix, (width, height)).reshape(height, width, -1) for part in parts], axis=-1
    )


def _warp_images(images: list[np.ndarray], random_state: imgaug.random.RNG, *_: object) -> list[np.ndarray]:
    return [_warp(image, _draw_perspective(random_state, *image.shape[:2])) for image in images]


def _warp_maps(
    maps: list[SegmentationMapsOnImage], random_state: imgaug.random.RNG, *_: object
) -> list[SegmentationMapsOnImage]:
    """Resample each mask as its image, and cut at one half."""
    for labels in maps:
        matrix = _draw_perspective(random_state, *labels.arr.shape[:2])
        masks = [(labels.arr >> bit & 1).astype(np.float32) for bit in range(int(labels.arr.max()).bit_length())]
        labels.arr = sum(
            ((_warp(mask, matrix) > 0.5).astype(np.int32) << bit for bit, mask in enumerate(masks)),
            start=np.zeros_like(labels.arr),
        )
    return maps


def build_augmenter() -> iaa.Augmenter:
    """Build the published pipeline: a flip, and four augmentations with probability 0.2 each, in random order."""
    augmenters = (build_affine(), build_blur(), build_elastic(), build_perspective())
    sometimes = [iaa.Sometimes(p=PROBABILITY, then_list=augmenter) for augmenter in augmenters]
    return iaa.Sequential([iaa.Fliplr(p=0.5), *sometimes], random_order=True)


def augment(
    augmenter: iaa.Augmenter, rng: np.random.Generator, image: np.ndarray, *masks: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Augment a volume together with its masks.

    Noise is added first, and then transformed with the image, as published. The random state of the augmenter, of
    `build_augmenter`, is seeded from `rng`, so that the result depends on `rng` alone.

    Arrays are (z, y, x): the image float32 in [0, 1], at most seven masks of 0 and 1. Returned masks are uint8.
    """
    noisy = (image + rng.uniform(-NOISE, NOISE, image.shape)).astype(np.float32)
    # Some parameters draw from imgaug's global state, so seeding the augmenter alone is not enough.
    seed = int(rng.integers(2**31))
    imgaug.seed(seed)
    augmenter.seed_(seed)
    # Slices become channels, which are transformed alike; the masks become the bits of one label map.
    bits = np.zeros(image.shape, np.int32)
    for bit, mask in enumerate(masks):
        bits |= mask.astype(np.int32) << bit
    maps = SegmentationMapsOnImage(np.moveaxis(bits, 0, -1), shape=image.shape[1:])
    channels = np.ascontiguousarray(np.moveaxis(noisy, 0, -1))
    # As a list of one: imgaug warns of a single image with 32 channels or more.
    (augmented,), (maps,) = augmenter(images=[channels], segmentation_maps=[maps])
    labels = np.moveaxis(maps.arr, -1, 0)
    return (
        np.ascontiguousarray(np.clip(np.moveaxis(augmented, -1, 0), 0, 1)),
        *(np.ascontiguousarray(labels >> bit & 1).astype(np.uint8) for bit in range(len(masks))),
    )


def shift(offsets: Sequence[int], image: np.ndarray, *masks: np.ndarray) -> tuple[np.ndarray, ...]:
    """Move a volume and its masks, (z, y, x), by whole voxels along z, y, x, each shorter than the volume.

    The image is continued by its edge, masks by 0.
    """
    padding = [(max(n, 0), max(-n, 0)) for n in offsets]
    inside = tuple(slice(after, after + length) for (_, after), length in zip(padding, image.shape, strict=True))
    padded = (np.pad(image, padding, mode="edge"), *(np.pad(mask, padding) for mask in masks))
    return tuple(np.ascontiguousarray(array[inside]) for array in padded)
