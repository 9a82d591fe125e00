"""torchvision in name only: a text model has no pictures (and torchvision's builds want a CUDA torch)."""

from names_only import stand_in

__version__ = "0.28.0"

stand_in("torchvision")
