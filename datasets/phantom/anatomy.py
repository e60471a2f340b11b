"""The measures of one synthetic body."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray

BLOOD_PLAIN, BLOOD_CONTRAST = 42.0, 230.0
"""HU of blood without and with contrast agent."""


@dataclass(frozen=True)
class Anatomy:
    """Measures of one body, in mm and HU."""

    height: float  # lungs, from the right diaphragm dome to the apex
    half_width: float  # chest cavity
    half_depth: float
    wall: float  # skin to cavity at the side
    fat: float  # subcutaneous
    heart: float  # relative size
    left_drop: float  # left diaphragm dome below the right one
    breast: float  # thickness; 0 for a flat chest
    pitch: float  # distance of ribs and of vertebrae
    blood: float  # HU
    parenchyma: float  # HU of aerated lung at mid-height without vessels
    gravity: float  # HU difference between back and front of the lung

    def profile(self, z: Array) -> tuple[Array, Array, Array]:
        """Half-width, half-depth and centre y of the chest cavity at height ``z``, in mm."""
        t = np.clip(z / self.height, -0.6, 1.0)
        up = np.maximum(t, 0)
        width = self.half_width * (1 - 0.08 * up - 0.26 * up**4 - 0.10 * np.minimum(t, 0) ** 2)
        depth = self.half_depth * (1 - 0.06 * up - 0.36 * up**3)
        return width, depth, 26 * up**2 - 4

    def spine_y(self, z: Array) -> Array:
        """The y of the vertebral bodies' centre at height ``z``, in mm."""
        _, depth, centre = self.profile(z)
        return centre + depth - 20


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw the measures of one body."""
    half_width = rng.uniform(122, 144)
    return Anatomy(
        height=rng.uniform(168, 218),
        half_width=half_width,
        half_depth=half_width * rng.uniform(0.64, 0.76),
        wall=rng.uniform(22, 40),
        fat=rng.uniform(6, 20),
        heart=rng.uniform(0.9, 1.1),
        left_drop=rng.uniform(4, 18),
        breast=rng.uniform(30, 48) if rng.random() < 0.4 else 0.0,
        pitch=rng.uniform(24, 29),
        blood=BLOOD_CONTRAST * rng.uniform(0.7, 1.3) if rng.random() < 0.25 else BLOOD_PLAIN,
        parenchyma=rng.uniform(-815, -745),
        gravity=rng.uniform(70, 130),
    )
