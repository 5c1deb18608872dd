"""The report of a mask: what it selects, by kind, and how it was made, step by step.

The steps of its provenance come from a file, so their values are not trusted; one of an unexpected
type is shown as is, or as an ellipsis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from trimtab.elements.counts import percent
from trimtab.masks.header import PackedMask
from trimtab.masks.mask import summarise
from trimtab.report import document as doc
from trimtab.report.wording import count, printable, share
from trimtab.words import plural

Step: TypeAlias = Mapping[str, Any]

MOST_NESTED = 4
"""Maximum nesting of masks made from masks that is shown."""

MOST_LISTED = 12

_GAPS = {
    "missing": "only in base",
    "extra": "only in tuned",
    "shape_mismatch": "of another shape",
}


def mask_document(mask: PackedMask) -> doc.Document:
    """The document of `trimtab mask info`."""
    selected = share_text(mask.num_selected(), mask.num_elements())
    steps = tuple(steps_lines(mask.provenance))
    made = [doc.Lines("How it was made:", steps)] if steps else []
    return doc.Document(
        headlines=(f"{selected} in {plural(len(mask), 'tensor')}",),
        summary=(f"digest {mask.digest}",),
        sections=[doc.Section("", blocks=(_by_kind(mask), *made))],
    )


def share_text(num_selected: int, num_elements: int) -> str:
    """Selected elements as text: `1,834 of 10,592 elements (17.31 %)`."""
    selected = f" ({percent(num_selected, num_elements)})" if num_elements else ""
    return f"{num_selected:,} of {num_elements:,} elements{selected}"


def _by_kind(mask: PackedMask) -> doc.Table:
    summary = summarise(mask)
    return doc.table(
        "By kind",
        doc.rows_by_kind(summary["by_kind"], summary["total"]),
        (
            doc.Column("tensors", lambda group: count(group["num_tensors"]), drop=1),
            doc.Column("elements", lambda group: count(group["num_elements"]), drop=2),
            doc.Column("selected", lambda group: count(group["num_selected"])),
            doc.Column(
                "density", lambda group: share(group["num_selected"], group["num_elements"])
            ),
        ),
        keys=("kind",),
        has_total=True,
        brief="",
    )


def steps_lines(provenance: Mapping[str, Any]) -> list[str]:
    """A line for each step, and indented below it those of the masks that it combined.

    The steps of a mask are listed once, at its first use.
    """
    steps, made_from = provenance.get("steps"), provenance.get("made_from")
    before = dict(made_from) if isinstance(made_from, Mapping) else {}
    return _lines(steps, before, nested=0)


def _lines(steps: Any, made_from: dict[str, Any], *, nested: int) -> list[str]:
    """Lines for the steps of one mask; removes the masks that it combined from `made_from`."""
    indent = "  " * nested
    if not isinstance(steps, list):
        return []
    if nested > MOST_NESTED:
        return [f"{indent}- …"]
    lines = []
    for step in steps:
        if not isinstance(step, Mapping):
            continue
        lines.append(f"{indent}- {_text(step)}")
        masks = step.get("of")
        for place, digest in enumerate(masks if isinstance(masks, list) else [], 1):
            lines.append(printable(f"{indent}  mask {place}: {_brief(digest)}"))
            provenance = made_from.pop(digest, None) if isinstance(digest, str) else None
            if isinstance(provenance, Mapping):
                lines += _lines(provenance.get("steps"), made_from, nested=nested + 1)
    return lines


def _text(step: Step) -> str:
    """One step in words."""
    name = step.get("step")
    words = _WORDS.get(name) if isinstance(name, str) else None
    if words is None:
        return printable(", ".join(f"{key} {_brief(value)}" for key, value in step.items()))
    return printable(f"{name}: {words(step)}")


def gaps_text(step: Mapping[str, Any]) -> str:
    """Tensors that an extraction could not compare; empty if it compared all."""
    rows = {where: step.get(name) for name, where in _GAPS.items()}
    return ", ".join(
        f"{plural(len(tensors), 'tensor')} {where}"
        for where, tensors in rows.items()
        if isinstance(tensors, list) and tensors
    )


def carried_text(step: Step) -> str:
    """What a transfer did besides copying bits; empty if nothing."""
    layers, rows = step.get("layers"), step.get("common_rows")
    parts = []
    if isinstance(layers, Mapping):
        parts.append(f"layers interpolated to {len(layers)}")
    if isinstance(by_density := step.get("by_density"), list) and by_density:
        parts.append(
            f"the densities of rows, at random places, in {plural(len(by_density), 'tensor')} "
            f"(seed {step.get('seed')})"
        )
    if isinstance(rows, list) and rows:
        parts.append(f"the common rows of {plural(len(rows), 'vocabulary', 'vocabularies')}")
    for key, words in (("not_in_mask", "not in the mask"), ("left_out", "only in the mask")):
        if isinstance(names := step.get(key), list) and names:
            parts.append(f"{plural(len(names), 'tensor')} {words}")
    return "; ".join(parts)


def _extract(step: Step) -> str:
    gaps = gaps_text(step)
    return (
        f"changed from {_checkpoint(step.get('base'))} to {_checkpoint(step.get('tuned'))} "
        f"(criterion: {step.get('criterion')})"
        f"{f'; not compared in full: {gaps}' if gaps else ''}"
    )


def _restrict(step: Step) -> str:
    conditions = (
        f"{key} {_listed(step.get(key))}" for key in ("kinds", "layers", "tensors") if step.get(key)
    )
    return f"the tensors of {step.get('of')} with {', '.join(conditions)}"


def _transfer(step: Step) -> str:
    carried = carried_text(step)
    return (
        f"{step.get('of')} on the tensors of {_checkpoint(step.get('to'))}"
        f"{f'; {carried}' if carried else ''}"
    )


def _own(step: Step) -> str:
    place = step.get("mask")
    which = place + 1 if isinstance(place, int) else _brief(place)
    return f"what mask {which} selects and no other of these does"


def _moved(step: Step) -> str:
    text = f"what {_phase(step)} changed (criterion: {step.get('criterion')})"
    if isinstance(looks := step.get("looks"), list):
        text += "".join(f"; {_look(look)}" for look in looks)
    return text + _peak(step.get("peak_memory"))


def _largest_gradients(step: Step) -> str:
    return (
        f"where those of {_phase(step)} sum up to most, in magnitude"
        f"{_peak(step.get('peak_memory'))}"
    )


def _random(step: Step) -> str:
    return f"{_size(step)}, seed {step.get('seed')}"


def _chosen(what: str) -> Callable[[Step], str]:
    """The description of a step that selected by scores."""

    def words(step: Step) -> str:
        details = "".join(f", {key} {_brief(step[key])}" for key in _DETAILS if key in step)
        base = f" of {_checkpoint(step['base'])}" if "base" in step else ""
        size = "" if "distance" in step else f": {_size(step)}, ties by seed {step.get('seed')}"
        return f"{what}{base}{details}{size}"

    return words


_DETAILS = ("share", "lr", "steps")


def _size(step: Step) -> str:
    """How many elements a step selected, and what the numbers are matched in."""
    match = step.get("match", "tensor")
    where = _PLACES.get(match) if isinstance(match, str) else None
    if "density" in step:
        return f"a share of {_brief(step['density'])} {where or _brief(match)}"
    return f"the same number {where or _brief(match)} as {step.get('like', step.get('of'))}"


_PLACES = {
    "total": "in all",
    "tensor": "in each tensor",
    "magnitude": "in each tensor × exponent of the base weight",
}


def _consensus(step: Step) -> str:
    if "at_least" in step:
        return f"what at least {_brief(step['at_least'])} of these select"
    return f"what most of these select: {_size(step)}, ties by seed {step.get('seed')}"


def _probe(step: Step) -> str:
    """The data of the gradients, and the cost of computing them."""
    data, seconds = step.get("data"), step.get("seconds")
    source = data.get("source") if isinstance(data, Mapping) else _brief(data)
    num, tokens = _brief(step.get("num_sequences")), _brief(step.get("num_tokens"))
    took = f"; {seconds:.0f} s" if isinstance(seconds, float) else ""
    return (
        f"gradients of {_checkpoint(step.get('base'))} on {source} (loss: "
        f"{_brief(step.get('loss'))}, {num} completions, {tokens} tokens): {_size(step)}, "
        f"seed {step.get('seed')}{took}{_peak(step.get('peak_memory'))}"
    )


def _warm(step: Step) -> str:
    checkpoints = step.get("checkpoints")
    if isinstance(checkpoints, list):
        what = f"what {', '.join(map(_checkpoint, checkpoints[:MOST_LISTED]))} had moved"
    else:
        what = f"what the first {step.get('after_steps')} steps of {step.get('tracked')} moved"
    size = f": {_size(step)}, ties by seed {step.get('seed')}" if "match" in step else ""
    return what + size


_WORDS: Mapping[str, Callable[[Step], str]] = {
    "extract": _extract,
    "survivors": lambda step: f"what is not 0 in {_checkpoint(step.get('checkpoint'))}",
    "random": _random,
    "low-magnitude": _chosen("the smallest weights"),
    "high-magnitude": _chosen("the largest weights"),
    "principal": _chosen("what carries the principal directions"),
    "off-principal": _chosen("what does not carry the principal directions"),
    "safe": _chosen("small weights and what does not carry the principal directions"),
    "absorption": _chosen("what the smallest steps change"),
    "consensus": _consensus,
    "complement": lambda step: f"what {step.get('of')} does not select",
    "and": lambda _: "what both of these select",
    "or": lambda _: "what one of these selects, or both",
    "xor": lambda _: "what exactly one of these selects",
    "minus": lambda _: "what the first of these selects and the second does not",
    "restrict": _restrict,
    "transfer": _transfer,
    "core": lambda _: "what all of these select",
    "own": _own,
    "moved": _moved,
    "largest gradients": _largest_gradients,
    "fisher": _probe,
    "sign-consistency": _probe,
    "snip": _probe,
    "warm": _warm,
}
"""Name of a step -> its description; other steps are shown as is."""


def _phase(step: Step) -> str:
    """The part of a run in which it looked for its mask."""
    return f"{step.get('after_steps')} steps of {step.get('algorithm')} from {step.get('base')}"


def _look(look: Any) -> str:
    """Elements that had moved at some step of a run."""
    if not isinstance(look, Mapping):
        return _brief(look)
    num_moved, share_new = look.get("num_moved"), look.get("share_new")
    moved = f"{num_moved:,}" if isinstance(num_moved, int) else _brief(num_moved)
    new = ""
    if isinstance(share_new, float) and 0.0 <= share_new <= 1.0:
        new = f", {percent(share_new, 1.0)} of them new"
    return f"after step {_brief(look.get('after_steps'))}: {moved} elements{new}"


def _peak(memory: Any) -> str:
    """The memory that looking for a mask took."""
    if not isinstance(memory, Mapping) or not isinstance(memory.get("num_bytes"), int):
        return ""
    return f"; peak {memory['num_bytes'] // 10**6:,} MB of {_brief(memory.get('of'))}"


def _brief(value: Any) -> str:
    """A value of a step; `--json` has those that are too long for a line."""
    return "…" if isinstance(value, Mapping | list) else str(value)


def _listed(values: Any) -> str:
    """A list of words or numbers, shortened."""
    if not isinstance(values, list):
        return _brief(values)
    shown = [_brief(value) for value in values[:MOST_LISTED]]
    return " ".join([*shown, *(["…"] if len(values) > MOST_LISTED else [])])


def _checkpoint(record: Any) -> str:
    if not isinstance(record, Mapping):
        return str(record)
    revision = record.get("revision")
    return f"{record.get('id')}" if revision is None else f"{record.get('id')}@{revision}"
