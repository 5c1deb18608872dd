"""Tables of `docs/structure.md` drawn from the recorded structure of the demo's masks.

Like the functions of `docs.generated`, those here print Markdown. `python -m
docs.generated_structure RESULT.json` saves what the page uses of a result of `trimtab mask
structure` in `benchmarks/results/structure.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from docs.generated import ROOT, compact_json, rounded, rows, tiny_pair

from trimtab.elements.counts import percent
from trimtab.masks.extract import extract_mask
from trimtab.masks.structure import structure
from trimtab.masks.structure_result import MaskStructure, Structure
from trimtab.report.structure import correlation_text, mask_labels, shared_p_text
from trimtab.report.structure_matrices import dispersion_text, spread_text, stripes_by_kind
from trimtab.report.structure_units import FAMILY_NAMES, unit_name, z_text

__all__ = [
    "by_magnitude",
    "by_tensor",
    "correlations",
    "in_common",
    "measured",
    "stripes",
    "top",
]

Record = Mapping[str, Any]

NUM_TOP = 2
"""Units of each family that the page names."""


def record(structure: Structure) -> dict[str, Any]:
    """What the page uses of a result."""
    assert structure.base is not None, "the page sets both nulls side by side"
    keys = ("trimtab_version", "command", "date", "device", "seed")
    return {
        "provenance": {key: structure.provenance[key] for key in keys},
        "base": {
            "architecture": structure.base.architecture,
            "dtypes": dict(structure.base.dtypes),
            "content_hash": structure.base.content_hash,
        },
        "masks": [
            _mask(name, mask)
            for name, mask in zip(mask_labels(structure), structure.masks, strict=True)
        ],
        "shared": [dict(shared) for shared in structure.to_dict()["shared"]],
    }


def _mask(name: str, mask: MaskStructure) -> dict[str, Any]:
    kinds = stripes_by_kind(mask.tensors)
    means, spreads = ("dispersion", "control", "matched"), ("spread", "matched_spread")
    return {
        "name": name,
        "digest": mask.mask.digest,
        "num_elements": mask.mask.num_elements,
        "num_selected": mask.mask.num_selected,
        "families": [
            {
                "name": family.name,
                "num_units": family.num_units,
                **{key: vars(getattr(family, key)) for key in ("null", "control", "matched")},
                "from_magnitude": family.from_magnitude,
                "gini": family.concentration.gini,
                "control_gini": family.control_concentration.gini,
                "top": [
                    {"name": unit_name(family.name, unit), **vars(unit)}
                    for unit in sorted(family.units, key=lambda u: -(u.z or 0.0))[:NUM_TOP]
                ],
            }
            for family in mask.families
        ],
        "stripes": {
            kind: {
                axis: {figure: group.mean(axis, figure) for figure in means}
                | {figure: group.spread(axis, figure) for figure in spreads}
                for axis in ("rows", "columns")
            }
            for kind, group in kinds.items()
        },
    }


def measured(report: Record | None) -> None:
    """Which masks, of what, and how."""
    if report is None:
        return
    info, base = report["provenance"], report["base"]
    rows(
        ["mask", "weights selected", "share"],
        [
            [
                f"`{mask['name']}`",
                f"{mask['num_selected']:,} of {mask['num_elements']:,}",
                percent(mask["num_selected"], mask["num_elements"]),
            ]
            for mask in report["masks"]
        ],
    )
    print(
        f"\n`{info['command']}`, {info['date'][:10]}, trimtab {info['trimtab_version']}, "
        f"{info['device'].upper()}, controls from seed {info['seed']} on; base stored as "
        f"{', '.join(base['dtypes'])}."
    )


def by_tensor(report: Record | None) -> None:
    """Families against the counts of tensors, with the random control."""
    _families(report, "null", "mean z² of control", lambda f: f["control"]["overdispersion"])


def by_magnitude(report: Record | None) -> None:
    """Families against the counts of tensors × exponents."""
    _families(report, "matched", "z² by magnitude alone", lambda f: f["from_magnitude"])


def _families(report: Record | None, test: str, heading: str, figure: Any) -> None:
    if report is None:
        return
    rows(
        ["units", "mask", "number", "more", "fewer", "mean z²", heading, "spread"],
        [
            [
                FAMILY_NAMES[family["name"]],
                f"`{name}`",
                f"{family['num_units']:,}",
                f"{family[test]['num_up']:,}",
                f"{family[test]['num_down']:,}",
                dispersion_text(family[test]["overdispersion"]),
                dispersion_text(figure(family)),
                spread_text(family[test]["spread"]),
            ]
            for name, family in _by_family(report)
        ],
    )


def _by_family(report: Record) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every family of every mask, family by family."""
    for index in range(len(report["masks"][0]["families"])):
        for mask in report["masks"]:
            yield mask["name"], mask["families"][index]


def top(report: Record | None) -> None:
    """The fullest units of the first mask."""
    if report is None:
        return
    first = report["masks"][0]
    rows(
        [f"of `{first['name']}`", "selected", "of expected", "z", "z by magnitude", "z of control"],
        [
            [
                unit["name"],
                f"{unit['num_selected']:,} of {unit['num_elements']:,}",
                f"{unit['num_selected'] / unit['expected']:.2f} ×",
                z_text(unit["z"]),
                z_text(unit["matched_z"]),
                z_text(unit["control_z"]),
            ]
            for family in first["families"]
            for unit in family["top"]
        ],
    )


def stripes(report: Record | None) -> None:
    """Spread of rows and columns of the first mask and of the last, by kind."""
    if report is None:
        return
    shown = [report["masks"][0], report["masks"][-1]]

    def cells(kind: str) -> Iterator[str]:
        for mask in shown:
            for axis in ("rows", "columns"):
                figures = mask["stripes"][kind][axis]
                yield f"{spread_text(figures['spread'])} → {spread_text(figures['matched_spread'])}"

    rows(
        [
            "kind",
            *(f"{axis} of `{mask['name']}`" for mask in shown for axis in ("rows", "columns")),
        ],
        [[f"`{kind}`", *cells(kind)] for kind in shown[0]["stripes"]],
    )


def correlations(report: Record | None) -> None:
    """Rank correlations of z between masks."""
    if report is None:
        return
    rows(
        ["units", "masks", "by tensor", "by tensor × exponent", "their random controls"],
        [
            [
                FAMILY_NAMES[shared["family"]],
                _pair(report, shared),
                correlation_text(shared["spearman"]),
                correlation_text(shared["matched_spearman"]),
                correlation_text(shared["control_spearman"]),
            ]
            for shared in report["shared"]
        ],
    )


def in_common(report: Record | None) -> None:
    """Significant units, by tensor × exponent, that two trained masks have in common."""
    if report is None:
        return
    last = len(report["masks"]) - 1
    rows(
        ["units", "masks", "direction", "in both", "chance", "p"],
        [
            [
                FAMILY_NAMES[shared["family"]],
                _pair(report, shared),
                "more" if row["direction"] == "up" else "fewer",
                f"{row['num_common']:,}",
                f"{row['chance']:,.1f}",
                shared_p_text(row["log10_p"]),
            ]
            for shared in report["shared"]
            if shared["second"] != last
            for row in shared["common"]
            if row["null"] == "magnitude"
        ],
    )


def _pair(report: Record, shared: Mapping[str, Any]) -> str:
    return ", ".join(f"`{report['masks'][shared[side]]['name']}`" for side in ("first", "second"))


@cache
def example_structure() -> dict[str, Any]:
    """The structure of two masks of a synthetic model, identical on every machine and day."""
    with tiny_pair():
        extract_mask("base", "tuned", threads=1).save("mask.safetensors")
        extract_mask("base", "sub", threads=1).save("sub.safetensors")
        result = structure("mask.safetensors", "sub.safetensors", base="base")
    date = "2026-11-21T12:00:00+00:00"
    command = "trimtab mask structure mask.safetensors sub.safetensors --base base -o s.json"
    made = [
        replace(part, mask=replace(part.mask, provenance={**part.mask.provenance, "date": date}))
        for part in result.masks
    ]
    provenance = {**result.provenance, "command": command, "date": date}
    return replace(result, masks=tuple(made), provenance=provenance).to_dict()


def structure_json(*path: str | int, leave_out: Sequence[str] = ()) -> None:
    """A part of the example as JSON, the values of keys to leave out as `…`."""
    value: Any = example_structure()
    for step in path:
        value = value[step]
    shown = {key: "…" if key in leave_out else part for key, part in value.items()}
    print(f"```json\n{compact_json(rounded(shown))}\n```")


def main(path: str, name: str = "structure.json") -> None:
    """Save what the page uses of a result: `structure.json`, or `structure_tasks.json`."""
    used = record(Structure.from_dict(json.loads(Path(path).read_text("utf-8"))))
    target = ROOT / "benchmarks" / "results" / name
    target.write_text(json.dumps(used, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
