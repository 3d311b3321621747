"""The model card: README.md of an exported folder, as the Hugging Face hub shows it.

It goes to strangers: names of files stand in it, and no paths, accounts or secrets.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raysft.config.data import DEMO
from raysft.config.schema import Config
from raysft.data.sources import looks_like_hub_id, sources
from raysft.model.card_code import usage
from raysft.model.files import is_adapter
from raysft.runs import metrics, rundir
from raysft.runs.provenance import command_without_places, without_places

FILE = "README.md"
COMMIT_LENGTH = 40  # of a hub model's identity in run.json; that of a folder is a shorter digest
HUB_TIMEOUT_S = 5
TAGS = {"reward": "reward-model", "dpo": "dpo", "ppo": "ppo"}  # of verbs; of others, "sft"
Facts = Mapping[str, Any]  # as in summary.json; what is not known is left out of the card


def write_card(config: Config, folder: Path, facts: Facts, repo: str | None = None) -> None:
    """repo: its name on the hub, where it goes there."""
    base, verb = base_model(config, facts), facts.get("verb", "train")
    license = config.run.license or declared_license("model", base)
    sections = (
        front_matter(config, folder, base, license, verb),
        f"# {(repo or config.run.name or folder.name).rpartition('/')[2]}\n\n"
        f"{what_it_is(config, verb)}",
        f"## Use\n\n{usage(folder, repo, verb)}",
        f"## Data\n\n{data(config, facts)}",
        f"## Training\n\n{table(training(config, facts))}",
        f"## Results\n\n{table(results(facts))}",
        f"## Where it ran\n\n{table(where(facts))}\n\n{command(facts)}",
        "" if license else "The license is not stated: neither the run nor its base model names "
        "one. `run.license` in the config of the run does.",
    )  # fmt: skip
    (folder / FILE).write_text("\n\n".join(filter(None, sections)) + "\n")


def facts_of(run_dir: Path, step: int | None = None) -> dict[str, Any]:
    """What a run left. With a step, as of the checkpoint after it, which need not be the last."""
    spec = rundir.read_json(run_dir / rundir.RUN)
    facts: dict[str, Any] = {
        key: spec[key] for key in ("verb", "stamp", "identities") if key in spec
    }
    if (run_dir / rundir.SUMMARY).exists():
        summary = rundir.read_json(run_dir / rundir.SUMMARY)
        if summary.get("status") == "done" and step in (None, summary.get("steps")):
            return summary | facts
        facts |= {key: summary[key] for key in ("data", "workers") if key in summary}
    return facts | ({"steps": step} | losses_until(run_dir, step) if step else {})


def losses_until(run_dir: Path, step: int) -> dict[str, float]:
    """The first and last of metrics.jsonl, up to a step."""
    found: dict[str, float] = {}
    file = run_dir / rundir.METRICS
    for line in file.read_text(errors="replace").splitlines() if file.exists() else ():
        try:
            values = json.loads(line)
            if values["step"] > step:
                break
        except (ValueError, KeyError, TypeError):  # cut short by a crash
            continue
        for key, name in (("loss", "train_loss"), ("eval_loss", "eval_loss")):
            if values.get(key) is not None:
                found.setdefault(f"{name}_first", values[key])
                found[f"{name}_last"] = values[key]
    return found


def base_model(config: Config, facts: Facts) -> str | None:
    """What was fine-tuned: a hub id or a folder; None from scratch."""
    if config.model.init == "scratch" or config.model.path is None:
        return None
    known = facts.get("identities", {}).get("model")
    if known and len(known) != COMMIT_LENGTH:
        return str(Path(config.model.path).absolute())
    return config.model.path


def is_hub_model(path: str) -> bool:
    return path[:1] not in "./~" and path.count("/") < 2 and not Path(path).exists()


def is_hub_dataset(path: str) -> bool:
    return looks_like_hub_id(path) and not Path(path).exists() and "*" not in path


def declared_license(kind: str, path: str | None) -> str | None:
    """Of a model or dataset, by its own card; None where that names none, or does not answer."""
    from huggingface_hub import HfApi, ModelCard

    if path is None:
        return None
    try:
        if kind == "model" and not is_hub_model(path):
            found = getattr(ModelCard.load(Path(path) / FILE).data, "license", None)
        else:
            ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
            about = ask(path, timeout=HUB_TIMEOUT_S).card_data
            found = getattr(about, "license", None)
    except Exception:  # no card, no connection, no YAML: each library raises its own
        return None
    return found if isinstance(found, str) else None


def front_matter(
    config: Config, folder: Path, base: str | None, license: str | None, verb: str
) -> str:
    from huggingface_hub import ModelCardData

    task = "text-classification" if verb == "reward" else "text-generation"
    datasets = [part.path for part in sources(config.data, config.data.path)]
    known = ModelCardData(
        library_name="peft" if is_adapter(folder) else "transformers",
        pipeline_tag=task,
        base_model=base if base and is_hub_model(base) else None,
        license=license,
        datasets=[path for path in datasets if is_hub_dataset(path)] or None,
        tags=["raysft", TAGS.get(verb, "sft"), task],
    )
    return f"---\n{known.to_yaml()}\n---"


def name_of(path: str | None) -> str:
    """What a stranger may read of a path: a hub id whole, else its last part."""
    if path == DEMO:
        return "the built-in demo records"
    if path is None or is_hub_dataset(path):
        return str(path)
    return path.partition("?")[0].rstrip("/").rpartition("/")[2]


def trained_on(config: Config) -> str:
    weight = config.data.prompt_loss_weight
    if 0 < weight < 1:
        return f"all tokens, those outside the answers with weight {weight:g}"
    return "all tokens" if weight else "response tokens only"


def learnt_from(config: Config, verb: str) -> str:
    """On what, and what was minimised."""
    pairs, dpo = "on pairs of a better and a worse answer", config.dpo
    if verb == "reward":
        return f"{pairs} to give an answer a number, its reward, by the loss of Bradley and Terry"
    if verb == "dpo":
        name = "IPO" if dpo.loss == "ipo" else "direct preference optimisation (DPO)"
        nll = f" and the better answer's negative log-likelihood a token times {dpo.nll_weight:g}"
        return f"{pairs} by {name} with beta {dpo.beta:g}{nll if dpo.nll_weight else ''}"
    if verb == "ppo":
        beta = f"a KL penalty of {config.ppo.beta:g}"
        return f"on rewards of its own answers to instructions, by policy gradients with {beta}"
    return f"on instructions and their answers, with the loss on {trained_on(config)}"


def what_it_is(config: Config, verb: str) -> str:
    path = config.model.path
    if config.model.init == "scratch":
        start = "A GPT-2" if config.model.shape else f"A model like {name_of(path)}"
        start += ", trained from scratch"
    else:
        start = f"{path if path and is_hub_model(path) else name_of(path)}, fine-tuned"
    return (
        f"{start} {learnt_from(config, verb)}. "
        "It was not tested for anything beyond the figures below."
    )


def data(config: Config, facts: Facts) -> str:
    known = facts.get("data", {})
    parts = sources(config.data, config.data.path)
    counted = known.get("sources", [{}] * len(parts))
    rows = ["| data | format | records |", "|---|---|---|"]
    for part, told in zip(parts, counted, strict=False):
        license = declared_license("dataset", part.path) if is_hub_dataset(part.path) else None
        named = name_of(part.path) + (f" (license: {license})" if license else "")
        weight = f", {part.weight:g} times an epoch" if part.weight != 1 else ""
        number = f"{told['records']:,}{weight}" if "records" in told else ""
        rows.append(f"| {named} | {told.get('format', part.format)} | {number} |")
    if not known:
        return "\n".join(rows)
    dropped = [f"{n:,} {without_places(why)}" for why, n in known.get("dropped", {}).items()]
    return "\n".join(rows) + (
        f"\n\n{known['num_read']:,} records were read, {known['num_dropped']:,} left out"
        + (f" ({'; '.join(dropped)})" if dropped else "")
        + f", {known['num_records']:,} trained on, {known['num_eval_records']:,} held out. "
        f"Answers end in `{known['end_token']}`."
    )


def training(config: Config, facts: Facts) -> Iterator[tuple[str, Any]]:
    batch, optim, schedule = config.batch, config.optim, config.schedule
    template = facts.get("data", {}).get("template", config.data.template)
    warmup = f"{schedule.warmup_steps} steps" if schedule.warmup_steps is not None else (
        f"{schedule.warmup_ratio:.1%} of the steps" if schedule.warmup_ratio is not None else None
    )  # fmt: skip
    yield "steps", facts.get("steps")
    yield "epochs", None if config.run.max_steps else config.run.epochs
    yield "template", name_of(template)
    yield "sequence length", f"{batch.seq_len:,} tokens{', packed' if batch.packing else ''}"
    counted = {"reward": "pairs", "dpo": "pairs", "ppo": "answers"}
    records = counted.get(facts.get("verb", ""), "records")
    yield "global batch", f"{batch.global_batch_size:,} {records}"
    yield "optimizer", f"{optim.name}, weight decay {optim.weight_decay:g}"
    floor = "" if schedule.name == "constant" else f" to {optim.lr * schedule.min_lr_ratio:g}"
    yield "learning rate", f"{optim.lr:g}, {schedule.name}{floor}"
    yield "warmup", warmup
    yield "gradient clipping", optim.max_grad_norm
    yield "precision", config.engine.precision
    yield "ZeRO stage", config.engine.zero_stage
    yield "dropout", config.model.dropout
    yield "adapter", config.adapter.words
    yield "seed", config.run.seed


def results(facts: Facts) -> Iterator[tuple[str, Any]]:
    verb = facts.get("verb")
    unit = "a pair" if verb in ("reward", "dpo") else "nats a token"
    for key, words in (("train_loss", "training loss"), ("eval_loss", "held-out loss")):
        first, last = (facts.get(f"{key}_{which}") for which in ("first", "last"))
        both = None not in (first, last)
        if verb == "ppo" and key == "train_loss":
            continue  # of a policy gradient it tells nothing
        yield f"{words}, {unit}", f"{first:.4f} to {last:.4f}" if both else None
    right = [facts.get(f"measures_{end}", {}).get("eval_accuracy") for end in ("first", "last")]
    if None not in right:
        yield "held-out pairs told apart", f"{right[0]:.1%} to {right[1]:.1%}"
    if facts.get("exact_match") is not None:
        records = facts["exact_match_records"]
        yield "held-out answers equal to theirs", f"{facts['exact_match']:.1%} of {records:,}"


def where(facts: Facts) -> Iterator[tuple[str, Any]]:
    workers = facts.get("workers", {})
    if seen := workers.get("observed"):
        number = workers["world_size"]
        yield "workers", f"{number}, each on {seen['gpu'] or seen['cpu']}"
        versions = {"Python": seen["python"], **seen["versions"]}
        yield "versions", ", ".join(f"{name} {v}" for name, v in versions.items() if v)
    if "wall_s" in facts:
        yield "took", metrics.duration(facts["wall_s"])
    yield "restarts", facts.get("num_restarts")
    yield "begun", facts.get("stamp", {}).get("utc")


def command(facts: Facts) -> str:
    typed = facts.get("stamp", {}).get("command")
    if not typed:
        return ""
    shown = command_without_places(typed)
    return f"The command, with names in the place of paths:\n\n```sh\n{shown}\n```"


def table(rows: Iterator[tuple[str, Any]]) -> str:
    """Rows of which nothing is known are left out."""
    told = [f"| {name} | {value} |" for name, value in rows if value is not None]
    return "\n".join(["| | |", "|---|---|", *told]) if told else "Nothing is known of it."
