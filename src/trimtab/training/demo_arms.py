"""The arms of the demo and the masks that some of them train.

`grpo` and `sft` differ in nothing but the algorithm. `grpo-mask` is `grpo` again, with the same
questions in the same order and the same seed, but trains only what `grpo` changed. Its controls say
what that figure is worth: as many weights at random places, as many of each size at random places,
all the other weights, and every weight under another seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trimtab.errors import MaskError, SettingsError
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.masks.selection.quotas import random_matched
from trimtab.training.recipe import Recipe

__all__ = ["ARMS", "FULL", "DemoArm", "demo_arms", "demo_masks", "mask_file"]

FULL = "grpo"
"""The arm whose changes are the mask."""

ARMS = (FULL, "sft", "grpo-mask")
"""What the demo trains by default, in order."""

CRITERION = "bits"
"""What counts as changed, in the saved bf16 weights."""


@dataclass(frozen=True)
class DemoArm:
    """What an arm trains.

    Attributes:
        name: Of the arm, and of its folder.
        algorithm: `grpo` or `sft`.
        recipe: Its settings.
        mask: Which mask it trains only, a key of what `demo_masks` makes; None for every weight.
    """

    name: str
    algorithm: str
    recipe: Recipe
    mask: str | None = None


def demo_arms(
    recipe: Recipe, names: Sequence[str] = ARMS, *, controls: bool = False
) -> list[DemoArm]:
    """The arms to train, those of every weight first.

    Args:
        recipe: The settings of the demo.
        names: Which of `ARMS`; what the mask needs must be among them.
        controls: Add the controls of the mask.

    Raises:
        SettingsError: An unknown name, none at all, or a mask of an arm that is left out.
    """
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        raise SettingsError(f"arms are {list(names)}, expected some of {list(ARMS)}")
    if FULL not in names and (controls or "grpo-mask" in names):
        raise SettingsError(f"the mask is what {FULL} changes: arms are {list(names)} without it")
    other = replace(recipe, seed=(recipe.seed + 1) % 2**32, split_seed=recipe.seed)
    arms = [DemoArm(name, name, recipe) for name in (FULL, "sft") if name in names]
    if controls:
        arms.append(DemoArm(f"grpo-seed-{other.seed}", FULL, other))
    if "grpo-mask" in names:
        arms.append(DemoArm("grpo-mask", FULL, recipe, "mask"))
    if controls:
        arms.append(DemoArm("grpo-random", FULL, recipe, "mask-random"))
        arms.append(DemoArm("grpo-matched", FULL, recipe, "mask-matched"))
        arms.append(DemoArm("grpo-complement", FULL, recipe, "mask-complement"))
    return arms


def mask_file(out: Path, mask: str) -> Path:
    """Where a mask of the demo is kept."""
    return out / f"{mask}.safetensors"


def demo_masks(out: Path, wanted: Iterable[str], seed: int) -> dict[str, Mask]:
    """Make the masks and keep each in a file, unless the file holds it already.

    Args:
        out: The folder of the demo, with `base` and the trained `FULL`.
        wanted: Names: `mask`, `mask-random` (as many in each tensor), `mask-matched` (as many in
            each tensor × exponent of the base weight), `mask-complement`.
        seed: Of the random masks.

    Returns:
        The masks by name.

    Raises:
        MaskError: `FULL` changed nothing.
    """
    changed = extract_mask(out / "base", out / FULL, changed=CRITERION)
    if not changed.num_selected():
        raise MaskError(f"{out / FULL} is the base bit for bit, so there is no mask: train longer")
    make = {
        "mask": lambda: changed,
        "mask-random": lambda: changed.random_like(seed),
        "mask-matched": lambda: random_matched(changed, out / "base", seed),
        "mask-complement": changed.complement,
    }
    masks = {name: make[name]() for name in wanted}
    for name, mask in masks.items():
        if not _holds(mask_file(out, name), mask):
            mask.save(mask_file(out, name), force=True)
    return masks


def _holds(path: Path, mask: Mask) -> bool:
    try:
        return path.exists() and Mask.load(path) == mask
    except MaskError:
        return False  # damaged: it is written anew
