"""What ships: mask files and their coding, the zoo, models made smaller and faster, tasks served from one base.

Take from here `load_mask`, `save_mask`, `apply_mask`, `zoo`, `compact`, `set_runtime`, `export`, `MaskedEncoder` and
the scores of which task a text is of.
Imports `masks`, `runs` and `training`.
"""

from adaprune.deploy.coding import decode, encode
from adaprune.deploy.compact import compact
from adaprune.deploy.compact_file import load_compact, save_compact
from adaprune.deploy.mask import Mask, base_of, check_base, given
from adaprune.deploy.mask_file import apply_mask, load_mask, save_mask
from adaprune.deploy.onnx_file import export
from adaprune.deploy.serving import MaskedEncoder
from adaprune.deploy.sharing import front_matter, push, serve_in_pipelines
from adaprune.deploy.sparse import set_runtime
from adaprune.deploy.task_inference import called, task_entropies, task_scores
from adaprune.deploy.zoo_files import ZOO, zoo, zoo_name
