"""Every number of metrics.jsonl, once: what it means, and how the console shows it."""

from collections.abc import Mapping
from typing import NamedTuple


class Metric(NamedTuple):
    key: str  # in metrics.jsonl, in TensorBoard, on the wire
    meaning: str
    unit: str = ""
    heading: str = ""  # of its column on the console; without one it has none
    width: int = 0  # of that column, characters
    form: str = ""  # a format specification, or "duration"
    is_scalar: bool = True  # false: of use only to who watches
    of: str = ""  # "tokens" or "pairs": a column of runs that learn from these alone

    def words(self, value: float) -> str:
        return duration(value) if self.form == "duration" else format(value, self.form)


def duration(seconds: float) -> str:
    """3:07, or 1:03:07 from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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
        "right",
        6,
        ".3f",
        of="pairs",
    ),
    Metric("eval_accuracy", "the same, held out", "of the pairs", "held-out", 9, ".3f", of="pairs"),
    Metric("lr", "learning rate", "", "rate", 9, ".2e"),
    Metric("grad_norm", "of the last gradient, before clipping", "", "grad norm", 10, ".3f"),
    Metric("tokens_per_second", "without padding", "tokens/s", "tokens/s", 9, ",.0f"),
    Metric(
        "supervised_tokens_per_second",
        "those trained",
        "tokens/s",
        "superv./s",
        10,
        ",.0f",
        of="tokens",
    ),
    Metric("peak_memory_gib", "most that a worker ever held", "GiB", "GiB", 6, ".2f"),
    Metric("time_left_s", "at this pace", "s", "left", 8, "duration", is_scalar=False),
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
    Metric("step_time_s", "median since the last line", "s"),
)


def columns(values: Mapping[str, float | None]) -> list[Metric]:
    """What the console shows of a run with such a line."""
    of = "pairs" if {"accuracy", "eval_accuracy"} & values.keys() else "tokens"
    return [metric for metric in METRICS if metric.heading and metric.of in ("", of)]
