"""What a mask looks like: counts by block, remaining paths, graphs, spectra, and the overlap of two masks.

Take from here `report` (one mask), `jaccard` and `kept_by` (several), and the modules `graphs` and `overlap`.
Imports `data`, `masks`, and from `training` the progress bar and the reading of tensors.
"""

from adaprune.topology import graphs, overlap
from adaprune.topology.overlap import jaccard, kept_by
from adaprune.topology.spectra import composed, degrees, spectrum
from adaprune.topology.structure import (
    ATTENTION,
    FFN,
    arrays,
    blocks,
    connected_components,
    effective,
    heads_of,
    inner,
    matrix,
    report,
)
