"""The cases of results.json by moment, loss and length: means over seeds, with intervals."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from raysft.studies.moments import Moments
from raysft.studies.statistics import Interval, exponent, interval, positive_interval
from raysft.studies.study import Results, done

# How the losses of the tokens of a sequence are put together -> in words.
LOSSES = {"summed": "summed over the tokens", "mean": "mean over the tokens"}


class Row(NamedTuple):
    """One length at one moment, for one loss, over the seeds."""

    when: str
    loss: str
    seq_len: int
    nll: Interval  # nats a token
    variance: Interval  # tr(Sigma): of the gradient of one sequence
    # None where noise hides the gradient in some seed:
    norm: Interval | None  # of the mean gradient, |G|, noise taken off
    noise_scale: Interval | None  # sequences


def moments_when(results: Results) -> list[str]:
    """In the order of training."""
    cases = done(results)
    return [measured["when"] for measured in cases[0]["measured"]] if cases else []


def at(case: Mapping[str, Any], when: str) -> list[Mapping[str, Any]]:
    """What one seed measured at a moment, by length."""
    found = next(measured for measured in case["measured"] if measured["when"] == when)
    return sorted(found["at"], key=lambda one: int(one["seq_len"]))


def moments_of(measured: Mapping[str, Any], loss: str) -> Moments:
    return Moments(measured["shards"], measured["shard_size"], **measured[loss])


def rows_of(results: Results) -> list[Row]:
    """By moment, loss and length; empty where no seed has ended."""
    return [
        row_of(results, when, loss, number)
        for when in moments_when(results)
        for loss in LOSSES
        for number in range(len(at(done(results)[0], when)))
    ]


def row_of(results: Results, when: str, loss: str, number: int) -> Row:
    measured = [at(case, when)[number] for case in done(results)]
    moments = [moments_of(one, loss) for one in measured]
    hidden = any(one.square <= 0 for one in moments)
    return Row(
        when=when,
        loss=loss,
        seq_len=measured[0]["seq_len"],
        nll=interval([one["loss"] for one in measured]),
        variance=positive_interval([one.trace for one in moments]),
        norm=None if hidden else positive_interval([one.square**0.5 for one in moments]),
        noise_scale=None if hidden else positive_interval([one.noise_scale for one in moments]),
    )


def exponent_of(results: Results, when: str, loss: str) -> Interval | None:
    """The a in tr(Sigma) = c T^a, fitted for each seed; None of a single length."""
    fits = []
    for case in done(results):
        measured = at(case, when)
        if len(measured) < 2:
            return None
        lengths = [float(one["seq_len"]) for one in measured]
        fits.append(exponent(lengths, [moments_of(one, loss).trace for one in measured]))
    return interval(fits)
