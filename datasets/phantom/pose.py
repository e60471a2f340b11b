"""Where a scan's voxels lie in the body: one pose gives frames on any grid, such as the crop around the lungs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.phantom.anatomy import Anatomy
from datasets.phantom.body import cavity_distance, height_above_diaphragm, mediastinum_distance
from datasets.phantom.fields import spline_field, spline_weights
from datasets.phantom.frame import WARP_KNOT, WARP_SD, Frame

Array = np.ndarray

_COARSE = 4.0
"""Grid in mm on which the lungs' box is found."""


@dataclass(frozen=True)
class Pose:
    """Position, rotation and warp of a body in the scanner.

    Attributes:
        extent: field of view, (x, y, z) in mm.
        centre: scan position of the anatomical origin, (x, y, z) in mm.
        rotation: (2, 2), from the scan to the anatomical frame in the axial plane.
        warp: spline coefficients of the warp along x, y and z, each (knots z, knots y, knots x).
    """

    extent: Array
    centre: Array
    rotation: Array
    warp: Array

    def frame(self, start: Array, spacing: Array, size: tuple[int, int, int]) -> Frame:
        """Anatomical coordinates of a grid.

        Args:
            start: scan position of the first voxel, (x, y, z) in mm.
            spacing: voxel size, (x, y, z) in mm.
            size: (z, y, x).
        """
        places = [a + np.arange(n) * s for a, n, s in zip(start[::-1], size, spacing[::-1], strict=True)]
        weights = [
            spline_weights(np.clip(place / WARP_KNOT, 0, knots - 3) + 1, knots)
            for place, knots in zip(places, self.warp.shape[1:], strict=True)
        ]
        axes = [(place - c).astype(np.float32) for place, c in zip(places, self.centre[::-1], strict=True)]
        z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
        turn = self.rotation.astype(np.float32)
        turned = (turn[0, 0] * x + turn[0, 1] * y, turn[1, 0] * x + turn[1, 1] * y, z)
        warped = [
            (axis + WARP_SD * spline_field(knots, weights)).astype(np.float32)
            for axis, knots in zip(turned, self.warp, strict=True)
        ]
        pitch = 0.8 * float(np.sqrt(spacing[0] * spacing[1]))  # voxels are long along z
        return Frame(tuple(float(s) for s in spacing), *warped, self.centre - start, self.rotation, pitch)

    def crop_frame(self, body: Anatomy, size: tuple[int, int, int]) -> Frame:
        """The frame of a crop of ``size`` (z, y, x) around the lungs; its outer voxel centres lie on the lungs' box."""
        spacing = np.full(3, _COARSE)
        coarse = self.frame(np.zeros(3), spacing, tuple(int(n) for n in np.ceil(self.extent[::-1] / _COARSE)))
        lung = np.maximum(cavity_distance(body, coarse) + 2.5, -0.75 * height_above_diaphragm(body, coarse))
        inside = np.maximum(lung, -mediastinum_distance(body, coarse)) < 0
        filled = [np.flatnonzero(inside.any(tuple({0, 1, 2} - {axis}))) for axis in (2, 1, 0)]
        start = np.array([indices[0] for indices in filled]) * _COARSE
        stop = np.array([indices[-1] for indices in filled]) * _COARSE
        return self.frame(start, (stop - start) / (np.array(size[::-1]) - 1), size)


def draw_pose(rng: np.random.Generator, body: Anatomy) -> Pose:
    """Draw field of view, position, rotation and warp; the distributions are those of `draw_frame`."""
    view = float(np.clip(2 * (body.half_width + body.wall) + rng.uniform(-10, 30), 300, 380))
    cover = float(np.clip((body.height + 70) * rng.uniform(1.0, 1.18), 240, 320))
    middle = 0.5 * (body.height - 68) + rng.uniform(-6, 6)
    centre = np.array([view / 2 + rng.uniform(-8, 8), view / 2 + rng.uniform(-22, -2), cover / 2 - middle])
    angle = np.deg2rad(rng.normal(0, 2.5))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    extent = np.array([view, view, cover])
    knots = tuple(int(n) for n in np.ceil(extent[::-1] / WARP_KNOT) + 3)
    return Pose(extent, centre, rotation, rng.standard_normal((3, *knots), dtype=np.float32))
