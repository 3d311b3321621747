"""The ledger of injected faults as Markdown."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from raysft.runs import provenance

if TYPE_CHECKING:
    from tests.faults.conftest import Fault

ENDS = ("healed by itself", "went on with --resume", "a clear error", "lost")


def report(faults: Sequence["Fault"]) -> str:
    observed = provenance.observed()
    versions = ", ".join(f"{name} {version}" for name, version in observed["versions"].items())
    lines = [
        "# Injected faults",
        "",
        "CPU figures. `make test-faults` runs the demo in brief (60 steps, 2 ZeRO-3 workers,",
        "fp32), does each of these to it, and compares the losses, gradient norms and held-out",
        "losses of all steps with those of a run that nothing happened to. Seeds are fixed.",
        "",
        f"Hardware: {observed['cpu']}, {observed['cpu_count']} CPUs, no GPU. {versions}.",
        "",
        *table(
            ("fault", "injected", *ENDS, "largest difference"),
            [row_of(kind, faults) for kind in dict.fromkeys(fault.kind for fault in faults)]
            + [row_of(None, faults)],
        ),
        "",
        *(how_long(faults) if noticed(faults) else []),
        "## Every one of them",
        "",
        *table(
            ("fault", "where", "ended", "largest difference", "noticed, s", "recovered, s"),
            [details(fault) for fault in faults],
        ),
        "",
    ]
    return "\n".join(lines)


def how_long(faults: Sequence["Fault"]) -> list[str]:
    recovered = [fault for fault in faults if fault.recovery]
    known, seconds = noticed(faults), [fault.recovery["seconds"] for fault in recovered]
    return [
        "## How long it takes",
        "",
        f"From the fault to the run's word about it ({len(known)} killed workers): median "
        f"{median(known):.1f} s, at most {max(known):.1f} s. From there to the first step of the "
        f"new workers ({len(recovered)} restarts): median {median(seconds):.1f} s, at most "
        f"{max(seconds):.1f} s, of which",
        "",
        *table(("part", "median, s", "most, s"), parts(recovered)),
        "",
    ]


def row_of(kind: str | None, faults: Sequence["Fault"]) -> tuple[str, ...]:
    """Of one kind, or of all."""
    some = [fault for fault in faults if kind in (None, fault.kind)]
    ends = Counter(fault.ended for fault in some)
    largest = [fault.difference for fault in some if fault.difference is not None]
    counts = [str(ends[end] or "") for end in ENDS]
    return (kind or "all", str(len(some)), *counts, number(max(largest, default=None)))


def details(fault: "Fault") -> tuple[str, ...]:
    noticed_s = "" if fault.noticed_s is None else f"{fault.noticed_s:.1f}"
    recovered_s = f"{fault.recovery['seconds']:.1f}" if fault.recovery else ""
    end = number(fault.difference)
    return fault.kind, fault.where, fault.ended, end, noticed_s, recovered_s


def number(difference: float | None) -> str:
    if difference is None:
        return ""
    return "0" if difference == 0 else f"{difference:.0e}"


def noticed(faults: Sequence["Fault"]) -> list[float]:
    return [fault.noticed_s for fault in faults if fault.noticed_s is not None]


def parts(recovered: Sequence["Fault"]) -> list[tuple[str, ...]]:
    names = dict.fromkeys(name for fault in recovered for name in fault.recovery["parts"])
    rows = []
    for name in names:
        seconds = [fault.recovery["parts"].get(name, 0.0) for fault in recovered]
        rows.append((name, f"{median(seconds):.1f}", f"{max(seconds):.1f}"))
    return rows


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    listed = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in listed]
