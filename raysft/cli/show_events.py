"""What a person sees of single events; `console.Renderer` says when."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from raysft.cli.terminal import fact, findings, labelled, stderr, warning
from raysft.runs import events
from raysft.runs.metrics import duration
from raysft.verbs.registry import STUDIES


def show_data(facts: Mapping[str, Any]) -> None:
    formats = ", ".join(dict.fromkeys(source["format"] for source in facts["sources"]))
    fact(
        "records",
        f"{facts['num_read']:,} read as {formats}: {facts['num_records']:,} to train, "
        f"{facts['num_eval_records']:,} held out, {facts['num_dropped']:,} left out",
    )
    fact("template", f"{facts['template']}, answers end in {facts['end_token']}")
    prompt, response = facts["prompt_tokens"], facts["response_tokens"]
    fact(
        "tokens",
        f"{facts['tokens']:,}, {facts['supervised_share']:.0%} of them supervised; "
        f"a prompt has {prompt['mean']:,.0f} and a response {response['mean']:,.0f} on average",
    )
    findings(facts["findings"])


def show_workers(event: events.Workers) -> None:
    hardware = event.observed["gpu"] or event.observed["cpu"]
    total, trained = event.parameters, event.trained or event.parameters
    share = f"; {trained:,} of them are trained ({trained / total:.2%})"
    fact("parameters", f"{total:,}{share if trained < total else ''}")
    workers = event.world_size
    fact("hardware", f"{workers} worker{'' if workers == 1 else 's'}, {hardware}")
    optimizer, _, fallback = event.optimizer.partition("; ")
    fact("optimizer", optimizer)
    if event.products:
        fact("bf16 products", event.products)
    if fallback:
        warning(fallback)


def show_recovery(event: events.Recovered) -> None:
    fact("going on", f"{duration(event.seconds)} after it was noticed")
    for part, took in event.parts.items():
        fact("", f"{took:4.1f} s  {part}")


def profile_table(event: events.Profile) -> Table:
    table = Table(box=SIMPLE_HEAD, title=f"Where {event.steps} steps went", title_justify="left")
    for name in ("", "seconds", "share"):
        table.add_column(name, justify="right" if name else "left", style="" if name else "dim")
    for row in event.rows:
        table.add_row(row["phase"], f"{row['seconds']:.3f}", f"{row['share']:.1%}")
    return table


def show_sample(event: events.Sample) -> None:
    stderr.print()
    for name, style in (("instruction", "dim"), ("reference", "cyan"), ("answer", "green")):
        for number, line in enumerate(getattr(event, name).splitlines() or [""]):
            labelled(f"[dim]{'' if number else name:<11}[/]", 11, line, style)


def show_case(event: events.Case) -> None:
    fact(*STUDIES[event.study].words(event.result))


def show_check(event: events.Check) -> None:
    style = {"pass": "green", "warn": "yellow", "fail": "bold red"}[event.status]
    labelled(f"[{style}]{event.status}[/]  {event.name:<12} ", 19, event.found)
    if event.advice:
        labelled(" " * 19, 19, f"what to do: {event.advice}", "dim")
