"""Synthetic raw chest CTs in HU, healthy or with COVID-19-like lesions, with exact lung and lesion masks.

No public COVID-19 CT can be distributed with the code, so tests, examples and timing use these phantoms. They are
schematic: they show that the path from a raw scan to a mask works and that training learns, not how accurate a method
is on patients.

Everything is built from implicit functions, trees of tapering tubes (vessels, bronchi) and correlated random fields
(texture, lesion borders, noise), on coordinates that are rotated and gently warped.
"""

from typing import Any

__all__ = ["make_phantom", "write_phantoms"]


def __getattr__(name: str) -> Any:
    """Import what `__all__` names when it is asked for: ``python -m datasets.phantom --help`` needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from datasets.phantom import make

    return getattr(make, name)
