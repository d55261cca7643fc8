"""What ships: mask files and their coding, the zoo, tasks served from one base model, which task a text belongs to.

Take from here `load_mask`, `save_mask`, `apply_mask`, `zoo`, `MaskedEncoder` and the scores of which task a text is of.
Imports `masks`, `runs`, `runtime` and `training`.
"""

from adaprune.deploy.coding import decode, encode
from adaprune.deploy.mask import Mask, base_of, check_base, given
from adaprune.deploy.mask_file import apply_mask, find_mask, load_mask, save_mask
from adaprune.deploy.serving import MaskedEncoder
from adaprune.deploy.task_inference import called, task_entropies, task_scores
from adaprune.deploy.zoo_files import ZOO, zoo, zoo_name
