"""Two results of `bench seq-len` side by side, and whether the second is worse."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from raysft.errors import UserError
from raysft.studies.numbers import median
from raysft.studies.seq_len.report import read_results


def compare(first: Path, second: Path, tolerance: float, out: Console) -> int:
    """Print both and what differs; 1 if the second is worse. Raises UserError."""
    (_, a), (_, b) = read_results(first), read_results(second)
    found = pairs(a, b)
    if not found:
        raise UserError(f"{first} and {second} have no case in common")
    out.print(f"A  {first}: {a['title']}\nB  {second}: {b['title']}")
    for line in differences(a["config"], b["config"]):
        out.print(f"  {line}")
    out.print(comparison_table(found, tolerance))
    alone = len(a["cases"]) + len(b["cases"]) - 2 * len(found)
    if alone:
        out.print(f"{alone} cases are in one of them only")
    return int(any(pair.worse(tolerance) for pair in found))


class Pair(NamedTuple):
    seq_len: int
    sequences: int
    step_time_s: tuple[float | None, float | None]  # medians
    memory_gib: tuple[float | None, float | None]
    status: tuple[str, str]

    def worse(self, tolerance: float) -> bool:
        """The second is slower or larger by more than the tolerance, or did not end."""
        if self.status[1] != "done":
            return self.status[0] == "done"
        return any(
            a is not None and b is not None and b > a * (1 + tolerance)
            for a, b in (self.step_time_s, self.memory_gib)
        )


def pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Pair]:
    """The cases that both have, by length and number of sequences."""
    others = {(case["seq_len"], case["sequences"]): case for case in b["cases"]}
    found = []
    for one in a["cases"]:
        other = others.get((one["seq_len"], one["sequences"]))
        if other:
            found.append(
                Pair(
                    one["seq_len"],
                    one["sequences"],
                    (median(one["step_times_s"]), median(other["step_times_s"])),
                    (one["peak_memory_gib"], other["peak_memory_gib"]),
                    (one["status"], other["status"]),
                )
            )
    return found


def differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Keys of two configs that differ, with both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted({*a, *b} - {"name", "storage"})
        return [
            line for key in keys for line in differences(a.get(key), b.get(key), f"{prefix}{key}.")
        ]
    return [] if a == b else [f"{prefix.rstrip('.')}: {a!r} and {b!r}"]


def comparison_table(found: list[Pair], tolerance: float) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("T", "sequences", "A p50, s", "B p50, s", "B/A", "A, GiB", "B, GiB", "B/A", ""):
        table.add_column(heading, justify="right")
    for pair in found:
        worse = pair.worse(tolerance)
        table.add_row(
            f"{pair.seq_len:,}",
            f"{pair.sequences:,}",
            *three(pair.step_time_s, pair.status),
            *three(pair.memory_gib, pair.status),
            f"worse by more than {tolerance:.0%}" if worse else "",
            style="red" if worse else "",
        )
    return table


def three(values: tuple[float | None, float | None], status: tuple[str, str]) -> list[str]:
    a, b = values
    texts = [s if v is None else f"{v:.2f}" for v, s in zip(values, status, strict=True)]
    return [*texts, f"{b / a:.2f}" if a and b else ""]
