"""The HTML report: one file that needs nothing else, now or in ten years.

Styles, data and the chart library are inside. The page's own content security policy lets the
browser run the two scripts that trimtab put there, known by their hashes, and load nothing: a
name in a checkpoint that was made to be a script stays text even if escaping it had failed.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import trimtab
from trimtab.compare.result import Comparison
from trimtab.compare.trajectory_result import Trajectory
from trimtab.elements.counts import percent
from trimtab.extras import require
from trimtab.masks.identity_result import Identity
from trimtab.report.arms import Arm
from trimtab.report.blocks import Figure, Section
from trimtab.report.causes import precision
from trimtab.report.change import how_far, how_large, largest_movers, where
from trimtab.report.demo import DemoRecord, cost, learned
from trimtab.report.demo_masked import only_the_mask
from trimtab.report.evaluation import (
    accuracy,
    evaluation_provenance,
    forgetting,
    given_answers,
    suites,
)
from trimtab.report.evaluation_wording import model_names, share_text
from trimtab.report.identity import (
    identity_coverage,
    identity_provenance,
    least_alike,
    same_model,
)
from trimtab.report.identity_wording import (
    base_share,
    inside_headline,
    mask_text,
    origins,
    stray_sentence,
    sub_share,
    three_coverage_sentence,
)
from trimtab.report.record import coverage, provenance
from trimtab.report.shape import geometry, rank
from trimtab.report.trajectory import (
    coverage_text,
    final_subnetwork,
    over_time,
    trajectory_coverage,
    trajectory_provenance,
    what_became,
)
from trimtab.report.trajectory_wording import FATES, cadence, cadence_sentence, endpoints_of, fates
from trimtab.report.wording import (
    changed_means,
    coverage_sentence,
    endpoints,
    headline,
    plural,
    printable,
)

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "check_installed",
    "render_demo_html",
    "render_evaluation_html",
    "render_html",
    "render_identity_html",
    "render_trajectory_html",
]


@dataclass(frozen=True)
class _Hero:
    """A headline figure over a bar.

    Attributes:
        label: What it is of, or empty.
        figure: The figure.
        words: The rest of its sentence.
        filled: Share of the bar that is filled.
        under: What the filled part stands for.
    """

    label: str
    figure: str
    words: str
    filled: float
    under: str


def check_installed() -> Any:
    """The module of the chart library.

    Raises:
        MissingExtraError: It is not installed. Better heard before a long comparison than after.
    """
    return require("vl_convert", "pip install 'trimtab[report]'")


def render_html(comparison: Comparison) -> str:
    """Draw the report of one comparison.

    Args:
        comparison: The result; nothing else is read.

    Returns:
        A complete HTML page.

    Raises:
        MissingExtraError: The chart library is not installed.
    """
    arms = [Arm("", comparison)]
    base, tuned = endpoints(comparison)
    return _render(
        arms,
        title=f"{tuned} against {base}",
        heading="What fine-tuning changed",
        subtitle=(base, tuned),
        paragraphs=(_compared(arms),),
        sections=_sections(arms),
    )


def render_demo_html(
    demo: DemoRecord,
    comparisons: Mapping[str, Comparison],
    identities: Mapping[str, Identity] | None = None,
) -> str:
    """Draw the page of a demo: runs from one base, side by side.

    Args:
        demo: What the runs did, by label.
        comparisons: Each run of every weight compared with the base, by label.
        identities: See `trimtab.report.demo_masked`; by label.

    Returns:
        A complete HTML page.

    Raises:
        MissingExtraError: The chart library is not installed.
    """
    arms = [Arm(label, comparison) for label, comparison in comparisons.items()]
    runs = list(demo["arms"])
    labels = ", ".join(map(printable, runs))
    task = f" trained on {demo['task']}" if "task" in demo else " trained"
    opening = (
        f"Starting from {printable(demo['base_id'])}, {plural(len(runs), 'run')}{task}. This page "
        "shows whether each learned, which weights it changed, and how many weights the size of "
        "its steps alone would lead one to expect."
    )
    masked: list[Section] = []
    if identities:
        opening += (
            " Where and how far weights moved is shown for the runs that trained every weight."
        )
        inside = {label: of for label, of in identities.items() if label not in comparisons}
        masked.append(only_the_mask(demo, comparisons, identities))
        masked += [same_model(inside, runs=runs)] if inside else []
    return _render(
        arms,
        title=f"trimtab demo: {labels}",
        heading="What training changed, run by run",
        subtitle=(printable(demo["base_id"]), labels),
        paragraphs=(opening, demo["model_note"], _compared(arms)),
        sections=(learned(demo), *masked, *_sections(arms), cost(demo)),
    )


def render_identity_html(identity: Identity) -> str:
    """Draw the report of an identity check.

    Args:
        identity: The result; nothing else is read.

    Returns:
        A complete HTML page.

    Raises:
        MissingExtraError: The chart library is not installed.
    """
    checks = {"": identity}
    names = origins(identity)
    covered = three_coverage_sentence(identity.coverage)
    stray = stray_sentence(identity)
    return _page(
        title=f"{names['sub']} against {names['full']}",
        heading="What training only the mask gave",
        subtitle=(names["full"], names["sub"]),
        heroes=_identity_heroes(identity),
        warnings=[stray] if stray else [],
        conversion=printable(identity.conversion or ""),
        incomplete=[] if identity.coverage.is_complete else [covered],
        coverage=covered,
        paragraphs=(f"Base: {names['base']}. Mask {mask_text(identity)}.",),
        sections=[
            section
            for section in (
                same_model(checks),
                least_alike(checks),
                identity_coverage(checks),
                identity_provenance(checks),
            )
            if section is not None
        ],
        date=identity.provenance.get("date", ""),
    )


def _identity_heroes(identity: Identity) -> list[_Hero]:
    """SUB inside the mask, and beside it the trivial comparison."""
    inside = identity.total.inside
    if not inside.num_elements:
        figure, words = inside_headline(identity)
        return [_Hero("", figure, words, 0.0, "nothing to compare")]
    words = f"of {inside.num_elements:,} weights inside the mask are bit-identical to FULL"
    shares = {
        "SUB": (sub_share(inside), inside.num_sub_equal["bits"]),
        "BASE: what doing nothing scores": (base_share(inside), inside.num_base_equal["bits"]),
    }
    return [
        _Hero(label, figure, words, num / inside.num_elements, f"{num:,} equal (criterion: bits)")
        for label, (figure, num) in shares.items()
    ]


def render_trajectory_html(trajectory: Trajectory) -> str:
    """Draw the report of a trajectory.

    Args:
        trajectory: The result; nothing else is read.

    Returns:
        A complete HTML page.

    Raises:
        MissingExtraError: The chart library is not installed.
    """
    base, last = endpoints_of(trajectory)
    covered = coverage_text(trajectory)
    is_complete = trajectory.coverage is None or trajectory.coverage.is_complete
    sections = [
        what_became(trajectory),
        over_time(trajectory),
        final_subnetwork(trajectory),
        trajectory_coverage(trajectory),
        trajectory_provenance(trajectory),
    ]
    return _page(
        title=f"{base} to {last}, observed {cadence(trajectory)}",
        heading="How the subnetwork formed",
        subtitle=(base, last),
        heroes=_trajectory_heroes(trajectory),
        conversion=printable(trajectory.conversion or ""),
        incomplete=[] if is_complete else [covered],
        coverage=covered,
        paragraphs=(cadence_sentence(trajectory), changed_means("bits")),
        sections=[section for section in sections if section is not None],
        date=trajectory.provenance.get("date", ""),
    )


def _trajectory_heroes(trajectory: Trajectory) -> list[_Hero]:
    """What became of the weights: effective, cancelled, untouched."""
    total = trajectory.final.total
    if not total.num_elements:
        return [_Hero("", "–", "no weights were followed", 0.0, "nothing to follow")]
    numbers = fates(total)
    return [
        _Hero(
            label=fate.capitalize(),
            figure=percent(numbers[fate], total.num_elements),
            words=f"of {total.num_elements:,} weights: {FATES[fate]}",
            filled=numbers[fate] / total.num_elements,
            under=f"{numbers[fate]:,} (criterion: bits; observed {cadence(trajectory)})",
        )
        for fate in ("effective", "cancelled", "untouched")
    ]


def render_evaluation_html(evaluation: Mapping[str, Any]) -> str:
    """Draw the report of an evaluation.

    Args:
        evaluation: Its plain data; nothing else is read.

    Returns:
        A complete HTML page.

    Raises:
        MissingExtraError: The chart library is not installed.
    """
    first, *others = model_names(evaluation)
    asked = evaluation["questions"]
    sections = [
        accuracy(evaluation),
        forgetting(evaluation),
        suites(evaluation),
        given_answers(evaluation),
        evaluation_provenance(evaluation),
    ]
    return _page(
        title=", ".join((*others, first)),
        heading="What the models answered" if asked else "What the models forgot",
        subtitle=(first, ", ".join(others) or "no other model"),
        heroes=_evaluation_heroes(evaluation),
        conversion="",
        incomplete=[],
        coverage="complete: every model was given the same questions and texts",
        paragraphs=(),
        sections=[section for section in sections if section is not None],
        date=evaluation["provenance"].get("date", ""),
    )


def _evaluation_heroes(evaluation: Mapping[str, Any]) -> list[_Hero]:
    """The greedy accuracy of each model, or of those beside the first."""
    if evaluation["questions"] is None:
        return []
    models = list(zip(model_names(evaluation), evaluation["models"], strict=True))
    beside = ""
    if len(models) > 1:
        first, model = models.pop(0)
        beside = f"; {share_text(model['answers']['greedy_accuracy'], 1, None)} by {first}"
    return [
        _Hero(
            label=name,
            figure=share_text(told["greedy_accuracy"], 1, None),
            words=f"of {told['num_questions']:,} questions are answered right, greedily{beside}",
            filled=told["greedy_accuracy"],
            under=f"{told['num_greedy_correct']:,} right",
        )
        for name, model in models
        for told in (model["answers"],)
    ]


def _sections(arms: Sequence[Arm]) -> list[Section]:
    sections = [
        where(arms),
        how_large(arms),
        how_far(arms),
        precision(arms),
        largest_movers(arms),
        rank(arms),
        geometry(arms),
        coverage(arms),
        provenance(arms),
    ]
    return [section for section in sections if section is not None]


def _compared(arms: Sequence[Arm]) -> str:
    """What was compared and what "changed" means, in plain words."""
    first = arms[0].comparison
    dtypes = dict.fromkeys(tensor.dtype for arm in arms for tensor in arm.comparison.tensors)
    stored = f" ({', '.join(map(printable, dtypes))})" if dtypes else ""
    how = "as stored" if first.conversion is None else printable(first.conversion)
    which = "The tuned checkpoint was" if len(arms) == 1 else "Each tuned checkpoint was"
    criteria = dict.fromkeys(arm.criterion for arm in arms)
    return (
        f"{which} compared with its base weight by weight, {how}{stored}: "
        f"{plural(len(first.tensors), 'tensor')}, {arms[0].total.num_elements:,} weights. "
        + " ".join(changed_means(criterion) for criterion in criteria)
    )


def _hero(arm: Arm) -> _Hero:
    figure, words = headline(arm.total, arm.criterion)
    changed = arm.total.num_changed.get(arm.criterion, 0)
    return _Hero(
        label=arm.label,
        figure=figure,
        words=words,
        filled=1 - (arm.comparison.sparsity or 0.0),
        under=f"{changed:,} changed (criterion: {arm.criterion})",
    )


def _render(arms: Sequence[Arm], **parts: Any) -> str:
    conversions = dict.fromkeys(
        printable(arm.comparison.conversion) for arm in arms if arm.comparison.conversion
    )
    return _page(
        **parts,
        heroes=[_hero(arm) for arm in arms],
        conversion="; ".join(conversions),
        incomplete=[
            coverage_sentence(arm.comparison.coverage)
            for arm in arms
            if not arm.comparison.coverage.is_complete
        ],
        coverage=coverage_sentence(arms[0].comparison.coverage),
        date=arms[0].comparison.provenance.get("date", ""),
    )


def _page(*, date: object, warnings: Sequence[str] = (), **parts: Any) -> str:
    scripts = (_chart_library(), _template_text("charts.js"))
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            **parts,
            warnings=warnings,
            date=printable(str(date))[:10],
            version=trimtab.__version__,
            style=_template_text("style.css"),
            scripts=scripts,
            hashes=[_hash(script) for script in scripts],
        )
    )


@cache
def _chart_library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    vl_convert = check_installed()
    # An inline script ends at the first "</script", wherever that stands.
    bundle: str = vl_convert.javascript_bundle()
    return bundle.replace("</script", "<\\/script")


def _hash(script: str) -> str:
    return "sha256-" + b64encode(sha256(script.encode()).digest()).decode()


def _template_text(name: str) -> str:
    return files("trimtab.report").joinpath("templates", name).read_text(encoding="utf-8")


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("trimtab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.tests["figure"] = lambda block: isinstance(block, Figure)
    return environment
