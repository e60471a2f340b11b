"""The published augmentation: imgaug in the axial plane, the same for all slices and masks of a volume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

try:
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
BLUR_WIDTH = (0, 3)  # voxels
INSET = (0.01, 0.03)
"""Range of the SD of the distances by which a perspective transform cuts each corner, as a share of the slice."""


def build_affine() -> iaa.Augmenter:
    """Build the published affine transform.

    Beyond its border, the image is continued with black, its edge, a mirror image or its other side, drawn anew for
    each sample. Masks are always continued with 0, so mirrored tissue carries no label.
    """
    return iaa.Affine(scale={"x": SCALE, "y": SCALE}, rotate=ROTATION, order=[0, 1], mode=imgaug.ALL)


def build_augmenter() -> iaa.Augmenter:
    """Build the published pipeline: a flip, and four augmentations with probability 0.2 each, in random order.

    The elastic one moves voxels by at most 0.4 and takes the nearest: it changes nothing.
    """
    blur = iaa.OneOf([iaa.GaussianBlur(sigma=BLUR_SD), iaa.AverageBlur(k=BLUR_WIDTH)])
    elastic = iaa.ElasticTransformation(alpha=(0.0, 0.4), sigma=0.0005)
    perspective = iaa.PerspectiveTransform(scale=INSET)
    sometimes = [iaa.Sometimes(PROBABILITY, augmenter) for augmenter in (build_affine(), blur, elastic, perspective)]
    return iaa.Sequential([iaa.Fliplr(0.5), *sometimes], random_order=True)


def augment(
    augmenter: iaa.Augmenter, rng: np.random.Generator, image: np.ndarray, *masks: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Augment a volume together with its masks.

    Noise is added first, and then transformed with the image, as published.

    Args:
        augmenter: the pipeline of `build_augmenter`. Its random state is seeded from `rng`, so that the result depends
            on `rng` alone.
        rng: source of all randomness.
        image: (z, y, x), float32 in [0, 1].
        masks: (z, y, x), 0 or 1; at most seven.

    Returns:
        The image, float32 in [0, 1], and the masks, uint8.
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
    """Move a volume and its masks by whole voxels.

    Args:
        offsets: voxels along z, y, x, each shorter than the volume.
        image: (z, y, x); continued by its edge.
        masks: (z, y, x); continued by 0.

    Returns:
        Image and masks, of the same shape.
    """
    padding = [(max(n, 0), max(-n, 0)) for n in offsets]
    inside = tuple(slice(after, after + length) for (_, after), length in zip(padding, image.shape, strict=True))
    padded = (np.pad(image, padding, mode="edge"), *(np.pad(mask, padding) for mask in masks))
    return tuple(np.ascontiguousarray(array[inside]) for array in padded)
