"""`raysft init`: a config for a model and data of one's own that fits this machine."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from os.path import expanduser
from typing import TYPE_CHECKING, Any, NamedTuple

from raysft.config.data import DEMO
from raysft.config.load import validate, with_overrides
from raysft.config.write import as_toml
from raysft.errors import UserError
from raysft.verbs.machine import Machine, fitted

if TYPE_CHECKING:
    from raysft.config.schema import Config
    from raysft.data.template import Template

SCRATCH = "scratch"  # for a model: random weights
# Of a model from scratch: on a CPU as many parameters as learn something in minutes, on a GPU
# GPT-2's own.
SHAPES = {
    "cpu": {"n_layer": 4, "n_embd": 256, "n_head": 4},
    "gpu": {"n_layer": 12, "n_embd": 768, "n_head": 12},
}
LENGTHS = (128, 256, 512, 1024, 2048, 4096)  # of records, in tokens, that are worth choosing from
FEW_CUT = 0.99  # of the records that are to fit as a whole
STEPS_AN_EPOCH = 10  # at least, or the global batch is smaller
GLOBAL_BATCH = 32


class Answers(NamedTuple):
    model: str  # a folder, a hub id, or "scratch"
    data: str  # whatever data.path takes
    storage: str
    tokenizer: str | None = None


class Found(NamedTuple):
    """What the first records say, of lengths in tokens."""

    records: int
    whole: bool  # these are all there are
    format: str
    fits: int  # FEW_CUT of them have at most so many
    first_bad: str | None


class Begun(NamedTuple):
    text: str  # of the TOML file
    facts: list[tuple[str, str]]
    warnings: list[str]


def begin(answers: Answers, machine: Machine) -> Begun:
    """A config of these answers, with values that fit the machine by `raysft estimate`.

    Reads the tokenizer, the config of the model and the first records. Raises UserError where they
    are not there or do not go together.
    """
    from raysft.model.load import load_model_config, load_template

    raw = first_raw(answers, machine)
    config = validate(raw, "init")
    template = load_template(config)
    hf_config = load_model_config(config, template)
    found = look_at(config, template)
    facts = [("machine", machine.words), ("data", words_of(found, answers.data))]
    values, notes = of_data(found, getattr(hf_config, "max_position_embeddings", None))
    raw = with_overrides(raw, values)
    raw, notes["engine.zero_stage"], warnings = fitted(raw, hf_config, machine)
    facts.append(("chosen", notes["engine.zero_stage"]))
    notes |= notes_of(machine)
    if found and found.first_bad:
        warnings.append(
            f"{found.first_bad}. The run will stop there: mend the record, or set "
            'data.on_bad_record = "skip"'
        )
    head = f"# Written by `raysft init` for {machine.words}."
    return Begun(as_toml(raw, head=head, commented=True, notes=notes), facts, warnings)


def first_raw(answers: Answers, machine: Machine) -> dict[str, Any]:
    """The keys that the answers and the machine decide. Every one that depends on memory is "auto".

    Raises UserError for a model from scratch without a tokenizer.
    """
    kind = "gpu" if machine.gpus else "cpu"
    model: dict[str, Any] = {"path": answers.model, "init": "pretrained"}
    if answers.model == SCRATCH:
        model = {"init": "scratch", "shape": SHAPES[kind]}
        if answers.data != DEMO and not answers.tokenizer:
            raise UserError(
                "a model from scratch needs a tokenizer for your records: give --tokenizer, a "
                "folder or a hub id such as openai-community/gpt2"
            )
    tokenizer = answers.tokenizer or (DEMO if answers.model == SCRATCH else None)
    model |= {"tokenizer": tokenizer} if tokenizer else {}
    scratch = answers.model == SCRATCH
    return {
        "model": model | {"activation_checkpointing": "auto"},
        "data": {"path": answers.data},
        "run": {"storage": answers.storage, "epochs": 3.0},
        "batch": {
            "seq_len": 128,
            "global_batch_size": GLOBAL_BATCH,
            "tokens_per_micro_batch": "auto",
        },
        "optim": {"lr": 1e-3, "weight_decay": 0.1} if scratch else {"lr": 2e-5},
        "engine": {"zero_stage": "auto", "precision": "bf16"},
        "scaling": {
            "workers": max(1, machine.gpus),
            "cpus_per_worker": max(1, machine.cpus // max(1, machine.gpus)),
            "gpus_per_worker": min(1, machine.gpus),
        },
    }


def look_at(config: "Config", template: "Template") -> Found | None:
    """The first records of every source; None where that would be a download."""
    import numpy as np

    from raysft.data.pipeline import process
    from raysft.data.read import read_chunks
    from raysft.data.recipe import make_recipe
    from raysft.data.sources import find_files, sources

    parts = sources(config.data, config.data.path)
    if any(part.path != DEMO and not find_files(part).files for part in parts):
        return None
    recipe = replace(make_recipe(config, parts, template), seq_len=1 << 20)
    chunks = [list(islice(read_chunks(p, i, seed=0), 2)) for i, p in enumerate(parts)]
    done = [process(some[0], recipe) for some in chunks]
    lengths = np.concatenate([part.records["full_length"] for part in done])
    first_bad = next((part.first_bad for part in done if part.first_bad), None)
    if not len(lengths):
        dropped = sum((part.dropped for part in done), Counter[str]())
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        raise UserError(
            f"data.path: {config.data.path} gives nothing to train on with the tokenizer "
            f"{config.model.tokenizer_path} of {len(template.tokenizer):,} tokens: {reasons}. "
            "Give --tokenizer where that is not the model's, or other records"
        )
    fits = int(np.quantile(lengths, FEW_CUT, method="higher"))
    whole = all(len(some) == 1 for some in chunks)
    return Found(len(lengths), whole, ", ".join(dict.fromkeys(recipe.formats)), fits, first_bad)


def words_of(found: Found | None, path: str) -> str:
    if found is None:
        return f"{path}, not looked at before it is downloaded"
    count = f"{found.records:,} records" if found.whole else f"the first {found.records:,} records"
    return f"{count} ({found.format}); {100 * FEW_CUT:.0f} % have at most {found.fits:,} tokens"


def of_data(found: Found | None, positions: int | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Sequence length and global batch, and why."""
    most = min(positions or LENGTHS[-1], LENGTHS[-1])
    lengths = [length for length in LENGTHS if length < most] + [most]
    wanted = 512 if found is None else found.fits
    values: dict[str, Any] = {
        "batch.seq_len": next((n for n in lengths if n >= wanted), lengths[-1])
    }
    cut = ", and the model takes no more" if found and found.fits > lengths[-1] else ""
    notes = {"batch.seq_len": words_of(found, "the data") + cut}
    if found and found.whole and found.records < STEPS_AN_EPOCH * GLOBAL_BATCH:
        fewer = max(1, found.records // STEPS_AN_EPOCH)
        values["batch.global_batch_size"] = 1 << (fewer.bit_length() - 1)
        notes["batch.global_batch_size"] = f"{found.records:,} records are few"
    return values, notes


def notes_of(machine: Machine) -> dict[str, str]:
    return {
        "scaling.workers": "one for each GPU" if machine.gpus else "one, with all CPUs",
        "engine.precision": "the fastest here that fits",
    }


def require_model(name: str) -> str:
    """The name as it was given. Raises UserError where neither a folder nor the hub has it."""
    from raysft.model.files import require_place

    if name != SCRATCH:
        require_place(expanduser(name), "model.path")
    return name


def require_tokenizer(name: str) -> str:
    """The name as it was given. Raises UserError where neither a folder nor the hub has it."""
    from raysft.model.files import require_place

    if name != DEMO:
        require_place(expanduser(name), "model.tokenizer")
    return name


def require_data(name: str) -> str:
    """The path as it was given. Raises UserError where there is nothing, nor on the hub."""
    from raysft.config.data import Source
    from raysft.data.first import is_here

    is_here(Source(path=name), "data.path", elsewhere=False)
    return name
