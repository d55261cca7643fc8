"""The methods: each finds a mask, or a model, for one job. One file, one function, one name each."""

from adaprune.methods.adaprune import adaprune
from adaprune.methods.bernoulli import bernoulli
from adaprune.methods.edge_popup import edge_popup
from adaprune.methods.features import features
from adaprune.methods.finetune import finetune
from adaprune.methods.gmp import gmp, gmp_finetune
from adaprune.methods.imp import imp, imp_finetune
from adaprune.methods.lora import lora
from adaprune.methods.magnitude import magnitude
from adaprune.methods.movement import movement, movement_finetune, soft_movement
from adaprune.methods.random import random
from adaprune.methods.smp import smp
from adaprune.methods.snip import snip
from adaprune.methods.threshold_mask import threshold_mask
from adaprune.methods.wanda import wanda

_WITHOUT_TRAINED_WEIGHTS = (
    adaprune, features, random, magnitude, movement, soft_movement, smp, edge_popup, threshold_mask, bernoulli,
    wanda, snip, gmp, imp,
)  # fmt: skip
_WITH_TRAINED_WEIGHTS = (finetune, movement_finetune, lora, gmp_finetune, imp_finetune)
METHODS = {method.__name__: method for method in (*_WITHOUT_TRAINED_WEIGHTS, *_WITH_TRAINED_WEIGHTS)}
