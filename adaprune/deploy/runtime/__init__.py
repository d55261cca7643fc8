"""How a masked model runs after training: smaller, sparse, as ONNX, or serving many tasks.

Take from here `compact`, `save_compact`, `load_compact`, `set_runtime` and `export`.
Knows nothing else of `deploy`, but for `served_layers`, which reads a `Mask`.
"""

from adaprune.deploy.runtime.compact import compact
from adaprune.deploy.runtime.compact_file import load_compact, save_compact
from adaprune.deploy.runtime.onnx_file import export
from adaprune.deploy.runtime.sparse import (
    RUNTIMES,
    PlacedLinear,
    check_kernel,
    check_runtime,
    chosen,
    set_runtime,
    sparse_of,
    wins_of,
)
