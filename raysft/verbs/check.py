"""What of a config can be told to be wrong at once: before Ray starts, and before anything is
written. What a run computes later has the last word. Light imports only."""

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from raysft.errors import UserError
from raysft.verbs.verb import Verb

if TYPE_CHECKING:
    from raysft.config.schema import Config

MIB = 2**20
# Of a parameter in the smallest checkpoint: fp32 weights and the optimizer's two moments.
BYTES_PER_PARAMETER = 12


def check(
    verb: "Verb | None", config: "Config", *, elsewhere: bool = False, starts: bool = False
) -> list[str]:
    """Names, files, records, tokenizer against model, template, disk, RAY_ADDRESS; warnings.

    verb: None for a config by itself. elsewhere: it runs on a cluster, so that only what is
    decidable here is checked. starts: it runs now, so that a hub which does not answer is an error;
    else it is a warning. Takes some 0.2 s of a CPU, and up to 10 s where a hub is silent. Raises
    UserError.
    """
    from raysft.runs.trackers import require_installed
    from raysft.runtime.reach import require_cluster

    if not elsewhere:
        require_cluster(os.environ.get("RAY_ADDRESS", ""))
        require_installed(config)
        if verb is not None:
            verb.check(config)
    config, reads_data = (config, True) if verb is None else verb.inputs(config)
    check_template(config.data.template, elsewhere=elsewhere)
    warnings = check_model(config, elsewhere=elsewhere)
    check_adapter(config)
    if reads_data:
        from raysft.data.first import check_data

        pairs = None if verb is None else verb.pairs(config)
        warnings += check_data(config, elsewhere=elsewhere, pairs=pairs)
    if starts and warnings:
        raise UserError(warnings[0])
    if not elsewhere:
        # Neither a study nor what cannot go on keeps a checkpoint or a model.
        trains = verb is None or (verb.study is None and verb.check_resume is not None)
        warnings += check_disk(config, needs_room=trains)
    return warnings


def check_model(config: "Config", *, elsewhere: bool) -> list[str]:
    """The folders of model and tokenizer; warnings of a hub that does not answer."""
    from raysft.data.hub import HUB_NAME, NoAnswer
    from raysft.model.files import check_files, is_read, require_place, tokenizer_is_read

    wanted = {}
    if is_read(config):
        wanted["model.path"] = str(config.model.path)
    if tokenizer_is_read(config):
        key = "model.tokenizer" if config.model.tokenizer else "model.path"
        wanted.setdefault(key, config.model.tokenizer_path)
    found: dict[str, Path | None] = {}
    warnings = []
    for key, path in wanted.items():
        is_there = path[:1] == "/" or (HUB_NAME.fullmatch(path) and not Path(path).exists())
        if elsewhere and is_there:
            continue
        try:
            found[path] = require_place(path, key)
        except NoAnswer as error:
            warnings.append(str(error))
    model = found.get(wanted.get("model.path", "")) if is_read(config) else None
    check_files(config, model, found.get(config.model.tokenizer_path))
    return warnings


def check_adapter(config: "Config") -> None:
    """Raises UserError where its targets are none of the layers, as far as those are known."""
    from raysft.estimate.adapters import adapted
    from raysft.estimate.shape import dims_of_model

    if not config.adapter.is_there:
        return
    try:
        dims = dims_of_model(config)
    except (UserError, ValueError, KeyError, TypeError):  # the model tells
        return
    adapted(dims, config.adapter)


def check_template(name: str, *, elsewhere: bool) -> None:
    """Raises UserError where there is none of that name, or it is no Jinja."""
    from raysft.data.template import BUILT_IN, read_template

    if name in ("auto", "tokenizer", *BUILT_IN) or (elsewhere and name[:1] == "/"):
        return
    source = read_template(name)
    import jinja2

    if re.search(r"{%-?\s*generation", source):  # a tag of transformers' own
        return
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"data.template: {name} line {error.lineno}: {error.message}") from None


def check_disk(config: "Config", *, needs_room: bool) -> list[str]:
    """Whether run.storage can be written and has room for a checkpoint and the model, where their
    size is known; a warning where all checkpoints that are kept do not fit. Raises UserError.

    needs_room: of what leaves checkpoints and a model.
    """
    from raysft.estimate.memory import WEIGHT_BYTES
    from raysft.estimate.shape import dims_of, parameters, trained

    storage = Path(config.run.storage)
    there = next(path for path in (storage, *storage.absolute().parents) if os.path.exists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "is a file" if not there.is_dir() else "is not yours to write in"
        raise UserError(f"run.storage: {storage} cannot be written: {there} {reason}")
    try:
        dims = dims_of(config)
        updated = trained(dims) if needs_room else 0
        whole = config.adapter.merge or not config.adapter.is_there
        count = sum(parameters(dims).values()) if needs_room and whole else updated
    except (UserError, ValueError, KeyError, TypeError):  # the weights alone tell its size
        return []
    checkpoint = BYTES_PER_PARAMETER * updated if config.checkpoint.every_steps else 0
    model, free = WEIGHT_BYTES[config.engine.precision] * count, shutil.disk_usage(there).free
    words = (
        f"run.storage: the disk of {there} has {free / MIB:,.0f} MiB free; a checkpoint takes "
        f"{checkpoint / MIB:,.0f} MiB or more, the model {model / MIB:,.0f}"
    )
    if free < checkpoint + model:
        raise UserError(f"{words}. Free some space, or set run.storage to another disk")
    most = config.checkpoint.keep + 1  # the newest is there before the oldest goes
    if free < most * checkpoint + model:
        return [f"{words}. With checkpoint.keep {config.checkpoint.keep}, {most} are there at once"]
    return []
