"""Which product of a sparse matrix with dense inputs is fastest on a CPU: the choice behind `runtime="sparse"`.

    python -m benchmarks.kernels [--json FILE] [--shapes OxI ...] [--tokens N ...] [--sparsities S ...] [--rounds N]

One matrix W (outputs, inputs) with random places kept, x (tokens, inputs), y = x W^T, float32, one thread. Each way
starts from x as a layer gets it and leaves y as a layer gives it, so that turning counts. "embedding_bag" is what
`SparseLinear` does; "CSR", "COO" and "BSR" (blocks of 4 x 4, dense inside) are torch's, of which CSR calls MKL; "CSR,
x left" multiplies from the other side, without turning x; "scipy" is SciPy's CSR. Ways take turns, round after round,
with the dense product. Times are processor times; a ratio is computed within its round, and its median is reported with
the extremes. Before timing, all products are compared with the dense one.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable

import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from adaprune.deploy.runtime.sparse import SparseLinear
from adaprune.runs import environment
from benchmarks.bars import finish, parser_of
from benchmarks.inference import REFERENCE, seconds_in_turns, summary

MEASURED = ("384x384", "1536x384", "768x768", "3072x768")  # matrices of MiniLM and of BERT-base
BLOCKS, TOLERANCE = (4, 4), 1e-4


def products(layer: nn.Linear, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Way -> a function that gives x W^T; all that depends on W alone is made here.

    Raises:
        AssertionError: a product that differs from the dense one.
    """
    weight, ours = layer.weight.detach(), SparseLinear(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its compressed layouts beta
        csr, other, bsr = weight.to_sparse_csr(), weight.t().to_sparse_csr(), weight.to_sparse_bsr(BLOCKS)
    coo, scipys, table = weight.to_sparse_coo().coalesce(), csr_array(weight.numpy()), x.numpy()
    ways = {
        REFERENCE: lambda: layer(x),
        "embedding_bag": lambda: ours(x),
        "CSR": lambda: (csr @ x.t().contiguous()).t().contiguous(),
        "CSR, x left": lambda: x @ other,
        "COO": lambda: (coo @ x.t().contiguous()).t().contiguous(),
        "BSR": lambda: (bsr @ x.t().contiguous()).t().contiguous(),
        "scipy": lambda: torch.from_numpy((scipys @ table.T).T.copy()),
    }
    right = ways[REFERENCE]()
    for way, product in ways.items():
        gap = float((product() - right).abs().max())
        assert gap <= TOLERANCE, f"{way}: the product differs by {gap}"
    return ways


@torch.inference_mode()
def measure(asked: argparse.Namespace) -> list[dict]:
    """One row per way, shape, sparsity and number of tokens."""
    rows, generator = [], torch.Generator().manual_seed(0)
    for shape in asked.shapes:
        outputs, inputs = map(int, shape.split("x"))
        for sparsity in asked.sparsities:
            layer = nn.Linear(inputs, outputs, bias=False)
            scores = torch.rand(outputs, inputs, generator=generator)
            layer.weight.copy_(torch.randn(scores.shape, generator=generator) * inputs**-0.5 * (scores >= sparsity))
            for tokens in asked.tokens:
                x = torch.randn(tokens, inputs, generator=generator)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = summary(seconds_in_turns(products(layer, x), asked.times, asked.rounds))
                about = {"shape": shape, "sparsity": sparsity, "tokens": tokens}
                rows += [{**about, "way": way, **row} for way, row in found.items()]
                said = (f"{way} {row['faster']['median']:.2f}" for way, row in found.items() if way != REFERENCE)
                print(f"{shape} at {sparsity:g}, {tokens} tokens: " + ", ".join(said), flush=True)
    return rows


def main(given: list[str] | None = None) -> int:
    """Measures, prints and writes the results."""
    parser = parser_of("kernels", __doc__, judges=False)
    parser.add_argument("--shapes", nargs="+", default=list(MEASURED), metavar="OUTPUTSxINPUTS")
    parser.add_argument("--tokens", nargs="+", type=int, default=[8, 32, 128, 1024])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.9, 0.97])
    parser.add_argument("--times", type=int, default=3, help="products in one turn")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    print(f"times as fast as the dense product, medians of {asked.rounds} rounds in turns, one thread")
    rows = measure(asked)
    return finish(asked, environment(1, rounds=asked.rounds), [], rows=rows)


if __name__ == "__main__":
    sys.exit(main())
