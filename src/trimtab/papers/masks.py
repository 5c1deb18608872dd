"""The masks that cells train: what another cell changed, and others to set it against."""

from __future__ import annotations

from trimtab import Mask
from trimtab.masks.selection.quotas import random_matched
from trimtab.papers.cells import Cell
from trimtab.papers.measuring import Measuring

__all__ = ["make_mask"]


def make_mask(cell: Cell, measuring: Measuring) -> None:
    """Make the mask that a cell trains, if its arm has one and it is not there.

    All but the complement have as many elements of each tensor as what the other cell changed.
    What is drawn is drawn under the seed of the cell.

    Args:
        cell: The cell; the one that its mask is made of is finished.
        measuring: Runs commands of trimtab.
    """
    if cell.arm.mask is None or cell.mask.exists():
        return
    (source,) = (other for other in cell.needs() if other.arm.name == cell.arm.of)
    if cell.arm.mask == "low-magnitude":
        make = ("mask", "make", cell.arm.mask, "--base", str(cell.base))
        measuring.run([*make, "--like", str(source.changed), "-o", str(cell.mask)], cell)
        return
    changed = Mask.load(source.changed)
    match cell.arm.mask:
        case "own":
            mask = changed
        case "random":
            mask = changed.random_like(cell.seed)
        case "complement":
            mask = changed.complement()
        case "matched":
            mask = random_matched(changed, cell.base, cell.seed)
    mask.save(cell.mask)
