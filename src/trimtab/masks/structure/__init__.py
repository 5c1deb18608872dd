"""Where in a network a mask lives: heads, neurons, channels, rows and columns, against chance."""

from trimtab.masks.structure.engine import structure
from trimtab.masks.structure.result import Structure

__all__ = ["Structure", "structure"]
