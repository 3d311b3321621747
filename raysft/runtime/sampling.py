"""Answers to many prompts, drawn by several workers of the Ray cluster this process works on."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from raysft.config.schema import Config
from raysft.data.template import Template
from raysft.model.sample import Drawn, Sampling
from raysft.runtime.connect import missing_environment
from raysft.runtime.train_loop import work_in


class Sampler:
    """A model in a Ray actor."""

    def __init__(self, config: Config, template: Template, folder: str) -> None:
        import torch

        from raysft.model.generate import load

        work_in(folder)
        torch.set_num_threads(config.scaling.cpus_per_worker)
        self.model, _ = load(str(config.model.path))
        self.template = template

    def draw(
        self, prompts: list[list[int]], how: Sampling, seed: int, first: int
    ) -> list[list[Drawn]]:
        from raysft.model.sample import draw

        return draw(self.model, self.template, prompts, how, seed, first)


def draw_all(
    config: Config, template: Template, prompts: Sequence[list[int]]
) -> Iterator[list[Drawn]]:
    """The answers to each prompt, in their order, whoever draws them: each has a key of its own,
    and a batch is always of the same prompts."""
    import ray

    settings, scaling = config.pairs, config.scaling
    how = Sampling(settings.samples, settings.temperature, settings.max_new_tokens)
    Remote = ray.remote(
        num_cpus=scaling.cpus_per_worker,
        num_gpus=scaling.gpus_per_worker,
        max_restarts=2,
        max_task_retries=2,
        runtime_env={"env_vars": missing_environment(config)},
    )(Sampler)
    shared = ray.put(template)
    actors = [Remote.remote(config, shared, os.getcwd()) for _ in range(scaling.fewest)]
    pending: list[Any] = []
    try:
        for index, begin in enumerate(range(0, len(prompts), settings.prompts_at_once)):
            if len(pending) == 2 * len(actors):
                yield from ray.get(pending.pop(0))
            batch = list(prompts[begin : begin + settings.prompts_at_once])
            actor = actors[index % len(actors)]
            pending.append(actor.draw.remote(batch, how, config.run.seed, begin))
        while pending:
            yield from ray.get(pending.pop(0))
    finally:
        for actor in actors:
            ray.kill(actor)
