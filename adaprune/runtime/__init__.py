"""How a masked model is run elsewhere than where it was trained: smaller, sparse, as ONNX, in pipelines, on the hub.

Take from here `compact`, `save_compact`, `load_compact`, `set_runtime`, `export`, `serve_in_pipelines` and `push`.
Imports `masks`, `runs` and `training`.
"""

from adaprune.runtime.compact import compact
from adaprune.runtime.compact_file import load_compact, save_compact
from adaprune.runtime.onnx_file import export
from adaprune.runtime.sharing import front_matter, push, serve_in_pipelines
from adaprune.runtime.sparse import PlacedLinear, SparseLinear, check_runtime, set_runtime
