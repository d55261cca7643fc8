"""adaprune: adapting a pre-trained encoder by pruning. Learn a binary mask over frozen weights.

>>> import adaprune
>>> adaprune.Run(task="sst2", sparsity=0.9).method
'adaprune'
"""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings

__version__ = "0.2.0"

warnings.filterwarnings("ignore", "IProgress not found")  # from tqdm in notebooks: our bars are plain text on purpose

from adaprune.adapt import adapt
from adaprune.adapted import Adapted
from adaprune.data import load_task
from adaprune.deploy import (
    Mask,
    MaskedEncoder,
    apply_mask,
    compact,
    export,
    load_mask,
    save_mask,
    set_runtime,
    zoo,
)
from adaprune.fit import fit
from adaprune.masks import AdaPrune, attach, keep_top
from adaprune.methods import Method
from adaprune.nested import evaluate_at
from adaprune.runs import Run, table
from adaprune.training import AdaptationHead, AdaptedModel, load_encoder

__all__ = [
    "AdaPrune",
    "AdaptationHead",
    "Adapted",
    "AdaptedModel",
    "Mask",
    "MaskedEncoder",
    "Method",
    "Run",
    "adapt",
    "apply_mask",
    "attach",
    "compact",
    "evaluate_at",
    "export",
    "fit",
    "keep_top",
    "load_encoder",
    "load_mask",
    "load_task",
    "save_mask",
    "set_runtime",
    "table",
    "zoo",
]

# Modules of version 0.1 and the rooms they are in now. Version 0.3 removes the old names.
_MOVED = {
    "data": "datafiles metrics movie_reviews sampler tasks",
    "masks": "allocation counting optim ranks schedules theta",
    "runs": "files recipes records refusals run schema",
    "training": "checkpoints encoders heads job progress:trainer stages:checkpoints teachers weights:fitting",
    "methods": "learning oneshot",
    "deploy": "artifact:mask_file coding serving task_inference",
    "topology": "graphs overlap spectra",
    "report": "comparison contrasts drawings figures statistics sweeps",
    "teach": "exercises sketches theory",
}


class _OldNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module of version 0.1 in its room, and warns that it has moved."""

    places = {
        f"adaprune.{old.partition(':')[0]}": f"adaprune.{room}.{old.partition(':')[2] or old}"
        for room, modules in _MOVED.items()
        for old in modules.split()
    }

    def find_spec(self, fullname, path=None, target=None):
        return importlib.util.spec_from_loader(fullname, self) if fullname in self.places else None

    def create_module(self, spec):
        place = self.places[spec.name]
        warnings.warn(f"{spec.name} is now {place}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(place)
        self.own = module.__spec__  # the import system replaces it with the old name's
        return module

    def exec_module(self, module):
        module.__spec__ = self.own


sys.meta_path.append(_OldNames())
