"""The intensity window: HU to the values 0..255 of a crop, and back."""

import numpy as np

from datasets import WINDOW


def map_window(hu: np.ndarray, window: tuple[float, float] = WINDOW) -> np.ndarray:
    """Clip HU to the window and map them to 0..255, float32."""
    low, high = window
    return ((np.clip(hu, low, high) - low) * (255.0 / (high - low))).astype(np.float32)


def unmap_window(values: np.ndarray, window: tuple[float, float] = WINDOW) -> np.ndarray:
    """Map values of 0..255 back to HU, float32; HU outside the window were lost to its ends."""
    low, high = window
    return (low + values.astype(np.float32, copy=False) * ((high - low) / 255.0)).astype(np.float32)
