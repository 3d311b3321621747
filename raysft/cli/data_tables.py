"""What `raysft data` shows: records as tokens, and the audit as tables."""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from raysft.data.preview import Token, View
from raysft.studies.tables import FittedTable, Heading

# Kind of token -> (mark in the margin, style). The mark tells it without colour.
KINDS = {
    "prompt": ("  ", "cyan"),
    "trained": ("+ ", "bold green"),
    "cut": ("x ", "red strike"),
}
SPECIAL_STYLE = "reverse"
BORDER = Text("|", style="dim")
HISTOGRAM_WIDTH = 24  # characters of the longest bar, where there are two columns of them
BAR_STYLES = ("cyan", "green", "red")  # of prompts, answers, and rejected ones


def legend() -> Text:
    return Text.assemble(
        "Margin: ",
        ("+ trained", KINDS["trained"][1]),
        ", ",
        ("x cut, beyond batch.seq_len", KINDS["cut"][1]),
        ", ",
        ("blank: prompt", KINDS["prompt"][1]),
        ". Tokens lie between ",
        BORDER,
        ", a special one in ",
        ("[[ ]]", SPECIAL_STYLE),
        "; a line break is written ⏎.",
    )


def kind(token: Token) -> str:
    return "cut" if token.cut else "trained" if token.supervised else "prompt"


def print_record(view: View, console: Console) -> None:
    """One record; a line ends with each change of kind, after each line break and at the edge."""
    if view.problem is not None:
        parts = (view.where, "bold"), f", {view.format}: ", (view.problem, "red")
        console.print(Text.assemble(*parts), soft_wrap=True)
        return
    counts = {name: sum(kind(t) == name for t in view.tokens) for name in KINDS}
    words = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    console.print(Text.assemble((view.where, "bold"), f", {view.format}: {words}"), soft_wrap=True)
    for name, run in groupby(view.tokens, key=kind):
        mark, style = KINDS[name]
        for line in lines_of(list(run), style, console.width - len(mark)):
            console.print(Text(mark, style=style).append_text(line), soft_wrap=True)


def lines_of(tokens: Iterable[Token], style: str, width: int) -> list[Text]:
    """Tokens between borders: a new line at the edge, and after each token that ends one."""
    lines = [BORDER.copy()]
    for token in tokens:
        shown = f"[[{token.text}]]" if token.special else token.text.replace("\n", "⏎")
        ended = "⏎" in lines[-1].plain[-3:]
        full = lines[-1].cell_len + cell_len(shown) + 1 > width and len(lines[-1]) > 1
        if ended or full:
            lines.append(BORDER.copy())
        lines[-1].append(shown, style=f"{style} {SPECIAL_STYLE}" if token.special else style)
        lines[-1].append_text(BORDER)
    return lines


def print_audit(facts: Mapping[str, Any], console: Console) -> None:
    """The audit as tables; the findings come last, where they are read."""
    for renderable in (counts_table(facts), lengths_table(facts), fit_table(facts)):
        console.print(renderable)
    console.print(histogram_table(facts["histogram"], console.width))
    console.print()


def new_table(title: str, *columns: str) -> FittedTable:
    first, *others = columns
    headings = [Heading(first, "left", folds=True, style="dim"), *map(Heading, others)]
    return FittedTable(f"\n{title}", headings)


def counts_table(facts: Mapping[str, Any]) -> RenderableType:
    total = facts["num_conversations"]
    table = new_table("Records", "", "count", "share")

    def row(name: str, count: int, of: int) -> None:
        table.add_row(escape(name), f"{count:,}", f"{count / max(1, of):.1%}")

    for source in facts["sources"]:
        weight = "" if source["weight"] == 1 else f", weight {source['weight']:g}"
        row(f"{source['path']} as {source['format']}{weight}", source["records"], total)
    row("read", facts["num_read"], facts["num_read"])
    for reason, count in facts["dropped"].items():
        row(f"left out: {reason}", count, facts["num_read"])
    row("kept", total, facts["num_read"])
    row("end token supervised", facts["end_token_supervised"], total)
    row("repeat another", facts["duplicates"], total)
    row("prompt ends in a space", facts["space_before_answer"], total)
    row("special token in the text", facts["special_in_text"], total)
    if pairs := facts.get("pairs"):
        row("pairs that differ in length alone", pairs["only_length"], total)
        row("pairs in both directions", pairs["both_directions"], total)
        row("pairs with a margin", pairs["with_margin"], total)
    template = f"template {facts['template']}, answers end in {facts['end_token']}"
    return Group(table, Text(f" {template}", style="dim"))


def lengths_table(facts: Mapping[str, Any]) -> RenderableType:
    table = new_table("Tokens a record, before any cut", "", "mean", "p50", "p95", "max")
    rows = [("prompt, L_Q", "prompt_tokens"), ("response, L_A", "response_tokens")]
    if "pairs" in facts:
        rows[1:] = [("chosen", "response_tokens"), ("rejected", "rejected_tokens")]
    for name, key in rows:
        cells = facts[key]
        table.add_row(
            name,
            f"{cells['mean']:,.1f}",
            *(f"{cells[column]:,.0f}" for column in ("p50", "p95", "max")),
        )
    tokens, trained = f"{facts['tokens']:,}", f"{facts['supervised_tokens']:,}"
    share = f"{facts['supervised_share']:.1%}"
    words = f" {tokens} tokens are kept, {trained} of them ({share}) trained"
    if weight := facts.get("prompt_loss_weight"):
        words += f" as answers\n those of prompts weigh {weight:g} each: "
        words += f"{facts['prompt_loss_share']:.1%} of the loss"
    return Group(table, Text(words, style="dim"))


def fit_table(facts: Mapping[str, Any]) -> FittedTable:
    table = new_table(
        "If batch.seq_len were",
        "tokens",
        "prompts\ncut",
        "responses\ncut",
        "padding",
        "when\npacked",
    )
    for length, at in facts["at"].items():
        here = " (as set)" if int(length) == facts["seq_len"] else ""
        table.add_row(
            f"{int(length):,}{here}",
            f"{at['prompts_truncated']:,}",
            f"{at['responses_truncated']:,}",
            f"{at['padding_share']:.1%}",
            f"{at['packing_padding_share']:.1%}",
        )
    return table


def histogram_table(bins: Mapping[str, list[int]], width: int) -> Table:
    """In so many columns."""
    table = Table(
        box=SIMPLE_HEAD, title="\nRecords by tokens", title_justify="left", title_style="bold"
    )
    table.show_edge = False
    styles = dict(zip((name for name in bins if name != "up_to"), BAR_STYLES, strict=False))
    for name, style in (("up to", "dim"), *((name, "") for name in styles)):
        table.add_column(name, style=style, no_wrap=True)
    tallest = max([1, *(count for name in styles for count in bins[name])])
    each = (width - 12) // len(styles) - 2 - len(f" {tallest:,}")
    room = max(1, min(2 * HISTOGRAM_WIDTH // len(styles), each))
    for row, up_to in enumerate(bins["up_to"]):
        bars = (bar(bins[name][row], tallest, room, style) for name, style in styles.items())
        table.add_row(f"{up_to:,}", *bars)
    return table


def bar(count: int, tallest: int, room: int, style: str) -> Text:
    """At least a thin bar wherever there is a record; the longest has so many characters."""
    eighths = -(-8 * room * count // tallest)
    blocks = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return Text.assemble((blocks, style), f" {count:,}" if count else "")
