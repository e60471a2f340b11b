"""The three networks of GASNet, their losses and objectives.

The segmenter S finds the lesions, the generator G replaces them by healthy lung, and the discriminator D classifies the
result as healthy or not.
"""

from models.discriminator import Discriminator
from models.generator import Generator
from models.published import load_published
from models.segmenter import Segmenter

__all__ = ["Discriminator", "Generator", "Segmenter", "load_published"]
