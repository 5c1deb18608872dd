"""Tables and the figure on deltas, drawn from the result of `benchmarks/deltas.py`.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from docs.generated import rows, show_drawing

from trimtab.report import document as doc
from trimtab.report import vega
from trimtab.report.html import figure_files

__all__ = [
    "break_even",
    "chains",
    "directions",
    "limits",
    "measured",
    "memory",
    "models",
    "nested",
    "predictors_pay",
    "ranks",
    "sizes",
    "speeds",
    "steps",
    "swaps",
]

Report = Mapping[str, Any]

OURS = "trimtab delta"

OUR_SWAPS = ("changes in memory", "delta files")

KINDS = ("positions", "distances", "signs")

GIVEN = {
    "flat": "entropies, flat",
    "given exponent": "entropies, given the base's exponent",
    "given tensor and exponent": "entropies, given tensor and exponent",
}

SENDING = (1, 10, 100)
"""Bandwidths in Gbit/s."""

NONE = "–"


def measured(report: Report | None) -> None:
    """How it was measured."""
    if report is None:
        return
    info = report["provenance"]
    packages = ", ".join(f"{name} {version}" for name, version in info["packages"].items())
    print(
        f"Measured on {info['date'][:10]} with trimtab {info['trimtab_version']}, zstandard "
        f"{info['zstandard_version']}, {packages}, and Python {info['python_version']}."
    )


def _named(part: Mapping[str, Report], names: Sequence[str]) -> Iterator[tuple[str, Report]]:
    """The entries of which a name is the beginning, in the order of the names."""
    for start in names:
        yield from ((name, entry) for name, entry in part.items() if name.startswith(start))


def _changed(pair: Report) -> str:
    return f"{100 * pair['num_changed'] / pair['num_elements']:.2f}"


def sizes(report: Report | None, *names: str) -> None:
    """Size of every format, smallest first, in % of the dense tensors and as a ratio to ours."""
    if report is None:
        return
    pairs = dict(_named(report["pairs"], names))
    found = {name for pair in pairs.values() for name in pair["sizes"]}

    def least(name: str) -> float:
        ratios = [
            pair["sizes"][name] / pair["sizes"][OURS]
            for pair in pairs.values()
            if name in pair["sizes"]
        ]
        return sum(ratios) / len(ratios)

    def cell(name: str, pair: Report) -> str:
        if (size := pair["sizes"].get(name)) is None:
            return NONE
        share = f"{100 * size / pair['num_bytes']:.2f}"
        return share if name == OURS else f"{share} ({size / pair['sizes'][OURS]:.1f} ×)"

    rows(
        [
            "% of the tuned weights",
            *(f"{n}: {_changed(pair)} % changed" for n, pair in pairs.items()),
        ],
        (
            [f"**{name}**" if name == OURS else name, *(cell(name, p) for p in pairs.values())]
            for name in sorted(found, key=least)
        ),
    )


def nested(report: Report | None, *names: str) -> None:
    """Bits for each changed element, by what is known when it is coded."""
    if report is None:
        return

    def line(pair: Report, label: str, part: Report, extra: float, total: float) -> list[str]:
        bits = 8 / pair["num_changed"]
        return [
            label,
            *(f"{bits * part[kind]:.2f}" for kind in KINDS),
            f"{bits * extra:.2f}" if extra else NONE,
            f"**{bits * total:.2f}**",
            f"{100 * total / pair['num_bytes']:.2f}",
        ]

    def lines() -> Iterator[list[str]]:
        for name, pair in _named(report["pairs"], names):
            yield [f"**{name}** ({_changed(pair)} % changed)", *[""] * 6]
            for given, label in GIVEN.items():
                part = pair["entropies"][given]
                yield line(pair, label, part, 0, part["sum"])
            for rank, part in pair.get("by_rank", {}).items():
                label = "coded, no predictor" if rank == "0" else f"coded, rank up to {rank}"
                yield line(pair, label, part, part["predictors"], part["all"])

    rows(
        ["bits a change", "positions", "distances", "signs", "predictors", "sum", "% of dense"],
        lines(),
    )


def ranks(report: Report | None, *names: str) -> None:
    """Share of the elements by the rank of the predictor of their tensor."""
    if report is None:
        return
    pairs = [item for item in _named(report["pairs"], names) if item[1].get("by_rank")]
    shares = {name: list(pair["by_rank"].values())[-1]["elements_by_rank"] for name, pair in pairs}
    found = sorted({int(rank) for share in shares.values() for rank in share})
    rows(
        ["% of the elements", *(f"rank {rank}" if rank else "none" for rank in found)],
        (
            [
                name,
                *(f"{100 * shares[name].get(str(r), 0) / pair['num_elements']:.1f}" for r in found),
            ]
            for name, pair in pairs
        ),
    )


def models(report: Report | None) -> None:
    """What the models that the benchmark trains have learned."""
    if report is None:
        return

    def lines() -> Iterator[list[str]]:
        for model, info in report.get("models", {}).items():
            base = info["base"]
            first, last = (f"{value:.2f}" for value in base["loss"])
            rate = f"up to {base['learning_rate']:g}"
            yield [f"{model}, base", str(base["steps"]), rate, f"loss {first} → {last}"]
            for name, run in info["runs"].items():
                what = "reward" if "reward" in run else "loss"
                first, last = (f"{value:.2f}" for value in run[what])
                rate = f"{run['learning_rate']:g}"
                yield [f"{model}, {name}", str(run["steps"]), rate, f"{what} {first} → {last}"]

    rows(["run", "steps", "learning rate", "means of the first and the last ten steps"], lines())


def directions(report: Report | None, model: str, *runs: str) -> None:
    """In how many directions updates have their energy, by kind of matrix."""
    if report is None:
        return
    spreads = {run: report["models"][model]["runs"][run]["directions"] for run in runs}
    titles = (f"{run.upper()}, {dtype}" for run in runs for dtype in ("fp32", "bf16"))

    def cells(kind: str) -> Iterator[str]:
        for spread in spreads.values():
            for part in spread[kind].values():
                yield f"{part['for_90_percent']:g} ({100 * part['share_of_16']:.0f} %)"

    rows([model, *titles], ([f"`{kind}`", *cells(kind)] for kind in spreads[runs[0]]))


RIVALS = ("Fireworks arc_v3", "NeMo-RL: u16 gaps, XOR, zstd-1", "slime: XOR, zstd-1")


def steps(report: Report | None, *names: str) -> None:
    """Size of the delta of each of some steps of a long run against the base."""
    if report is None:
        return
    rows(
        ["run", "step", "changed, %", "ours, %", "bits a change", "flat entropy, %", *RIVALS],
        (
            [name, step, *_cells(pair)]
            for name, run in _named(report["steps"], names)
            for step, pair in run.items()
        ),
    )


def _cells(pair: Report) -> list[str]:
    ours, dense = pair["sizes"][OURS], pair["num_bytes"]
    return [
        _changed(pair),
        f"**{100 * ours / dense:.2f}**",
        f"{8 * ours / max(pair['num_changed'], 1):.2f}",
        f"{100 * pair['entropies']['flat']['sum'] / dense:.2f}",
        *(f"{pair['sizes'][rival] / ours:.2f} ×" for rival in RIVALS),
    ]


def chains(report: Report | None, *names: str) -> None:
    """The deltas of single steps, their sum, and the delta that does what all of them do."""
    if report is None:
        return
    chosen = list(_named(report["chains"], names))

    def columns(chain: Report) -> list[Report]:
        return [*chain["links"].values(), chain["compacted"]]

    def size(chain: Report, get: Any) -> list[str]:
        parts = columns(chain)
        shares = [100 * get(part) / part["num_bytes"] for part in parts]
        mean = sum(shares[:-1]) / (len(shares) - 1)
        return [f"{shares[0]:.3f}", f"{mean:.3f}", f"{sum(shares[:-1]):.2f}", f"{shares[-1]:.2f}"]

    def lines() -> Iterator[list[str]]:
        for name, chain in chosen:
            changed = [100 * p["num_changed"] / p["num_elements"] for p in columns(chain)]
            mean = sum(changed[:-1]) / (len(changed) - 1)
            yield [
                f"**{name}**: changed",
                f"{changed[0]:.2f}",
                f"{mean:.2f}",
                f"{sum(changed[:-1]):.1f}",
                f"{changed[-1]:.1f}",
            ]
            for codec in chain["compacted"]["sizes"]:
                label = f"**{codec}**" if codec == OURS else codec
                yield [label, *size(chain, lambda part, codec=codec: part["sizes"][codec])]
            for given, label in GIVEN.items():
                yield [label, *size(chain, lambda p, given=given: p["entropies"][given]["sum"])]

    number = len(chosen[0][1]["links"]) if chosen else 0
    rows(
        ["% of the weights", "step 1", "a step, mean", f"{number} steps, sum", "as one delta"],
        lines(),
    )


def speeds(report: Report | None) -> None:
    """Speeds of one thread, in GB of dense tensors for each second of processor time."""
    if report is None or not report["speeds"]:
        return

    info = report["provenance"]
    is_quiet = info["load_before"] < info["processors"]

    def lines() -> Iterator[list[str]]:
        for pair, by_threads in report["speeds"].items():
            one, two = by_threads["1"], by_threads["2"] if is_quiet else {}
            for name, part in _codecs(one):
                encode, decode = _rates(one, part)
                gains = NONE
                if name in two:
                    gains = ", ".join(
                        f"{part[way]['seconds'] / two[name][way]['seconds']:.2f} ×"
                        for way in ("encode", "decode")
                    )
                label = f"**{name}**" if name == OURS else name
                size = f"{100 * part['num_bytes'] / one['num_bytes']:.2f}"
                yield [pair, label, size, f"{encode:.2f}", f"{decode:.2f}", gains]

    rows(
        ["pair", "codec", "% of dense", "encode, GB/s", "decode, GB/s", "two threads"],
        lines(),
    )


def limits(report: Report | None) -> None:
    """What the machine does with the same bytes."""
    if report is None or not report["speeds"]:
        return
    pair, by_threads = next(iter(report["speeds"].items()))
    one = by_threads["1"]
    titles = {"copy": "copying", "read": "reading the file from the page cache", "xxh3_128": "xxh3"}
    parts = [
        f"{title} {one['num_bytes'] / one['limits'][key]['processor_seconds'] / 1e9:.1f}"
        for key, title in titles.items()
    ]
    print(
        f"Limits, on the same bytes ({pair}), in GB/s: {', '.join(parts)}. The load average was "
        f"{report['provenance']['load_before']:.0f} on {report['provenance']['processors']} "
        "processors, so all speeds are low."
    )


def _codecs(one: Report) -> Iterator[tuple[str, Report]]:
    return (
        (name, part) for name, part in one.items() if isinstance(part, Mapping) and "encode" in part
    )


def _rates(one: Report, part: Report) -> tuple[float, float]:
    return tuple(
        one["num_bytes"] / part[way]["processor_seconds"] / 1e9 for way in ("encode", "decode")
    )


def predictors_pay(report: Report | None) -> None:
    """Below which bandwidth predictors save more time on the wire than they take."""
    if report is None:
        return

    def line(name: str, one: Report) -> list[str]:
        parts = [one[OURS], one[f"{OURS}, --max-rank 0"]]
        small, large = (part["num_bytes"] / one["num_bytes"] for part in parts)
        rates = [_rates(one, part) for part in parts]
        encode, decode = (1 / with_ - 1 / without for with_, without in zip(*rates, strict=True))
        megabits = 8000 * (large - small)
        return [
            name,
            f"{100 * small:.2f} instead of {100 * large:.2f}",
            f"{encode:.1f}",
            f"{decode:.1f}",
            f"{megabits / (encode + decode):.0f}",
            f"{megabits / decode:.0f}" if decode > 0 else "always",
        ]

    rows(
        [
            "predictors",
            "% of dense",
            "more seconds to encode 1 GB",
            "to decode it",
            "pay below, Mbit/s",
            "coded before: below",
        ],
        (line(name, part["1"]) for name, part in report["speeds"].items()),
    )


def break_even(report: Report | None, pair: str) -> None:
    """Seconds until one GB of weights is there, by bandwidth, as a table and drawn."""
    if report is None or pair not in report["speeds"]:
        return
    one = report["speeds"][pair]["1"]
    codecs = [("dense", 1.0, 0.0, 0.0)]
    for name, part in _codecs(one):
        encode, decode = _rates(one, part)
        codecs.append((name, part["num_bytes"] / one["num_bytes"], 1 / encode, 1 / decode))

    def total(codec: tuple[str, float, float, float], gigabits: float) -> float:
        _, share, encode, decode = codec
        return encode + 8 * share / gigabits + decode

    def line(codec: tuple[str, float, float, float]) -> list[str]:
        name, share, encode, decode = codec
        cells = [name, *(f"{total(codec, gigabits):.2f}" for gigabits in SENDING)]
        if name == "dense":
            return [*cells, NONE, NONE]
        saved = 8 * (1 - share)
        return [*cells, f"{saved / (encode + decode):.1f}", f"{saved / decode:.1f}"]

    rows(
        [
            "seconds for 1 GB of weights",
            *(f"at {gigabits} Gbit/s" for gigabits in SENDING),
            "beats dense below, Gbit/s",
            "coded before: below",
        ],
        map(line, codecs),
    )
    marks = [
        {
            "arm": codec[0],
            "gigabits": 10 ** (place / 10),
            "seconds": total(codec, 10 ** (place / 10)),
        }
        for codec in codecs
        for place in range(-10, 21)
    ]
    names = [codec[0] for codec in codecs]
    places = {
        "x": vega.quantity(
            "gigabits",
            "bandwidth, Gbit/s",
            scale={"type": "log", "domain": [0.1, 100], "nice": False},
            values=[0.1, 1, 10, 100],
            labelExpr="format(datum.value, '~g')",
        ),
        "y": vega.quantity(
            "seconds",
            "seconds for 1 GB of weights: encode, send, decode",
            scale={"type": "log", "nice": False, "domain": [0.05, 100]},
            values=[0.1, 1, 10, 100],
            labelExpr="format(datum.value, '~g')",
        ),
        "color": vega.arm_colours(names),
    }
    figure = doc.Figure(
        "Where a delta beats sending dense",
        lambda: vega.chart(marks, vega.layer("line", places, strokeWidth=2), height=320),
        "",
        doc.table("", [], [], keys=()),
        tuple(doc.Key(f"dot-{place % vega.NUM_COLOURS}", name) for place, name in enumerate(names)),
    )
    page = doc.Document(
        sections=(doc.Section("", blocks=(figure,)),),
        source=f"{pair}, one thread to code and one to decode",
        date=report["provenance"]["date"],
    )
    (drawn,) = figure_files([page])
    print()
    show_drawing("delta-break-even.svg", drawn.content)


def memory(report: Report | None) -> None:
    """Time and memory of making, verifying and applying the deltas of large models."""
    if report is None:
        return

    def line(name: str, pair: Report, threads: str, step: str) -> list[str]:
        part = pair["steps"][threads][step]
        busy = part.get("busy_threads")
        return [
            f"{name}, {pair['num_bytes'] / 1e9:.1f} GB",
            step,
            threads,
            f"{part['num_bytes'] / 1e6:.0f} MB",
            f"{part['processor_seconds']:.3g}",
            f"{part['seconds']:.3g}",
            "" if busy is None else f"{busy:.2f}",
        ]

    rows(
        [
            "pair",
            "step",
            "threads",
            "peak memory",
            "processor seconds",
            "seconds",
            "threads with work",
        ],
        (
            line(name, pair, threads, step)
            for name, pair in report["pairs"].items()
            for threads, steps in pair["steps"].items()
            for step in steps
        ),
    )
    print()
    for name, pair in report["pairs"].items():
        info = pair["provenance"]
        largest = pair["num_bytes_of_largest_tensor"] / 1e6
        share = 100 * pair["num_bytes_of_delta"] / pair["num_bytes"]
        print(
            f"{name}: {pair['num_tensors']} tensors, the largest of {largest:.0f} MB; "
            f"{100 * pair['density']:.2f} % of the elements changed, and the delta has "
            f"{share:.2f} % of the bytes. Measured on {info['date'][:10]} with trimtab "
            f"{info['trimtab_version']} on {info['processors']} cores; the load was "
            f"{info['load_before']:.1f}.\n"
        )


def swaps(report: Report | None) -> None:
    """Times of swaps between two fine-tunes in memory, quickest first, and how it was measured."""
    if report is None:
        return
    info, (first, second) = report["provenance"], report["percent_of_delta_files"]
    rows(
        ["swap by", "processor ms per GB of weights", "memory for a further fine-tune"],
        (
            [
                f"**{name}**" if name in OUR_SWAPS else name,
                f"{way['processor_milliseconds_per_gigabyte']:,.0f}",
                f"{way['percent_in_memory']:.1f} %" if way["percent_in_memory"] else "–",
            ]
            for name, way in sorted(
                report["ways"].items(),
                key=lambda item: item[1]["processor_milliseconds_per_gigabyte"],
            )
        ),
    )
    different = report["percent_of_base_changed_by_merging"]
    print(
        f"\nThe delta files take {first:.2f} % and {second:.2f} % of the weights. After PEFT had "
        f"merged and unmerged its adapters, {different:.1f} % of the base's weights had other bits "
        "than before.\n\n"
        f"Measured on {info['date'][:10]} with trimtab {info['trimtab_version']}, torch "
        f"{info['torch_version']} and PEFT {info['peft_version']} on {info['processor']}, "
        f"{report['threads']} thread, medians of {2 * report['rounds']} swaps, "
        f"{report['num_bytes'] / 1e6:.0f} MB of weights. Processor time, because the machine was "
        f"shared (load average {info['load_before']:.0f} on {info['processors']} processors)."
    )
