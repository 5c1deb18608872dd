"""Stream a base and a tuned checkpoint, tensor by tensor, into a `Comparison`."""

from trimtab.compare.engine import compare
from trimtab.compare.precision import PrecisionProbe
from trimtab.compare.result import Comparison

__all__ = ["Comparison", "PrecisionProbe", "compare"]
