"""What ships: mask files and the coding in them, tasks served from one base, and which task a text is of.

Take from here `load_mask`, `save_mask`, `apply_mask`, `MaskedEncoder` and the scores of task inference.
Imports `masks`, `runs` and `training`.
"""

from adaprune.deploy.coding import decode, encode
from adaprune.deploy.mask_file import Mask, apply_mask, check_base, load_mask, save_mask
from adaprune.deploy.pipelines import serve_in_pipelines
from adaprune.deploy.serving import MaskedEncoder, front_matter, push
from adaprune.deploy.task_inference import called, task_entropies, task_scores
