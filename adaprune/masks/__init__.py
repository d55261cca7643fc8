"""The mathematics: masks over frozen weights, theta, the optimiser of the paper, its schedules, and counting.

Take from here what a method or an analysis needs of masks: `attach`, `keep_top`, `AdaPrune`, `summary` and so on.
Imports torch alone: no other room.
"""

from adaprune.masks.allocation import counts, shares
from adaprune.masks.counting import COMPONENTS, EMBED, check_keeps, component_of, count_kept, layer_of, summary
from adaprune.masks.cuts import keep_each, keep_top, keep_units, masks_of_units, sum_over_units
from adaprune.masks.layers import (
    MaskedEmbedding,
    MaskedLinear,
    attach,
    detach,
    maskable,
    masked,
    set_masks,
    thetas_of,
    threshold_of,
)
from adaprune.masks.optim import AdaPrune
from adaprune.masks.ranks import ranks
from adaprune.masks.schedules import ControlOfUnits, SparsityControl, cubic_sparsity, slanted_triangular, warmup_linear
from adaprune.masks.steps import RULES
from adaprune.masks.surrogate import relaxed_mask, surrogate_gradient, surrogate_slope
from adaprune.masks.theta import SCORED, initial_theta, protect, theta_in_order
