"""What a job reads before it runs: model, tokenizer and data, while Ray starts beside it."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from raysft.errors import UserError
from raysft.runs import events
from raysft.runs.events import Emit
from raysft.verbs.identities import identities, require_same

if TYPE_CHECKING:
    from pathlib import Path

    from raysft.config.schema import Config
    from raysft.data.dataset import Prepared
    from raysft.data.template import Template

T = TypeVar("T")


class Inputs(NamedTuple):
    template: "Template"
    hf_config: Any
    prepared: "Prepared"
    facts: dict[str, Any]  # of the audit
    identities: dict[str, str]


def beside_ray(config: "Config", emit: Emit, read: Callable[[Callable[[], None]], T]) -> T:
    """Read the inputs while Ray starts. `read` gets a function that waits for Ray.

    A mistake is told at once: ending the half-started Ray takes seconds.
    """
    from raysft.runtime.connect import EMBEDDED, local_resources, start_ray_beside
    from raysft.runtime.resources import require_resources

    def read_or_tell(ray_is_there: Callable[[], None]) -> T:
        try:
            found = read(ray_is_there)
        except UserError as error:
            emit(events.Mistake(str(error)))
            raise
        import ray

        if not ray.is_initialized():
            emit(events.Status("waiting for Ray"))
        return found

    if EMBEDDED:  # the workers run here
        require_resources(config, [local_resources(config)])
        require_attention(config.model.attention)
    emit(events.Status("starting Ray"))
    return start_ray_beside(config, read_or_tell)


def require_attention(kernel: str) -> None:
    """Raises UserError where this machine lacks its package. On a cluster, workers tell."""
    if kernel == "flash_attention_2" and find_spec("flash_attn") is None:
        raise UserError(
            'model.attention = "flash_attention_2" needs the package flash-attn, which is not '
            'installed here: install it, or take "sdpa", which needs nothing and is exact too'
        )


def read_model(config: "Config", emit: Emit, *, scalar: bool = False) -> tuple["Template", Any]:
    """Tokenizer and model config. scalar: of a model that gives rewards. Raises UserError."""
    from raysft.model.load import load_model_config, load_template

    emit(events.Status(f"loading tokenizer {config.model.tokenizer_path}"))
    template = load_template(config, pads=scalar)
    return template, load_model_config(config, template, scalar=scalar)


def read_inputs(
    config: "Config",
    run_dir: "Path",
    emit: Emit,
    ray_is_there: Callable[[], None],
    *,
    pairs: bool = False,
    scalar: bool = False,
    asked: bool = False,
) -> Inputs:
    """Tokenizer, model config and data. Raises UserError, also where a run that goes on had others.

    Their identities are kept in run.json. pairs: the records are to be preference pairs.
    scalar: the model gives rewards. asked: the records are prompts.
    """
    from raysft.data.asked import as_prompts
    from raysft.data.audit import audit
    from raysft.data.dataset import prepare

    template, hf_config = read_model(config, emit, scalar=scalar)
    emit(events.Status("reading data"))
    prepared = prepare(config, template, ray_is_there, pairs=pairs)
    found = identities(config, template, hf_config, prepared)
    require_same(run_dir, found, emit)
    facts = audit(config, template, prepared)
    emit(events.Data(facts))
    if asked:
        train, left_out = as_prompts(config, template, prepared.train)
        prepared = prepared._replace(train=train)
        for reason, count in left_out.items():
            emit(events.Warning(f"{count:,} records are not asked: {reason}"))
    from raysft.runtime import fit, ray_private  # noqa: F401 (imported here while Ray starts)

    if warning := ray_private.version_warning():
        emit(events.Warning(warning))
    return Inputs(template, hf_config, prepared, facts, found)
