"""What a set supervises, as numbers, and what in it would hurt training, as findings."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysft.config.data import Source
from raysft.config.schema import Config
from raysft.data.dataset import Prepared
from raysft.data.folders import in_words
from raysft.data.layout import WAYS_OUT
from raysft.data.pack import bins_for
from raysft.data.pair_audit import halves, pair_facts, pair_findings
from raysft.data.sources import find_files, sources
from raysft.data.template import Template
from raysft.data.tokenize import cuts

LENGTHS = (512, 1024)  # at which truncation and padding are told besides batch.seq_len
SHOWN = 8  # fields in a message
SLICE = 1 << 18  # records looked at together


class Finding(NamedTuple):
    """Something that hurts training, in how many records, and what to do about it."""

    name: str
    records: int
    message: str
    advice: str


def audit(config: Config, template: Template, prepared: Prepared) -> dict[str, Any]:
    """Plain numbers about all records of `data.path`, those held out among them.

    `prompt_tokens` and `response_tokens` (L_Q and L_A) are per record and before any cut, end
    tokens among the response; of pairs, the chosen one. `padding_share` is the part of all
    positions that would be padding with every record padded to T, `packing_padding_share` with
    records packed into T. `supervised_tokens` are those of answers, whatever prompts weigh;
    `prompt_loss_share` is the prompts' part of all the weight in the loss.
    """
    records, counts = prepared.tokenised.records, prepared.tokenised.counts
    lengths = sorted({config.batch.seq_len, *LENGTHS})
    pairs = counts.pairs
    answers = records["answers"]
    prompts = records["lead"] if pairs else records["full_length"] - answers
    bars = {"prompt": prompts, "response": answers}
    if pairs:
        bars = {"prompt": prompts, "chosen": answers, "rejected": records["rejected_answer"]}
    parts = sources(config.data, config.data.path)
    by_source = np.bincount(records["source"], minlength=len(parts))
    tokens, supervised = int(records["length"].sum()), int(records["supervised"].sum())
    weight = config.data.prompt_loss_weight
    of_prompts = weight * (tokens - len(records) - supervised)  # nothing predicts a first token
    facts: dict[str, Any] = {
        "sources": [
            {"path": part.path, "weight": part.weight, "format": name, "records": int(number)}
            for part, name, number in zip(parts, counts.formats, by_source, strict=True)
        ],
        "template": template.name,
        "end_token": template.end_token,
        "seq_len": config.batch.seq_len,
        "num_read": counts.num_read,
        "num_dropped": sum(counts.dropped.values()),
        "dropped": dict(counts.dropped),
        "first_dropped": counts.first_dropped,
        "first_bad": counts.first_bad,
        "num_conversations": len(records),
        "num_records": len(prepared.train),
        "num_eval_records": len(prepared.heldout),
        "prompt_tokens": distribution(prompts),
        "response_tokens": distribution(answers),
        "histogram": histogram(bars),
        "tokens": tokens,
        "supervised_tokens": supervised,
        "supervised_share": supervised / max(1, tokens),
        "prompt_loss_weight": weight,
        "prompt_loss_share": of_prompts / max(1, supervised + of_prompts),
        "end_token_supervised": int(records["ended"].sum()),
        "end_token_missing": int((~records["ended"]).sum()),
        "duplicates": len(records) - len(np.unique(records["key"])),
        "duplicates_dropped": prepared.num_duplicates_dropped,
        "heldout_in_train": heldout_in_train(prepared),
        "unread_fields": dict(counts.unread.most_common()),
        "files_left_out": files_left_out(parts),
        "at": {
            str(length): pair_at_length(records, length) if pairs else at_length(records, length)
            for length in lengths
        },
    }
    flags = (
        "space_before_answer", "special_in_text", "blank_prompt", "unanswered", "unwritten",
        "empty_answer",
    )  # fmt: skip
    facts |= {flag: int(records[flag].sum()) for flag in flags}
    if pairs:
        facts["rejected_tokens"] = distribution(records["rejected_answer"])
        facts["pairs"] = pair_facts(records)
    facts["unwritten_characters"] = dict(counts.unwritten.most_common(20))
    facts["moving_date"] = len(records) if "strftime_now(" in template.source else 0
    if prepared.heldout_counts is not None:
        facts["heldout_dropped"] = dict(prepared.heldout_counts.dropped)
    facts["findings"] = [finding._asdict() for finding in findings(facts)]
    return facts


def distribution(values: NDArray[np.integer[Any]]) -> dict[str, float]:
    if not len(values):
        return {"mean": 0.0, "p50": 0.0, "p95": 0.0, "max": 0}
    p50, p95 = np.percentile(values, [50, 95])
    return {
        "mean": round(float(values.mean()), 1),
        "p50": float(p50),
        "p95": float(p95),
        "max": int(values.max()),
    }


def histogram(values: Mapping[str, NDArray[np.integer[Any]]]) -> dict[str, list[int]]:
    """Records by length in bins that double: `up_to` [n] are the bins' last lengths."""
    longest = max((int(v.max()) for v in values.values() if len(v)), default=1)
    up_to = [8]
    while up_to[-1] < longest:
        up_to.append(2 * up_to[-1])
    edges = np.array([-1, *up_to]) + 1
    counts = {name: np.histogram(v, edges)[0].tolist() for name, v in values.items()}
    # The last bin of numpy's histogram takes both its edges; nothing lies on the outer one.
    return {"up_to": up_to, **counts}


def at_length(records: NDArray[Any], seq_len: int) -> dict[str, Any]:
    """Truncation and padding if `batch.seq_len` were this."""
    prompts = responses = 0
    counts = np.zeros(seq_len + 1, np.int64)  # records by the tokens that are kept of them
    for begin in range(0, len(records), SLICE):  # so that memory does not grow with the set
        some = records[begin : begin + SLICE]
        full, lead, first_end = (
            some[name].astype(np.int64) for name in ("full_length", "lead", "first_end")
        )
        prompt_cut, response_cut = cuts(full, lead, first_end, seq_len)
        prompts += int((prompt_cut > 0).sum())
        responses += int((response_cut > 0).sum())
        counts += np.bincount(full - prompt_cut - response_cut, minlength=seq_len + 1)
    used = int((counts * np.arange(seq_len + 1)).sum())
    return {
        "prompts_truncated": prompts,
        "responses_truncated": responses,
        "padding_share": 1 - used / max(1, seq_len * len(records)),
        "packing_padding_share": 1 - used / max(1, seq_len * bins_for(counts, seq_len)),
    }


def pair_at_length(records: NDArray[Any], seq_len: int) -> dict[str, Any]:
    """As at_length: of pairs those that are cut, and the padding of their conversations."""
    found, of_halves = at_length(records, seq_len), at_length(halves(records), seq_len)
    return found | {name: of_halves[name] for name in found if name.endswith("padding_share")}


def heldout_in_train(prepared: Prepared) -> int:
    """Held-out records that are trained on as well."""
    trained = prepared.tokenised.records["key"][prepared.kept]
    return int(np.isin(prepared.heldout_keys, trained).sum())


def files_left_out(parts: Sequence[Source]) -> dict[str, list[str]]:
    """Reason -> files beside those that are read."""
    result: dict[str, list[str]] = {}
    for part in parts:
        for reason, names in find_files(part).left_out.items():
            result.setdefault(reason, []).extend(names)
    return result


def findings(facts: Mapping[str, Any]) -> list[Finding]:
    """Those that concern at least one record, in the order of their weight."""
    seq_len = facts["seq_len"]
    here = facts["at"][str(seq_len)]
    dropped = [
        Finding("dropped", count, f"left out: {reason} (first: {facts['first_dropped'][reason]})",
                dropped_advice(facts, reason))
        for reason, count in facts["dropped"].items()
    ]  # fmt: skip
    heldout = [
        Finding("heldout_dropped", count, f"of data.eval_path left out: {reason}", "mend the file")
        for reason, count in facts.get("heldout_dropped", {}).items()
    ]
    table = [
        ("responses_truncated", here["responses_truncated"],
         f"the end of the last answer is cut off at batch.seq_len = {seq_len}",
         "a cut answer teaches no end: raise batch.seq_len, or leave them out with "
         "data.truncate = false"),
        ("prompts_truncated", here["prompts_truncated"],
         f"the start of the prompt is cut off at batch.seq_len = {seq_len}",
         "raise batch.seq_len, shorten the prompts, or leave them out with data.truncate = false"),
        ("end_token_missing", facts["end_token_missing"],
         f"no end token {facts['end_token']} is trained after the last answer",
         "a model that never sees it does not learn to stop: raise batch.seq_len"),
        ("heldout_in_train", facts["heldout_in_train"],
         "held out and also trained on, which flatters the held-out loss",
         "take them out of data.path, or name another data.eval_path"
         if "heldout_dropped" in facts else "set data.drop_duplicates = true"),
        ("duplicates", facts["duplicates"] if not facts["duplicates_dropped"] else 0,
         "the same as another, word for word, so that they weigh more than the rest",
         "set data.drop_duplicates = true"),
        ("unread_fields", max(facts["unread_fields"].values(), default=0),
         f"fields whose text is not trained: {counted(facts['unread_fields'])}",
         "map what belongs to the prompt or the answer, with data.fields.context, .system and "
         "others; leave the rest"),
        ("files_left_out", sum(map(len, facts["files_left_out"].values())),
         f"files that are not read: {in_words(facts['files_left_out'])}",
         "name those that hold records in data.path, or set data.split; else nothing"),
        ("space_before_answer", facts["space_before_answer"],
         "the prompt ends in a space, after which an answer rarely begins",
         "GPT-2's tokens carry their leading space: strip the prompts, or mend the template"),
        ("special_in_text", facts["special_in_text"],
         "the text spells a special token, which stays text and gets no meaning",
         "if it was meant as one, split the text into turns; if not, remove it"),
        ("unwritten", facts["unwritten"],
         "the tokenizer has no token for some of the characters, which it leaves out or calls "
         f"unknown: {' '.join(list(facts['unwritten_characters'])[:10])}",
         "take a tokenizer that falls back to bytes, as GPT-2's does, or replace the characters"),
        ("moving_date", facts["moving_date"],
         "the template writes the date of the day in a way that data.date does not reach",
         "prompts of another day differ: write the date as text, in a template of your own"),
        ("empty_answer", facts["empty_answer"], "an answer among others is empty",
         "it is not trained, because it would teach to end at once: remove it, or add its words"),
        ("blank_prompt", facts["blank_prompt"], "the prompt has no words",
         "remove them, or give them as plain text: a field `text`"),
        ("unanswered", facts["unanswered"], "turns follow the last answer",
         "they train nothing and are left out: remove them, or add the answer"),
    ]  # fmt: skip
    if "pairs" in facts:
        table += pair_findings(facts["pairs"], facts["num_conversations"])
    return [*dropped, *heldout, *(Finding(*row) for row in table if row[1])]


def counted(fields: Mapping[str, int]) -> str:
    """`category` in 3 records, ...: the most frequent ones."""
    names = [f"{name!r} (in {count:,})" for name, count in list(fields.items())[:SHOWN]]
    more = f" and {len(fields) - SHOWN:,} more" if len(fields) > SHOWN else ""
    return ", ".join(names) + more


def dropped_advice(facts: Mapping[str, Any], reason: str) -> str:
    if reason.startswith("the template"):
        return WAYS_OUT
    if reason == "longer than batch.seq_len":
        return "raise batch.seq_len, or cut them with data.truncate = true"
    if facts["first_bad"] and "lost" in reason:
        return f"replace the file: {facts['first_bad']}"
    return "mend or remove them"
