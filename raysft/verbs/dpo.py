"""`raysft dpo`: preference pairs train the policy itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft.runs.events import Emit
from raysft.verbs import preference, train

if TYPE_CHECKING:
    from raysft.config.schema import Config


def equations(config: "Config") -> list[tuple[str, str]]:
    return preference.equations(config, [("loss", loss_words(config))])


def loss_words(config: "Config") -> str:
    dpo = config.dpo
    h = "log(pi / ref)(chosen) - log(pi / ref)(rejected)"
    words = f"-log sigmoid({dpo.beta:g} h)"
    if dpo.loss == "ipo":
        words = f"(h - {1 / (2 * dpo.beta):g})²"
    elif dpo.label_smoothing:
        words = f"{1 - dpo.label_smoothing:g} x {words}, {dpo.label_smoothing:g} x that of -h"
    nll = f" + {dpo.nll_weight:g} x NLL a token of chosen" if dpo.nll_weight else ""
    return f"{words}{nll}; h = {h}; ref: the model at the start"


def run(config: "Config", run_dir: Path, emit: Emit) -> dict[str, Any]:
    from raysft.train.objectives.dpo import dpo

    return train.run_objective(config, run_dir, emit, dpo(config.dpo))


DPO = preference.verb(
    name="dpo",
    help="Direct preference optimisation: learn from pairs of a better and a worse answer.",
    example="raysft dpo dpo-demo --name preferred",
    plan=equations,
    run=run,
    section="dpo",
)
