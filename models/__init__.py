"""The three networks of GASNet, their losses, and how they are joined.

S, the segmenter, finds the lesions; G, the generator, paints healthy lung in their place; D, the
discriminator, judges whether the result passes for a healthy volume.
"""

from models.discriminator import Discriminator
from models.generator import Generator
from models.published import load_published
from models.segmenter import Segmenter

__all__ = ["Discriminator", "Generator", "Segmenter", "load_published"]
