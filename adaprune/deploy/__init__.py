"""What ships: mask files and the coding in them, the zoo, tasks served from one base, and which task a text is of.

Take from here `load_mask`, `save_mask`, `apply_mask`, `zoo`, `MaskedEncoder` and the scores of task inference.
Imports `masks`, `runs` and `training`.
"""

from adaprune.deploy.coding import decode, encode
from adaprune.deploy.mask import Mask, base_of, check_base, given
from adaprune.deploy.mask_file import apply_mask, load_mask, save_mask
from adaprune.deploy.serving import MaskedEncoder
from adaprune.deploy.sharing import front_matter, push, serve_in_pipelines
from adaprune.deploy.task_inference import called, task_entropies, task_scores
from adaprune.deploy.zoo_files import ZOO, zoo, zoo_name
