"""Masked linear layers that compute only with the kept weights, on a CPU: stored in CSR, chosen by measurement.

    y^T = W x^T + b        W in CSR (outputs, inputs), x (tokens, inputs), so that each kept weight adds one row of x^T

The product is `torch.embedding_bag`, which sums weighted rows of a table: the table is x^T, a bag is an output, its
members are the output's kept weights. Its inner loop runs over the tokens in vector registers, so from 32 tokens on
it is mostly the fastest of the products that were tried (`benchmarks.kernels`); with 8, torch's CSR product is, which
calls MKL. It takes half precision, and needs no MKL. x is turned once for each layer, a block of tokens at a time (see
``BLOCK``); what an FFN's first matrix gives stays turned, as its second one wants it.
"""

from __future__ import annotations

import math
import sys
import time
from bisect import bisect_right
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adaprune.masks import component_of, maskable
from adaprune.training import AdaptedModel

RUNTIMES = ("dense", "sparse", "auto")
BLOCK = 128  # tokens multiplied at a time: x^T of that many, up to 3072 wide, stays in a core's cache
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # those the kernel has
SIZES = (4, 12, 40, 128)  # tokens at which `auto` measures; beyond, the work is done in blocks
AHEAD = 1.1  # the sparse product is taken where it was more than this much faster
_ROUNDS = 7


class PlacedLinear(nn.Linear):
    """A frozen linear layer that reads some of its inputs, and whose outputs stand among zeros; of any size.

    What stands between is no part of the matrix, so that removed units leave nothing behind. As `SparseLinear` the
    places cost nothing: they are in its indices.

    Args:
        weight, bias: (outputs, inputs) and (outputs) or None; sides of 0 are fine.
        rows: where the outputs stand, rising, among ``gives``; None: they are all there is.
        columns: where the inputs stand, rising, among ``reads``; None: they are all there is.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows=None, gives=None, columns=None, reads=None):
        super().__init__(1, 1, device="meta")  # torch warns of sides of 0 where it makes the numbers itself
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.gives, self.reads = gives or self.out_features, reads or self.in_features
        self.register_buffer("rows", None if self.gives == self.out_features else rows, persistent=False)
        self.register_buffer("columns", None if self.reads == self.in_features else columns, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.columns is None else x.index_select(-1, self.columns)
        y = super().forward(x)
        return y if self.rows is None else y.new_zeros(*y.shape[:-1], self.gives).index_copy_(-1, self.rows, y)


NO_TRAINING = "the sparse runtime computes and does not train: load the model again with 'dense'"


class SparseLinear(nn.Module):
    """A linear layer's kept weights in CSR: 8 bytes per weight in float32 (value and column), 4 per output.

    Args:
        linear: the layer, its removed weights 0. It is not changed.
        turned: leave the result as a turned view where it fits into a block or two, for a sparse layer to read.

    Raises:
        ValueError: a dtype that the kernel lacks, or another device than a CPU.
    """

    def __init__(self, linear: nn.Linear, turned: bool = False):
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias
        check_kernel(weight)
        rows, columns = getattr(linear, "rows", None), getattr(linear, "columns", None)
        self.out_features = getattr(linear, "gives", linear.out_features)
        self.in_features = getattr(linear, "reads", linear.in_features)
        self.turned, kept = turned, weight != 0
        rows = slice(None) if rows is None else rows
        counts, places = torch.zeros(self.out_features, dtype=torch.int64), kept.nonzero()[:, 1]
        counts[rows] = kept.sum(1)
        self.register_buffer("values", weight[kept])
        self.register_buffer("columns", (places if columns is None else columns[places]).int())
        self.register_buffer("ends", torch.cat([counts[:0].new_zeros(1), counts.cumsum(0)]).int())
        self.register_buffer("bias", None if bias is None else weight.new_zeros(self.out_features, 1))
        if bias is not None:
            self.bias[rows, 0] = bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """The product x W^T + b, shape (..., outputs).

        Raises:
            RuntimeError: a gradient would have to flow through.
            TypeError: x of another dtype or device than the weights.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(NO_TRAINING)
        if x.dtype != self.values.dtype or x.device.type != "cpu" or x.dtype not in DTYPES:
            raise TypeError(
                f"sparse weights are {self.values.dtype} on {self.values.device}, the input is {x.dtype} on {x.device}:"
                " convert the whole model with .to(dtype), keep it on the CPU, and leave autocast off"
            )
        rows = x.reshape(-1, self.in_features)
        if len(rows) <= 2 * BLOCK:
            y = self._product(rows)
            y = y if self.turned else y.contiguous()
        else:
            y = x.new_empty(len(rows), self.out_features)
            for start in range(0, len(rows), BLOCK):
                y[start : start + BLOCK] = self._product(rows[start : start + BLOCK])
        return y.view(*x.shape[:-1], self.out_features)

    @property
    def weight(self) -> Tensor:
        """The kept weights, in a row: families ask a layer's weight for its dtype and device (T5)."""
        return self.values

    def _product(self, rows: Tensor) -> Tensor:
        """Rows (tokens, inputs) times W^T, plus b, as a turned view (tokens, outputs)."""
        turned = rows.t().contiguous()  # no copy where the layer before left its result turned
        y = torch.embedding_bag(turned, self.columns, self.ends, False, 0, False, self.values, True)[0]
        return (y if self.bias is None else y.add_(self.bias)).t()

    def extra_repr(self) -> str:
        density = len(self.values) / (self.in_features * self.out_features)
        return f"in_features={self.in_features}, out_features={self.out_features}, density={density:.4f}"


class ChosenLinear(nn.Module):
    """A layer that is both dense and sparse, and uses for each call what was faster at that number of tokens.

    ``wins`` says for each of ``SIZES`` whether the sparse product was faster. Between two sizes it is used if it was
    faster at both.
    """

    def __init__(self, dense: nn.Linear, sparse: SparseLinear, wins: tuple[bool, ...]):
        super().__init__()
        self.dense, self.sparse, self.wins = dense, sparse, wins

    @property
    def weight(self) -> Tensor:
        return self.dense.weight

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (x.requires_grad or self.dense.weight.requires_grad):
            raise RuntimeError(NO_TRAINING)  # also where the dense layer is used: the sparse one would not follow
        return self.sparse(x) if sparse_at(x.numel() // self.sparse.in_features, self.wins) else self.dense(x)


def sparse_at(tokens: int, wins: tuple[bool, ...]) -> bool:
    """Whether the sparse product is used at this number of tokens: it was faster at the next sizes on both sides."""
    below = max(bisect_right(SIZES, tokens) - 1, 0)
    exact = SIZES[below] >= tokens
    return wins[below] and (exact or wins[min(below + 1, len(SIZES) - 1)])


def set_runtime(model: AdaptedModel, runtime: str) -> AdaptedModel:
    """Makes a masked or compacted model compute sparsely, or in the way that is faster here; returns the changed model.

    Memory for a matrix of n weights, k of them kept, in float32: ``dense`` 4 n bytes, ``sparse`` 8 k; ``auto`` one of
    the two if it is faster at every measured number of tokens, else both. ``auto`` measures every matrix, which takes a
    second for MiniLM and a few for BERT-base, with torch's current number of threads: set it first. A matrix without
    zeros stays dense. Logits are those of ``dense`` up to the order of sums. The encoder can no longer be trained, only
    the head.

    Args:
        model: what `apply_mask`, `compact` or `load_compact` returned.
        runtime: ``sparse`` or ``auto``; ``dense`` changes nothing.

    Raises:
        TypeError: ``model`` is not such a model.
        ValueError: another runtime; a model that is already sparse, learns masks or serves many tasks; a dtype or
            device that the sparse kernel does not support. Nothing has then been changed.
    """
    if not isinstance(model, AdaptedModel):
        raise TypeError(f"model must be what apply_mask or compact returns, got {type(model).__name__}")
    check_runtime(runtime, model.encoder)
    if runtime == "dense":
        return model
    pairs = {
        name: (linear, sparse_of(name, linear))
        for name, linear in maskable(model.encoder).items()
        if bool((linear.weight == 0).any())
    }
    wins = wins_of(pairs) if runtime == "auto" else {}
    for name, pair in pairs.items():
        _put(model.encoder, name, chosen(*pair, wins.get(name, (True,))))
    return model


def sparse_of(name: str, linear: nn.Linear) -> SparseLinear:
    """The sparse layer in the place of ``linear``, whose weight has this name."""
    return SparseLinear(linear, turned=component_of(name) == "ffn_in")


def chosen(dense: nn.Linear, sparse: SparseLinear, wins: tuple[bool, ...]) -> nn.Module:
    """What computes a matrix that was found faster where ``wins`` says: one of the two, or both."""
    if not any(wins):
        return dense
    return sparse if all(wins) else ChosenLinear(dense, sparse, wins)


def check_runtime(runtime: str, encoder: nn.Module) -> None:
    """ValueError if ``runtime`` does not exist, or ``encoder`` cannot have it; see `set_runtime`."""
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}")
    if runtime != "dense":
        check_dense(encoder)
        check_kernel(next(encoder.parameters()))


def check_dense(encoder: nn.Module) -> None:
    """ValueError if ``encoder`` has linear layers that are not plain matrices with zeros."""
    for module in encoder.modules():
        if isinstance(module, SparseLinear):
            raise ValueError("the model computes sparse already, its dense weights are gone: load it again")
        if isinstance(module, nn.Linear) and type(module) not in (nn.Linear, PlacedLinear):
            raise ValueError(
                f"the encoder has layers of class {type(module).__name__}, which learn a mask or serve many tasks: "
                "give what apply_mask, compact or load_compact returned"
            )


def check_kernel(weight: Tensor) -> None:
    """ValueError if the sparse kernel lacks the dtype or device of ``weight``."""
    if weight.dtype not in DTYPES or weight.device.type != "cpu":
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(
            f"the sparse runtime computes on a CPU in {known}, the model is {weight.dtype} on {weight.device}: "
            "move or convert it first, or use runtime='dense'"
        )


@torch.no_grad()
def wins_of(pairs: Mapping[str, tuple[nn.Linear, SparseLinear]]) -> dict[str, tuple[bool, ...]]:
    """For each matrix, whether its sparse product was ahead at each of ``SIZES``, by the shortest times of all rounds.

    All matrices are gone through one after the other, as in a forward pass, so that their weights come from where they
    come from in one: a matrix multiplied again and again stays in the cache, and flatters the sparse product. Other
    work on the machine only ever adds time, so the shortest times are the least disturbed.
    """
    ahead: dict[str, list[bool]] = {name: [] for name in pairs}
    generator = torch.Generator().manual_seed(0)
    for size in SIZES:
        inputs = {
            name: torch.randn(1, size, sparse.in_features, generator=generator).to(sparse.values.dtype)
            for name, (_, sparse) in pairs.items()
        }
        shortest = {name: [math.inf, math.inf] for name in pairs}
        for _ in range(_ROUNDS):
            for way in (0, 1):
                for name, pair in pairs.items():
                    shortest[name][way] = min(shortest[name][way], _seconds(pair[way], inputs[name]))
        for name, (dense, sparse) in shortest.items():
            ahead[name].append(dense > AHEAD * sparse)
    return {name: tuple(found) for name, found in ahead.items()}


def _seconds(module: nn.Module, x: Tensor) -> float:
    """Seconds of one call: processor time with one thread, which other load hardly affects, else wall-clock time.

    (Windows counts processor time too coarsely.)
    """
    clock = time.thread_time if torch.get_num_threads() == 1 and sys.platform != "win32" else time.perf_counter
    start = clock()
    module(x).contiguous()
    return clock() - start


def _put(encoder: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of the one whose weight has this name."""
    parent, _, last = name.removesuffix(".weight").rpartition(".")
    setattr(encoder.get_submodule(parent), last, module)
