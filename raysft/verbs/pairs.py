"""`raysft pairs`: preference pairs of a model's own answers."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysft.errors import UserError
from raysft.runs import events, rundir
from raysft.runs.events import Emit
from raysft.studies.tables import FittedTable, Heading
from raysft.verbs import plan
from raysft.verbs.verb import Results, Summary, Verb

if TYPE_CHECKING:
    from raysft.config.schema import Config


def equations(config: "Config") -> list[tuple[str, str]]:
    pairs = config.pairs
    if config.model.init == "scratch" or config.model.path is None:
        raise UserError(
            "raysft pairs asks a model that has learnt something: set model.path to its folder, "
            'and model.init = "pretrained"'
        )
    return [
        plan.model_equation(config),
        ("answers", f"{pairs.samples} a prompt at temperature {pairs.temperature:g}, of at most "
                    f"{pairs.max_new_tokens} tokens"),
        ("reward", pairs.reward),
        plan.where_and_how(config)[0],
    ]  # fmt: skip


def inputs(config: "Config") -> tuple["Config", bool]:
    """It reads the prompts of all records and holds none out."""
    data = config.data.model_copy(update={"eval_fraction": 0.0, "eval_path": None})
    return config.model_copy(update={"data": data}), True


def run(config: "Config", run_dir: Path, emit: Emit) -> dict[str, Any]:
    from raysft.data.record_prompts import read_prompts
    from raysft.model.load import load_template
    from raysft.model.own_pairs import Tally, own_pairs
    from raysft.model.rewards import load_reward
    from raysft.runtime.sampling import draw_all
    from raysft.verbs.inputs import beside_ray

    def read(_: Any) -> Any:
        template, reward = load_template(config), load_reward(config.pairs.reward, "pairs.reward")
        return template, reward, *read_prompts(config, template)

    template, reward, prompts, dropped = beside_ray(config, emit, read)
    emit(events.Status(f"drawing answers to {len(prompts):,} prompts"))
    drawn = draw_all(config, template, [prompt.ids for prompt in prompts])
    tally = Tally()
    answered = zip(prompts, drawn, strict=True)
    file, written = run_dir / rundir.PAIRS, 0
    partial = file.with_name(file.name + ".partial")
    with partial.open("w") as stream:
        for pair in own_pairs(answered, reward, config.run.seed, tally):
            stream.write(json.dumps(pair, ensure_ascii=False) + "\n")
            written += 1
    if not written:
        partial.unlink()
        raise UserError(
            "no prompt has answers of different worth: draw more with pairs.samples, or take "
            "another pairs.reward, or a model that is neither always right nor always wrong"
        )
    partial.replace(file)
    return {
        "pairs": str(file),
        "num_prompts": len(prompts),
        "num_answers": tally.answers,
        "num_pairs": written,
        "mean_reward": tally.worth / tally.answers,
        "left_out": dict(dropped + tally.left_out),
    }


def done(summary: Summary) -> str:
    return f"done: {summary.get('num_pairs', 0):,} pairs in {summary.get('pairs')}"


def interrupted(summary: Summary) -> str:
    return f"interrupted; no pairs were written to {summary['run_dir']}"


def tables(summary: Summary, results: Results | None) -> Iterable[FittedTable]:  # noqa: ARG001
    headings = [Heading("", "left", folds=True, style="dim"), Heading("")]
    table = FittedTable(f"\n{summary['run_dir']}", headings)
    names = ("num_prompts", "num_answers", "num_pairs")
    for name in names:
        if name in summary:
            table.add_row(name.removeprefix("num_"), f"{summary[name]:,}")
    if "mean_reward" in summary:
        table.add_row("reward of an answer, mean", f"{summary['mean_reward']:.3f}")
    for reason, count in summary.get("left_out", {}).items():
        table.add_row(f"left out: {reason}", f"{count:,}")
    yield table


def check(config: "Config") -> None:
    from raysft.model.rewards import require_reward

    require_reward(config.pairs.reward, "pairs.reward")


PAIRS = Verb(
    name="pairs",
    help="Draw a model's answers, and make preference pairs of the best and the worst.",
    example="raysft pairs my.toml --name answers --set pairs.reward=number",
    plan=equations,
    run=run,
    has_left=lambda run_dir: (run_dir / rundir.PAIRS).exists(),
    check_resume=None,
    done=done,
    interrupted=interrupted,
    tables=tables,
    inputs=inputs,
    check=check,
)
