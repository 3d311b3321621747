"""Workers that outlive a run, for tests of what a run computes: starting them takes far longer.

A real group of Ray Train's workers, in which the real `train_worker` runs one job after another. It
is not for checkpoints, which Ray Train keeps in the folder that the group was started with.
"""

import asyncio
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any

import ray

from raysft.config.schema import Config
from raysft.data.dataset import Prepared, epoch_length
from raysft.runs.events import Event
from raysft.runtime.fit import Forwarding, RunResult, forward, in_thread, set_switches, total_steps
from raysft.runtime.trainer import make_trainer
from raysft.train.mailbox import open_mailbox
from raysft.train.objectives.objective import Objective
from raysft.train.objectives.sft import SFT
from raysft.train.rank import WorkerJob
from raysft.train.worker import train_worker


class JobsActor:
    """Jobs by number, and what rank 0 has returned or raised for each."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []
        self.results: dict[int, bytes] = {}
        self.changed = asyncio.Condition()

    async def put(self, job: Any) -> int:
        async with self.changed:
            self.jobs.append(job)
            self.changed.notify_all()
        return len(self.jobs) - 1

    async def get(self, number: int) -> Any:
        async with self.changed:
            await self.changed.wait_for(lambda: number < len(self.jobs))
        return self.jobs[number]

    async def done(self, number: int, result: bytes) -> None:
        async with self.changed:
            self.results[number] = result
            self.changed.notify_all()

    async def result(self, number: int) -> bytes:
        async with self.changed:
            await self.changed.wait_for(lambda: number in self.results)
        return self.results[number]


def serve(options: dict[str, Any]) -> None:
    """In each worker: run jobs until there is one that is None."""
    import torch.distributed as dist

    jobs, number = options["jobs"], 0
    while (pickled := ray.get(jobs.get.remote(number))) is not None:
        job, train, heldout, mailbox = ray.cloudpickle.loads(pickled)
        try:
            result: Any = train_worker(job, train, heldout, mailbox)
        except Exception as error:  # goes to the test
            result = error
        if dist.get_rank() == 0:
            ray.get(jobs.done.remote(number, ray.cloudpickle.dumps(result)))
        number += 1


class Group:
    """Of so many workers, on the Ray cluster this process is connected to."""

    def __init__(self, folder: Path, config: Config) -> None:
        set_switches()
        self.jobs = ray.remote(num_cpus=0)(JobsActor).remote()
        self.mailbox = open_mailbox()
        options = {"jobs": self.jobs, "mailbox": self.mailbox}
        trainer = make_trainer(config, options, folder)
        trainer.train_loop_per_worker = serve
        self.ended = in_thread(trainer.fit)

    def fit(
        self,
        config: Config,
        data: Prepared,
        hf_config: Any,
        tokenizer: Any,
        folder: Path,
        objective: Objective = SFT,
    ) -> tuple[RunResult, list[Event]]:
        """As runtime.fit does, but for the start of the workers. Raises what the workers raise."""
        assert not config.checkpoint.every_steps
        folder.mkdir(parents=True, exist_ok=True)
        seen: list[Event] = []
        job = WorkerJob(
            config=config, objective=objective, hf_config=hf_config, tokenizer=tokenizer,
            total_steps=total_steps(config, epoch_length(data.train), objective),
            run_dir=folder.resolve(),
        )  # fmt: skip
        pickled = ray.cloudpickle.dumps((job, data.train, data.heldout, self.mailbox))
        number = ray.get(self.jobs.put.remote(pickled))
        future: Future[bytes] = Future()

        def wait() -> None:
            future.set_result(ray.get(self.jobs.result.remote(number)))

        Thread(target=wait, daemon=True).start()
        told = Forwarding(seen.append, None)
        forward(future, self.mailbox, told, saves=False)
        result = ray.cloudpickle.loads(future.result())
        if isinstance(result, Exception):
            raise result
        return RunResult(result, max(0, told.starts - 1), []), seen

    def close(self) -> None:
        ray.get(self.jobs.put.remote(None))
        self.ended.result(timeout=60)
        for actor in (self.jobs, self.mailbox):
            ray.kill(actor)
