"""Layers that compute for the task being served, and the masked matrices of the tasks served last.

A matrix w0 * m is written once, when its task is first served, into the memory of the task that was served longest ago.
For a task that is not kept, it is computed from the packed bits in each forward pass and then dropped. Writing the
whole matrix is faster than writing only the differences to the last task: the masks of two tasks at 0.5 differ in 8 %
of the weights, and so in three quarters of the cache lines, and finding and scattering these takes longer than one full
pass.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from adaprune.deploy.mask import Mask
from adaprune.deploy.runtime import PlacedLinear, chosen, sparse_of, wins_of
from adaprune.training import AdaptedModel

# The 8 mask entries of a byte, as bytes 0 and 1 in one 8-byte number: looked up ten times faster than a row of 8.
_ENTRIES_OF_A_BYTE = torch.tensor([[byte >> bit & 1 for bit in range(8)] for byte in range(256)], dtype=torch.uint8)
SERVED: ContextVar[Serving | None] = ContextVar("SERVED", default=None)  # what this thread computes for


class Task(nn.Module):
    """One task: all its masks as one vector of packed bits, and its head.

    ``wins``: with the runtime ``auto``, where the sparse product of each matrix was faster (`measure`).
    """

    def __init__(self, mask: Mask, head: nn.Module, config):
        super().__init__()
        self.head, self.card, self.config = head.requires_grad_(False).eval(), mask.card, copy.deepcopy(config)
        AdaptedModel.name_labels(self.config, mask.card["labels"])
        packed = {name: np.packbits(kept.numpy(), bitorder="little") for name, kept in mask.masks.items()}
        ends = np.cumsum([len(part) for part in packed.values()])
        self.places = {name: slice(end - len(packed[name]), end) for name, end in zip(packed, ends, strict=True)}
        self.deleted = False  # from the model, though threads may still be at work with it
        self.wins: dict[str, tuple[bool, ...]] = {}
        self.register_buffer("bits", torch.from_numpy(np.concatenate([*packed.values()])))
        self.register_buffer("table", _ENTRIES_OF_A_BYTE.view(torch.int64).flatten())

    def kept(self, name: str, like: Tensor) -> Tensor:
        """The mask of one weight as new numbers 0 and 1, of the weight's shape and dtype; 1 where it is not masked."""
        if name not in self.places:
            return torch.ones_like(like)
        entries = self.table.index_select(0, self.bits[self.places[name]].int()).view(torch.uint8)
        return entries[: like.numel()].view(like.shape).to(like.dtype)

    @torch.no_grad()
    def measure(self, layers: Mapping[str, nn.Linear]) -> None:
        """Times each of its matrices dense and sparse, on this machine, with torch's current number of threads."""
        masked = {name: self.linear(name, layer) for name, layer in layers.items() if name in self.places}
        pairs = {name: (one, sparse_of(name, one)) for name, one in masked.items() if bool((one.weight == 0).any())}
        self.wins = wins_of(pairs)

    def linear(self, name: str, layer: nn.Linear) -> PlacedLinear:
        """The layer with its masked weights."""
        return PlacedLinear(self.kept(name, layer.weight).mul_(layer.weight), layer.bias)

    def masks(self) -> dict[str, Tensor]:
        """The masks as boolean tensors."""
        shapes = {name: said["shape"] for name, said in self.card["tensors"].items()}
        like = {name: torch.empty(shape, dtype=torch.bool, device="meta") for name, shape in shapes.items()}
        return {name: self.kept(name, like[name]) for name in shapes}


class Serving:
    """A task that is computed for, with the matrices made for it so far; ``weights`` None: they are not kept.

    Threads that serve one task share this. Each takes a matrix from ``spare``, or memory of its own, and the last to be
    done is used by all. Beside a matrix is the state of what it was made from, and that tensor, so that no other can
    come to lie in its place: a matrix of another state is made anew.
    """

    def __init__(self, task: Task, keep: bool, runtime: str = "dense", spare: dict[str, Tensor] | None = None):
        self.task, self.runtime, self.users = task, runtime, 0
        self.weights: dict[str, tuple[Tensor | nn.Module, tuple, Tensor]] | None = {} if keep else None
        self.spare = spare or {}

    def product(self, layer: ServedLinear, x: Tensor) -> Tensor:
        """What a layer gives for x under the task's mask, x (w0 * m)^T + b."""
        name, weight, bias = layer.mask_name, layer._parameters["weight"], layer._parameters["bias"]  # fast
        if name not in self.task.places:
            return functional.linear(x, weight, bias)
        if self.weights is None:
            return functional.linear(x, self.task.kept(name, weight).mul_(weight), bias)
        state = _state(weight, None if self.runtime == "dense" else bias)
        made, of, _ = self.weights.get(name, (None, None, None))
        if of != state:
            made = self._made(layer)
            self.weights[name] = made, state, weight.detach()
        return made(x) if isinstance(made, nn.Module) else functional.linear(x, made, bias)

    def _made(self, layer: ServedLinear) -> Tensor | nn.Module:
        name, weight = layer.mask_name, layer.weight
        with torch.inference_mode(False), torch.no_grad():  # written again for another task, in whatever mode
            if self.runtime == "dense":
                out = self.spare.pop(name, None)
                if out is None or (out.dtype, out.device) != (weight.dtype, weight.device):
                    out = torch.empty_like(weight)
                return torch.mul(self.task.kept(name, weight), weight, out=out)
            masked = self.task.linear(name, layer)
            wins = self.task.wins.get(name, (True,))
            if bool((masked.weight != 0).all()) or not any(wins):
                return masked
            return chosen(masked, sparse_of(name, masked), wins)


def _state(weight: Tensor, bias: Tensor | None = None) -> tuple:
    """A fingerprint of a tensor that changes with it: its address, version counter and dtype.

    Edits through ``.data`` or in inference mode leave no trace that torch shows.
    """
    found = weight.data_ptr(), -1 if weight.is_inference() else weight._version, weight.dtype
    return found if bias is None else (*found, *_state(bias))


class Kept:
    """The masked matrices of the ``limit`` tasks served last, and of those that threads are at work with."""

    def __init__(self, limit: int, runtime: str):
        self.limit, self.runtime, self._servings, self._lock = limit, runtime, {}, threading.Lock()

    def __reduce__(self):  # copies begin with nothing
        return Kept, (self.limit, self.runtime)

    @contextmanager
    def serving(self, task: Task, keep: bool = True) -> Iterator[None]:
        """Makes this thread compute for a task; ``keep`` False makes no room for one that is not kept."""
        with self._lock:
            serving = self._servings.pop(task, None)
            if serving is None:
                keep = keep and self.limit > 0 and not task.deleted  # since this thread looked it up
                serving = Serving(task, keep, self.runtime, self._dropped(self.limit - 1) if keep else None)
            if serving.weights is not None:
                self._servings[task] = serving  # now the last of all
            serving.users += 1
        before = SERVED.set(serving)
        try:
            yield
        finally:
            SERVED.reset(before)
            with self._lock:
                serving.users -= 1
                self._dropped(self.limit)  # of those that none could make room for while all were in use

    def _dropped(self, limit: int) -> dict[str, Tensor]:
        """Drops the tasks served longest ago, but for those that threads use, down to ``limit``: their memory."""
        spare: dict[str, Tensor] = {}
        for task, serving in [*self._servings.items()]:
            if len(self._servings) > limit and not serving.users:
                del self._servings[task]
                spare = {**serving.spare, **{name: made for name, (made, *_) in serving.weights.items()}}
        return spare if self.runtime == "dense" else {}

    def forget(self, task: Task | None = None) -> None:
        """Drops a task's matrices; without one all, which the base's new dtype, device or numbers have made stale."""
        with self._lock:
            for known in [*self._servings] if task is None else [task]:
                self._servings.pop(known, None)

    @property
    def tasks(self) -> list[Task]:
        """The tasks kept, the one served last at the end."""
        return [*self._servings]


class ServedLinear(nn.Linear):
    """A linear layer that computes with the mask of the task that is being served."""

    def forward(self, x: Tensor) -> Tensor:
        serving = SERVED.get()
        return super().forward(x) if serving is None else serving.product(self, x)


class ServedEmbedding(nn.Embedding):
    """The same for a table: only the rows looked up are masked."""

    def forward(self, ids: Tensor) -> Tensor:
        serving, rows = SERVED.get(), functional.embedding(ids, self.weight)
        if serving is None or self.mask_name not in serving.task.places:
            return rows
        task = serving.task
        entries = ids[..., None] * self.embedding_dim + torch.arange(self.embedding_dim, device=ids.device)
        kept = task.bits[task.places[self.mask_name]][entries >> 3] >> (entries & 7).to(torch.uint8) & 1
        return rows * kept
