"""adaprune: adapting a pre-trained encoder by pruning. Learn a binary mask over frozen weights.

>>> import adaprune
>>> adaprune.Run(task="sst2", sparsity=0.9).method
'adaprune'
"""

import warnings

__version__ = "0.1.0"

warnings.filterwarnings("ignore", "IProgress not found")  # of tqdm in notebooks: our bars are plain text, on purpose

from adaprune.adapt import adapt
from adaprune.data import load_task
from adaprune.deploy import Mask, MaskedEncoder, apply_mask, load_mask, save_mask
from adaprune.masks import AdaPrune, attach, keep_top
from adaprune.nested import evaluate_at
from adaprune.runs import Run, table
from adaprune.training import AdaptationHead, AdaptedModel, load_encoder

__all__ = [
    "AdaPrune",
    "AdaptationHead",
    "AdaptedModel",
    "Mask",
    "MaskedEncoder",
    "Run",
    "adapt",
    "apply_mask",
    "attach",
    "evaluate_at",
    "keep_top",
    "load_encoder",
    "load_mask",
    "load_task",
    "save_mask",
    "table",
]
