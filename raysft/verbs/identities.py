"""What a run was fed with, by content: kept in run.json and in checkpoints, compared on --resume.

Paths may move. What counts is what they hold: records as they are split, rendered and tokenised;
tokenizer; template; the model to start from. Light imports only.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft.runs import events, rundir, snapshot
from raysft.runs.events import Emit
from raysft.train.checkpoint import layout
from raysft.verbs.resume import refuse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from raysft.config.model import Model
    from raysft.config.schema import Config
    from raysft.data.dataset import Prepared, TokenDataset
    from raysft.data.template import Template

# Keys of run.json.
KNOWN = "identities"  # what the run, or the checkpoint it goes on from, was fed with
ACCEPTS = "accept_changes"  # whether others may be gone on with
ACCEPTED = "accepted_changes"  # those that were, in words
Identities = Mapping[str, str]  # of each input: what differs wherever its content does

TRAINED, HELD_OUT, TEMPLATE, TOKENIZER, MODEL = (
    "training records", "held-out records", "template", "tokenizer", "model",
)  # fmt: skip
# Keys of the config that only say where an input lies: that may change where the content is known.
LIES_AT = {
    "data.path": TRAINED, "data.eval_path": HELD_OUT, "data.template": TEMPLATE,
    "model.tokenizer": TOKENIZER, "model.path": MODEL,
}  # fmt: skip
SAMPLES, SAMPLE_BYTES = 16, 1 << 16  # of a file of weights


def identities(
    config: "Config", template: "Template", hf_config: Any, prepared: "Prepared"
) -> dict[str, str]:
    """Of all that the run reads. A model by its config and by samples of its weights."""
    from raysft.data.dataset import tokenizer_identity

    tokenizer = template.tokenizer
    tokens = digest([tokenizer_identity(tokenizer).encode()])
    trained = prepared.tokenised.records["key"][prepared.kept]
    model = identity_of_model(config.model, hf_config)
    return {
        TRAINED: identity_of_records(trained, prepared.train),
        HELD_OUT: identity_of_records(prepared.heldout_keys, prepared.heldout),
        TEMPLATE: digest([template.source.encode()]),
        TOKENIZER: f"{len(tokenizer):,} tokens ({tokens})",
    } | ({MODEL: model} if model else {})


def identity_of_records(keys: "NDArray[Any]", records: "TokenDataset") -> str:
    """keys: a digest of the text of each record, template included."""
    columns = (keys, records.lengths, records.supervised, records.source)
    parts = [column.tobytes() for column in columns]
    return f"{len(records):,} ({digest([*parts, repr(records.weights).encode()])})"


def identity_of_model(model: "Model", hf_config: Any) -> str | None:
    """Of a folder by its files, of a hub id by its commit; None where only the config tells."""
    if model.path is None or (model.init == "scratch" and model.shape):
        return None
    described = Path(model.path) / "config.json"
    if not described.is_file():
        return getattr(hf_config, "_commit_hash", None)
    found = sorted(p for p in described.parent.iterdir() if p.suffix in (".safetensors", ".bin"))
    weights = found if model.init == "pretrained" else []
    return digest(chain([described.read_bytes()], *map(sampled, weights)))


def sampled(file: Path) -> Iterable[bytes]:
    """Its size, and blocks that are spread over it: reading all of it would take minutes."""
    size = file.stat().st_size
    yield str(size).encode()
    with file.open("rb") as opened:
        for number in range(SAMPLES):
            opened.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
            yield opened.read(SAMPLE_BYTES)


def digest(parts: Iterable[bytes]) -> str:
    found = sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


def known_before(run_dir: Path) -> dict[str, Any]:
    """The identities of the run of this folder and the changes accepted in it, as keys of run.json.

    The newest checkpoint's identities are those that count. None of a run that a version before
    has started. Raises UserError where there is no run.
    """
    spec = rundir.read_json(run_dir / rundir.RUN)
    kept = {key: spec[key] for key in (KNOWN, ACCEPTED) if key in spec}
    with suppress(IndexError, OSError, ValueError, KeyError):
        newest = snapshot.checkpoints(run_dir)[-1]
        kept[KNOWN] = json.loads(layout.manifest(newest, 0).read_text())[KNOWN]
    return kept


def movable(run_dir: Path) -> set[str]:
    """Keys of the config that may change on --resume, because content is compared instead."""
    known = known_before(run_dir).get(KNOWN, {})
    return {key for key, name in LIES_AT.items() if name in known}


def require_same(run_dir: Path, found: Identities, emit: Emit) -> None:
    """Compare with what run.json knows of a run that goes on, and keep in it what there is now.

    Raises UserError where something differs and that is not accepted.
    """
    file = run_dir / rundir.RUN
    spec = rundir.read_json(file)
    known: Identities = spec.get(KNOWN, {})
    changed = {n: (known[n], found[n]) for n in found if known.get(n, found[n]) != found[n]}
    if not spec.get(ACCEPTS):
        refuse(
            changed,
            f"{run_dir} cannot go on with other inputs than it was trained with",
            f"Put back what they come from ({', '.join((*LIES_AT, 'eval.max_records'))}), start "
            "under another --name, or go on with them by --accept-changes: then held-out losses "
            "before and after do not compare, and records held out now may have been trained on",
        )
    told = [f"{name}: {before} then, {now} now" for name, (before, now) in changed.items()]
    for words in told:
        emit(events.Warning(f"accepted by --accept-changes: {words}"))
    spec[KNOWN] = dict(found)
    if told:
        spec[ACCEPTED] = [*spec.get(ACCEPTED, []), *told]
    rundir.write_json(file, spec)
