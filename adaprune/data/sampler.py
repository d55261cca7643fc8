"""The order of training batches: like lengths together, decided by seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

POOL = 16  # batches; texts are sorted within so many: on GLUE tasks 1.4 to 2.6 times fewer padded tokens


class GroupedByLength(Sampler[int]):
    """Batches of like lengths, themselves in random order; both depend on seed and epoch alone.

    Rows are shuffled, sorted by length within pools of `POOL` batches, cut into batches, and the batches are shuffled
    (a short one stays last), so that lengths do not rise or fall over the steps: where length goes with genre or
    label (STS-B), that would teach one after the other.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = torch.tensor(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        pools = torch.randperm(len(self), generator=generator).split(POOL * self.batch_size)
        ordered = torch.cat([pool[self.lengths[pool].argsort(stable=True, descending=True)] for pool in pools])
        batches = list(ordered.split(self.batch_size))
        whole = len(self) // self.batch_size
        shuffled = [batches[i] for i in torch.randperm(whole, generator=generator)] + batches[whole:]
        return iter(torch.cat(shuffled).tolist())
