# ruff: noqa: I001
"""The methods, one file each; `learning`, `oneshot` and `scores` hold what they share.

Take from here `METHODS` (name -> `Method`) and, for your own method, `learn`, `cut`, `input_norms` and `with_head`.
Imports `data` (for the probe), `masks`, `runs` and `training`.
"""

# One line per file, in the order in which methods are listed and drawn.
from adaprune.methods.adaprune import ADAPRUNE
from adaprune.methods.finetune import FINETUNE
from adaprune.methods.features import FEATURES
from adaprune.methods.majority import MAJORITY, constant
from adaprune.methods.probe import PROBE
from adaprune.methods.zero_shot import ZERO_SHOT
from adaprune.methods.random import RANDOM
from adaprune.methods.magnitude import MAGNITUDE
from adaprune.methods.gmp import GMP, GMP_FINETUNE
from adaprune.methods.imp import IMP, IMP_FINETUNE
from adaprune.methods.movement import MOVEMENT, MOVEMENT_FINETUNE, SOFT_MOVEMENT
from adaprune.methods.smp import SMP
from adaprune.methods.edge_popup import EDGE_POPUP
from adaprune.methods.threshold_mask import THRESHOLD_MASK
from adaprune.methods.bernoulli import BERNOULLI
from adaprune.methods.wanda import WANDA
from adaprune.methods.snip import SNIP
from adaprune.methods.lora import LORA
from adaprune.methods.ia3 import IA3
from adaprune.methods.bitfit import BITFIT
from adaprune.methods.learning import LEARNED, SCORES, learn, optimiser_for
from adaprune.methods.oneshot import cut, input_norms, with_head
from adaprune.methods.probe import of_pairs, probe_head
from adaprune.methods.scores import Scores
from adaprune.runs import METHODS, Method, register

_declared = [value for value in globals().values() if isinstance(value, Method)]
for _method in sorted(_declared, key=lambda method: method.mask and not method.weights_intact):
    register(_method)
