"""Numbers and phrases as text, the same in the terminal and in the HTML report.

Every phrase about change names its criterion. Text from files passes through `printable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from trimtab.elements.counts import ChangeCounts, percent
from trimtab.elements.criteria import parse_criterion
from trimtab.measure.compare_result import Comparison, Coverage
from trimtab.results.records import CheckpointRecord
from trimtab.words import plural, were

Ends = Sequence[float] | None
"""An interval, or None."""


class Shown(str):
    """Text of a number that keeps the number, for CSV files and data frames.

    Attributes:
        value: The number, or None.
    """

    __slots__ = ("value",)
    value: float | None

    def __new__(cls, text: str, value: float | None) -> Self:
        """Attach a number to its text."""
        self = super().__new__(cls, text)
        self.value = value
        return self


NONE = Shown("–", None)
"""The text of a missing number."""


def shown(value: float | None, write: str | Callable[[float], str]) -> Shown:
    """A number by a format or a function; a dash for None."""
    if value is None:
        return NONE
    return Shown(format(value, write) if isinstance(write, str) else write(value), value)


def count(num: int | None) -> Shown:
    """A whole number: `1,024`; a dash for None."""
    return shown(num, ",")


def share(part: float, whole: float, digits: int = 2) -> Shown:
    """A share in percent, 0 and 100 only if exact; a dash if the whole is 0."""
    return Shown(percent(part, whole, digits), part / whole if whole else None)


def printable(text: str) -> str:
    """Text with every invisible character (control, bidirectional, surrogate) as an escape."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def named(label: str, title: str) -> str:
    """A title with the label of a run, if there is one."""
    return f"{title}: {label}" if label else title


def labelled(label: str, sentence: str) -> str:
    """A sentence after the label of its run, if there is one."""
    return f"{label}: {sentence}" if label else sentence


def magnitude(value: float | None) -> Shown:
    """A real number to three significant digits, a small one as `8.62e-05`."""
    return shown(value, lambda v: f"{v:.2e}" if 0 < abs(v) < 0.01 else f"{v:.3g}")


def of_all(part: int, whole: int) -> str:
    """Exact counts and their share: `13,897,412 of 134,515,008 (10.33 %)`."""
    return f"{part:,} of {whole:,} ({percent(part, whole)})"


def sparsity_text(counts: ChangeCounts, criterion: str) -> Shown:
    """Update sparsity as a percentage; a dash without elements."""
    num_changed = counts.num_changed.get(criterion, 0)
    return share(counts.num_elements - num_changed, counts.num_elements)


def unchanged(criterion: str) -> str:
    """The meaning of "unchanged", to follow "are": `bit-identical to the base`."""
    parsed = parse_criterion(criterion)
    size = parsed.key.partition("=")[2]
    return {
        "bits": "bit-identical to the base",
        "value": "equal to the base as numbers",
        "atol": f"within {size} of the base",
        "strict_atol": f"less than {size} away from the base",
        "rel": f"within a relative {size} of the base",
    }[parsed.rule]


def rule(criterion: str, x: str = "base", y: str = "tuned") -> str:
    """The formula by which two elements count as equal."""
    parsed = parse_criterion(criterion)
    size = parsed.key.partition("=")[2]
    either = ", ".join(f"|{name}|" for name in sorted((x, y)))
    return {
        "bits": "the stored bits are the same",
        "value": f"{y} = {x} as numbers",
        "atol": f"|{y} − {x}| ≤ {size}",
        "strict_atol": f"|{y} − {x}| < {size}",
        "rel": f"|{y} − {x}| ≤ {size} · max({either})",
    }[parsed.rule]


def changed_means(criterion: str) -> str:
    """The meaning of "changed" under a criterion, in one sentence."""
    parsed = parse_criterion(criterion)
    if parsed.rule == "bits":
        return (
            "A weight counts as changed if any of its stored bits differ: the smallest move that "
            "the stored number format can hold counts, and so does a zero that changes its sign."
        )
    if parsed.rule == "value":
        return (
            "A weight counts as changed if it is another number than before: the smallest move "
            "that the stored number format can hold counts; +0 and −0 are the same number."
        )
    return (
        f"A weight counts as unchanged if {rule(criterion)}; smaller moves than that are not "
        "counted as change."
    )


def headline(counts: ChangeCounts, criterion: str) -> tuple[str, str]:
    """The main figure and the rest of its sentence, which names the criterion.

    Examples:
        >>> " ".join(headline(ChangeCounts(num_elements=3, num_changed={"bits": 1}), "bits"))
        '66.67 % of 3 weights are bit-identical to the base'
    """
    if not counts.num_elements:
        return "–", "no weights were compared"
    figure = sparsity_text(counts, criterion)
    return figure, f"of {counts.num_elements:,} weights are {unchanged(criterion)}"


def interval_text(interval: Sequence[float], sign: str = "") -> str:
    """The ends of an interval, in percent or points."""
    low, high = (f"{100 * end:{sign}.1f}" for end in interval)
    return f"{low}, {high}"


def share_text(part: float, whole: float, interval: Ends, digits: int = 1) -> Shown:
    """A share with its interval, in percent: `81.2 % [64.7, 91.1]`."""
    figure = share(part, whole, digits)
    return Shown(figure + (f" [{interval_text(interval)}]" if interval else ""), figure.value)


def points_text(difference: float | None, interval: Ends) -> Shown:
    """A difference of shares in points: `+31.2 [+9.6, +49.1]`; a dash for None."""
    if difference is None:
        return NONE
    ends = f" [{interval_text(interval, '+')}]" if interval else ""
    return Shown(f"{100 * difference:+.1f}{ends}", difference)


def with_ends(value: float, interval: Ends, write: Callable[[float], str]) -> Shown:
    """A number with its interval in the same format: `0.015 [0.0101, 0.0199]`."""
    ends = f" [{', '.join(map(write, interval))}]" if interval else ""
    return Shown(f"{write(value)}{ends}", value)


def within(summary: Mapping[str, Any], least: float, most: float) -> Ends:
    """A t-interval cut at the possible values of a figure.

    Args:
        summary: A mean over seeds, from `trimtab.results.statistics.over_seeds`.
        least: Lower bound of the figure.
        most: Upper bound.

    Returns:
        The ends; None for one seed.
    """
    if summary["low"] is None:
        return None
    return max(least, summary["low"]), min(most, summary["high"])


def coverage_sentence(coverage: Coverage) -> str:
    """Which share of both checkpoints was compared."""
    if coverage.is_complete:
        text = f"complete: all {coverage.num_compared:,} stored elements were compared"
    else:
        gaps = [
            f"{plural(len(rows), 'tensor')} {where}"
            for rows, where in (
                (coverage.missing, "only in base"),
                (coverage.extra, "only in tuned"),
                (coverage.shape_mismatch, "of another shape"),
            )
            if rows
        ]
        text = (
            f"INCOMPLETE: {were(coverage.num_compared, 'element')} compared, "
            f"{percent(coverage.num_compared, coverage.num_base)} of base and "
            f"{percent(coverage.num_compared, coverage.num_tuned)} of tuned"
        )
        if gaps:
            text += f" ({', '.join(gaps)})"
    if coverage.tied:
        text += f"; {plural(len(coverage.tied), 'tied tensor')} counted once"
    return text


def endpoint(record: CheckpointRecord) -> str:
    """The id of a checkpoint, with its revision."""
    return printable(record.id if record.revision is None else f"{record.id}@{record.revision}")


def endpoints(comparison: Comparison) -> tuple[str, str]:
    """The ids of base and tuned, each with its revision."""
    return endpoint(comparison.base), endpoint(comparison.tuned)


def layer_text(layer: int | None) -> str:
    """A layer as the name of a row."""
    return "outside the layers" if layer is None else str(layer)


_KIND_ORDER = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    *("router", "expert.gate_proj", "expert.up_proj", "expert.down_proj"),
    *("bias", "norm", "embed", "lm_head"),
)


def kinds_in_order(kinds: Iterable[str]) -> list[str]:
    """Kinds in display order: attention, MLP, experts, the rest; unknown ones last."""
    order = {kind: index for index, kind in enumerate(_KIND_ORDER)}
    return sorted(dict.fromkeys(kinds), key=lambda kind: order.get(kind, len(order)))
