"""What ships: mask files and their coding, the zoo, serving many tasks from one base, smaller and faster models.

Take from here `load_mask`, `save_mask`, `apply_mask`, `zoo`, `MaskedEncoder`, `compact`, `export`, the task scores.
Imports `data`, `masks`, `runs` and `training`.
"""

from adaprune.deploy.coding import decode, encode
from adaprune.deploy.mask import Mask, apply_mask, base_of, check_base, given, head_of
from adaprune.deploy.mask_file import load_mask, save_mask, whole_file
from adaprune.deploy.runtime import compact, export, load_compact, save_compact, set_runtime
from adaprune.deploy.serving import MaskedEncoder
from adaprune.deploy.sharing import check_files, find_mask, front_matter, push, read_as, serve_in_pipelines
from adaprune.deploy.task_inference import called, task_entropies, task_scores
from adaprune.deploy.zoo_files import ZOO, zoo, zoo_name
