"""Every number of metrics.jsonl, once: what it means, and how the console shows it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple


class Metric(NamedTuple):
    key: str  # in metrics.jsonl, in TensorBoard, on the wire
    meaning: str
    unit: str = ""
    heading: str = ""  # of its column on the console; without one it has none
    width: int = 0  # of that column, characters, with a blank before it
    form: str = ""  # a format specification, or "duration"
    is_scalar: bool = True  # false: of use only to who watches
    goes: int = 0  # the order in which columns are left out of a narrow terminal; 0: it stays
    of: str = ""  # "tokens", "pairs" or "answers": a column of runs that learn from these alone

    def words(self, value: float) -> str:
        """As exactly as its column has room for; never cut."""
        room = self.width - 1
        return next((text for text in forms(value, self.form) if len(text) <= room), f"{value:.0e}")


def forms(value: float, form: str) -> Iterator[str]:
    """A number in words, shorter and shorter."""
    if form == "duration":
        yield duration(value)
        return
    yield format(value, form)
    if "," in form:
        yield short(value)
    yield from (format(value, spec) for spec in (".2f", ".1f", ".0f", ".1e"))


def duration(seconds: float) -> str:
    """3:07, 1:03:07 from an hour on, 4d 03h from a hundred hours on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours // 24}d {hours % 24:02}h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(value: float) -> str:
    """12,345, or 1.23M from a million on, 1.23G from a thousand of those on."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:,.0f}"


def both(key: str, meaning: str, unit: str = "") -> tuple[Metric, Metric]:
    """Of the training pairs, and of those held out."""
    return Metric(key, meaning, unit), Metric(f"eval_{key}", f"held out: {meaning}", unit)


# In the order of the columns.
METRICS = (
    Metric("loss", "training loss since the last line", "nats a token", "loss", 8, ".4f"),
    Metric("eval_loss", "held-out loss of the answers", "nats a token", "held-out", 9, ".4f"),
    Metric(
        "accuracy",
        "pairs whose chosen answer is ahead",
        "of the pairs",
        *("right", 6, ".3f"),
        of="pairs",
    ),
    Metric("eval_accuracy", "the same, held out", "of the pairs", "held-out", 9, ".3f", of="pairs"),
    Metric(
        "reward",
        "what the drawn answers are worth, less what a missing end token costs",
        "an answer",
        *("reward", 8, ".3f"),
        of="answers",
    ),
    Metric("checked", "the same by ppo.checker", "an answer", *("checked", 8, ".3f"), of="answers"),
    Metric(
        "kl_to_reference",
        "log(pi / pi_ref) of the drawn answers: an estimate of the KL divergence to the reference",
        "nats an answer",
        *("KL", 8, ".3f"),
        of="answers",
    ),
    Metric("lr", "learning rate", "", "rate", 9, ".2e", goes=5),
    Metric(
        "grad_norm", "of the last gradient, before clipping", "", "grad norm", 10, ".3f", goes=4
    ),
    Metric("tokens_per_second", "without padding", "tokens/s", "tokens/s", 9, ",.0f"),
    Metric(
        "supervised_tokens_per_second",
        "those trained",
        "tokens/s",
        *("superv./s", 10, ",.0f"),
        goes=1,
        of="tokens",
    ),
    Metric("peak_memory_gib", "most that a worker ever held", "GiB", "GiB", 7, ".2f", goes=2),
    Metric("time_left_s", "at this pace", "s", "left", 9, "duration", is_scalar=False, goes=3),
    Metric("exact_match", "held-out answers equal to their reference", "of the answers"),
    Metric("eval_instruction_loss", "held-out loss of the prompts, never trained", "nats a token"),
    Metric("clipped_steps", "steps clipped since the last line", "steps"),
    Metric("skipped_steps", "updates skipped because fp16 overflowed", "steps"),
    Metric("spikes_skipped", "updates skipped because their gradient was a spike", "steps"),
    Metric("reserved_memory_gib", "of a GPU, with what PyTorch kept in reserve", "GiB"),
    *both("pair_loss", "loss of the pair alone, without that of the chosen answer"),
    *both("reward_margin", "reward of the chosen answer less that of the rejected one"),
    *both("reward_chosen", "reward of the chosen answer; of DPO, beta log(pi / pi_ref)"),
    *both("reward_rejected", "reward of the rejected answer"),
    Metric("eval_reward_mean", "of the rewards of all held-out answers"),
    Metric("eval_reward_spread", "their standard deviation"),
    Metric("eval_calibration_error", "how far off the model is about how often it is right"),
    Metric("eval_length_correlation", "of the rewards with the answers' tokens"),
    *both("logp_chosen", "log-probability of the chosen answer", "nats an answer"),
    *both("logp_rejected", "log-probability of the rejected answer", "nats an answer"),
    *both(
        "kl",
        "log(pi_ref / pi), mean over both answers: an estimate of the KL divergence where "
        "the reference has written them",
        "nats an answer",
    ),
    Metric("entropy", "of the distributions that tokens are drawn from", "nats a token"),
    Metric("answer_tokens", "of a drawn answer, its end token included", "tokens"),
    Metric("ended", "drawn answers that ended with an end token", "of the answers"),
    Metric("groups_alike", "prompts whose answers are all worth the same", "of the prompts"),
    Metric("clip_fraction", "tokens whose ratio was clipped", "of an answer's tokens"),
    Metric(
        "update_kl",
        "how far the steps of an iteration have moved a token's distribution",
        "nats a token",
    ),
    Metric(
        "drawing_gap",
        "log P of a token by the engine and by the copy that drew it: the largest difference",
        "nats",
    ),
    Metric("explained_variance", "share of the returns' variance that the critic knew of"),
    Metric("drawing_time_s", "drawing and judging the answers of an iteration", "s"),
    Metric("scoring_time_s", "their log P by the policy and by the reference", "s"),
    Metric("step_time_s", "median since the last line", "s"),
)


SCALARS = frozenset(metric.key for metric in METRICS if metric.is_scalar)


def scalars(values: Mapping[str, float | None]) -> dict[str, float]:
    """Those of a line that are known, and of use when the run has ended."""
    return {key: v for key, v in values.items() if key in SCALARS and v is not None}


def columns(values: Mapping[str, float | None]) -> list[Metric]:
    """Those of a run with such a line."""
    of = "pairs" if {"accuracy", "eval_accuracy"} & values.keys() else "tokens"
    of = "answers" if "reward" in values else of
    return [metric for metric in METRICS if metric.heading and metric.of in ("", of)]


def columns_for(some: Sequence[Metric], width: int | None, step_width: int) -> list[Metric]:
    """Those that fit beside the step into so many characters; all where the width is None."""
    shown = list(some)
    going = sorted((metric for metric in some if metric.goes), key=lambda m: m.goes)
    for metric in going:
        if width is None or step_width + sum(m.width for m in shown) <= width:
            break
        shown.remove(metric)
    return shown
