"""What one rank reads of the data at every step."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysft.config.schema import Config
from raysft.data.batch import Batch, packed_batches, padded_batches, parts_of
from raysft.data.dataset import Indices, TokenDataset, epoch_length, epoch_order, global_batch


class StepData(NamedTuple):
    batches: list[Batch]  # of this rank
    tokens: int  # of the global batch, without padding
    supervised_tokens: int  # of the global batch: known to every rank without asking the others
    loss_weight: float  # of the global batch: the sum of the weights of these tokens in the loss
    pairs: int  # of the global batch: the sum of the squared lengths, which attention works on
    records: int = 0  # of the global batch, a pair as one
    facts: Mapping[str, float] = {}  # metrics of it that all ranks know
    is_last: bool = False  # the run ends after it, whatever its length


@dataclass(frozen=True, eq=False)
class RankData:
    config: Config
    train: TokenDataset
    heldout: TokenDataset
    rank: int
    world_size: int

    def at(self, step: int) -> StepData:
        batch = self.config.batch
        size = batch.global_batch_size
        indices = global_batch(self._order, self._epoch_length, size, step)
        return StepData(
            self.share(self.train, indices),
            int(self.train.lengths[indices].sum()),
            int(self.train.supervised[indices].sum()),
            float(self.train.loss_weight[indices].sum()),
            int((self.train.parts[indices] ** 2).sum()),
            len(indices),
        )

    def records(self, step: int, size: int | None = None) -> list[int]:
        """Which training records the step after `step` others is of, by their number in the set.

        size: of a step, records; default, batch.global_batch_size.
        """
        size = size or self.config.batch.global_batch_size
        return global_batch(self._order, self._epoch_length, size, step).tolist()  # type: ignore[no-any-return]

    @cached_property
    def eval_batches(self) -> list[Batch]:
        size = self.config.eval.micro_batch_size or self.config.batch.micro_batch_size
        return self.share(self.heldout, np.arange(len(self.heldout)), size)

    @property
    def probe(self) -> Tensor:
        """Token ids of one record, int64 [T], to compare the exported model with the engine."""
        dataset = self.heldout if len(self.heldout) else self.train
        return torch.from_numpy(parts_of(dataset, 0)[0].input_ids.astype(np.int64))

    def steps(self, first: int, last: int, device: torch.device) -> Iterator[StepData]:
        """The steps from `first` up to `last`, each made while the one before it is computed.

        For a GPU in pinned memory.
        """
        if first >= last:
            return
        on_gpu = device.type == "cuda"

        def make(step: int) -> StepData:
            data = self.at(step)
            return data._replace(batches=[b.pinned() for b in data.batches]) if on_gpu else data

        def begin() -> None:  # the device of the thread, which would else be the first of all
            if on_gpu:
                torch.cuda.set_device(device)

        with ThreadPoolExecutor(max_workers=1, initializer=begin) as pool:
            upcoming = pool.submit(make, first)
            for step in range(first, last):
                ready = upcoming.result()
                if step + 1 < last:
                    upcoming = pool.submit(make, step + 1)
                yield ready

    def share(
        self, dataset: TokenDataset, indices: Indices, size: int | None = None
    ) -> list[Batch]:
        """This rank's batches of some records, of which every rank has as many.

        size: records of a padded one; default, batch.micro_batch_size.
        """
        size = size or self.config.batch.micro_batch_size
        place = {"rank": self.rank, "world_size": self.world_size}
        if self.config.batch.packing:
            capacity = self.config.batch.pack_tokens
            return packed_batches(dataset, indices, **place, capacity=capacity)
        return padded_batches(dataset, indices, **place, micro_batch_size=size)

    @cached_property
    def _epoch_length(self) -> int:
        return epoch_length(self.train)

    @lru_cache(maxsize=2)  # noqa: B019 (one object a process)
    def _order(self, epoch: int) -> NDArray[np.int64]:
        return epoch_order(self.train, self.config.run.seed, epoch)
