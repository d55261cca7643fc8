"""What ships: mask files and the coding in them, tasks served from one base, and which task a text is of.

Take from here `load_mask`, `save_mask`, `apply_mask`, `MaskedEncoder` and the scores of task inference.
Imports `data`, `masks`, `runs` and `training`.
"""

from adaprune.deploy.coding import decode, encode
from adaprune.deploy.fitting import Mask, apply_mask, check_base
from adaprune.deploy.mask_file import load_mask, save_mask
from adaprune.deploy.serving import MaskedEncoder
from adaprune.deploy.task_inference import called, task_entropies, task_scores
