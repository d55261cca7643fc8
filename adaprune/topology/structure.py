"""The topology of one mask: counts, degrees, dead units, effective sparsity, components, spectra, persistence.

A mask is a dict weight name -> boolean tensor (True = kept), as in `adaprune.masks`, or an `adaprune.Mask` from a file.
The matrix of a linear layer has shape (outputs, inputs); an embedding table (words, width) has its words as inputs.
Everything here is about the graph of kept weights. Biases are never masked and pass through units called dead here.
"""

import math
import warnings
from collections.abc import Mapping
from numbers import Integral
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse import csgraph
from threadpoolctl import threadpool_limits
from torch import Tensor

from adaprune.masks import EMBED, component_of, layer_of
from adaprune.topology.spectra import composed, degrees, spectrum
from adaprune.training import bar

ATTENTION, FFN = ("query", "key", "value", "attention_output"), ("ffn_in", "ffn_out")


class Report(NamedTuple):
    """All statistics of a mask: one row per matrix, head and FFN block; layer -1 is the embeddings."""

    matrices: pd.DataFrame
    heads: pd.DataFrame
    ffn: pd.DataFrame


class OtherLayers(ValueError):
    """A mask of layers that do not consist of query, key, value, attention output and two FFN matrices."""


def arrays(mask: Mapping[str, Tensor], extreme: bool = False) -> dict[str, np.ndarray]:
    """The mask's matrices as boolean arrays (outputs, inputs), with tables transposed; also accepts a loaded mask file.

    Raises:
        ValueError: not a mask, no matrix, one that is not boolean and 2-dimensional, or nothing or everything kept.
    """
    masks = getattr(mask, "masks", mask)
    if not isinstance(masks, Mapping):
        raise ValueError(f"a mask is a dict name -> boolean tensor or what load_mask returns, got {mask!r:.99}")
    found = {}
    for name, tensor in masks.items():
        array = np.asarray(tensor)
        if array.dtype != bool or array.ndim != 2 or not array.size:
            raise ValueError(f"{name}: a mask is a boolean matrix, got {array.dtype} {array.shape}")
        found[name] = array.T if component_of(name) == EMBED else array
    kept, total = sum(int(a.sum()) for a in found.values()), sum(a.size for a in found.values())
    if not extreme and kept in (0, total):
        raise ValueError(f"the mask keeps {kept} of {total} connections: there is no topology to study")
    return found


def matrix(mask: Mapping[str, Tensor], layer: int | None, component: str) -> np.ndarray:
    """One matrix (outputs, inputs) by the number of its layer (None: the embeddings) and its component.

    Raises:
        ValueError: no such layer or component in the mask; the message lists those there are.
    """
    found: dict[tuple[int | None, str], np.ndarray] = {}
    for name, array in arrays(mask).items():
        if (place := (layer_of(name), component_of(name))) in found:
            raise ValueError(
                f"the mask has several matrices of layer {place[0]}, component {place[1]!r}: take it by name"
            )
        found[place] = array
    if (layer, component) not in found:
        choices = ", ".join(f"{layer} {component}" for layer, component in found)
        raise ValueError(f"the mask has no matrix of layer {layer}, component {component!r}; it has {choices}")
    return found[layer, component]


def blocks(found: Mapping[str, np.ndarray], heads: int) -> dict[int, dict[str, np.ndarray]]:
    """The six matrices of each Transformer layer by component, from `arrays`.

    Raises:
        ValueError: a layer without all six, or a width that ``heads`` does not divide; or `OtherLayers`.
    """
    layers: dict[int, dict[str, np.ndarray]] = {}
    for name, array in found.items():
        if (layer := layer_of(name)) is not None:
            parts, part = layers.setdefault(layer, {}), component_of(name)
            if part in parts and part != "other":
                raise OtherLayers(f"layer {layer} has more than one {part}: heads and FFN blocks have one")
            parts[part] = array
    for layer, parts in layers.items():
        if missing := {*ATTENTION, *FFN} - parts.keys():
            kind = OtherLayers if "other" in parts else ValueError
            raise kind(f"layer {layer} has no {', '.join(sorted(missing))}: heads and FFN blocks need all six")
        widths = {len(parts[part]) for part in ATTENTION[:3]} | {parts[ATTENTION[3]].shape[1]}
        if len(widths) > 1 or len(parts[FFN[0]]) != parts[FFN[1]].shape[1]:
            raise OtherLayers(f"layer {layer}: what its matrices write and read does not have one width")
        if heads < 1 or len(parts["query"]) % heads:
            raise ValueError(f"layer {layer}: {len(parts['query'])} query outputs do not make {heads} equal heads")
    return dict(sorted(layers.items()))


def heads_of(mask: Mapping[str, Tensor], heads: int | None) -> int:
    """Attention heads per layer: as given, or else from the card of the mask file.

    Raises:
        ValueError: neither says it, or it is not a whole number.
    """
    told = getattr(mask, "card", {}).get("heads") if heads is None else heads
    if told is None:
        raise ValueError(
            "nothing says how many heads a layer has: give heads=, config.num_attention_heads of the model"
        )
    if isinstance(told, bool) or not isinstance(told, Integral):
        raise ValueError(f"heads must be a whole number, got {told!r}")
    return int(told)


def inner(parts: Mapping[str, np.ndarray], names: tuple[str, ...], units: slice = slice(None)) -> list[np.ndarray]:
    """The matrices of a head (``ATTENTION``) or FFN block (``FFN``) with its units as rows, the output matrix last."""
    return [parts[name][:, units].T if name in (ATTENTION[-1], FFN[-1]) else parts[name][units] for name in names]


def effective(parts: Mapping[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """A layer's matrices without the connections that are on no input-output path inside a head or FFN block.

        value unit or FFN neuron j is live:  it has a kept input and a kept output
        query and key unit j are live:  both have a kept input, and the head has a live value unit

    This is effective sparsity (Vysogorets and Kempe, arXiv 2107.02306) within blocks, because across blocks the
    residual connections give everything a path.
    """
    value = parts["value"].any(axis=1) & parts["attention_output"].any(axis=0)
    of_head = np.repeat(value.reshape(heads, -1).any(axis=1), len(value) // heads)
    scores = parts["query"].any(axis=1) & parts["key"].any(axis=1) & of_head
    neurons = parts["ffn_in"].any(axis=1) & parts["ffn_out"].any(axis=0)
    live = dict(zip((*ATTENTION, *FFN), (scores, scores, value, value, neurons, neurons), strict=True))
    writing = (ATTENTION[-1], FFN[-1])
    return {part: parts[part] & (units if part in writing else units[:, None]) for part, units in live.items()}


def connected_components(array: np.ndarray) -> tuple[int, int]:
    """The number of connected components of a matrix's bipartite graph (including lone nodes), and the largest size."""
    count, labels = csgraph.connected_components(_bipartite(sparse.coo_array(array)), directed=False)
    return count, int(np.bincount(labels).max())


def persistence(array: np.ndarray, weight: np.ndarray, largest: float, p: float = 2.0) -> float:
    """Normalised 0-dimensional neural persistence of a masked matrix, in [0, 1] (Rieck et al., arXiv 1812.09764).

        ( sum over merges of (1 - |w| / largest)^p )^(1/p)  /  (nodes - 1)^(1/p)

    Edges are added in the order of decreasing |w|; merges are the edges of the maximum spanning tree, and an isolated
    node merges at 0. Caveat: for dense matrices this is close to a function of the weights' variance (Girrbach et al.,
    arXiv 2307.10865), and for a mask it mostly says how many weights are small or removed.

    Args:
        array, weight: mask and weights, (outputs, inputs).
        largest: the scale, the largest |w| of the network.
        p: of the norm.
    """
    edges = sparse.coo_array(array)
    # 2 - |w| instead of 1 - |w|: the shortest tree is the same, and scipy treats an edge of length 0 as missing
    edges.data = 2 - np.abs(weight[edges.row, edges.col]) / largest
    merges = csgraph.minimum_spanning_tree(_bipartite(edges)).data - 1
    nodes = sum(array.shape)
    return float(((merges**p).sum() + (nodes - 1 - len(merges))) / (nodes - 1)) ** (1 / p)


@threadpool_limits.wrap(limits=1, user_api="blas")  # the matrices are small, and idle BLAS threads spin on shared cores
def report(
    mask: Mapping[str, Tensor],
    heads: int | None = None,
    weights: Mapping[str, Tensor] | None = None,
    seen: np.ndarray | None = None,
    progress: bool = True,
) -> Report:
    """Every statistic of a mask, by matrix, head and FFN block; shows a progress bar.

    For `OtherLayers` (fused or gated matrices, such as ModernBERT's) it reports only the matrices, and warns.

    Args:
        mask: may include word embeddings.
        heads: attention heads per layer; by default from a mask file's card.
        weights: w0 by name, for the persistence, which is NaN without them.
        seen: which words occur in training, boolean (words,). The table's rows are then reported in two parts,
            components ``embed_seen`` and ``embed_unseen``.

    Raises:
        ValueError: see `arrays`, `blocks` and `heads_of`; or weights or words seen do not fit the mask.
    """
    found, heads = arrays(mask), heads_of(mask, heads)
    try:
        layers = blocks(found, heads)
    except OtherLayers as error:
        warnings.warn(f"{error}; only the matrices are reported", stacklevel=2)
        layers = {}
    _check_weights(found, weights)
    _check_seen(found, seen)
    through = {layer: effective(parts, heads) for layer, parts in layers.items()}
    largest = max(float(weights[name].abs().max()) for name in found) if weights else math.nan
    rows, of_heads, ffn = [], [], []
    for name, array in bar(found.items(), desc="topology", unit="matrix", disable=not progress):
        layer, part = layer_of(name), component_of(name)
        row = {"name": name, "layer": -1 if layer is None else layer, "component": part}
        weight = None if weights is None else weights[name].detach().float().numpy()
        words = {"": slice(None)} if part != EMBED or seen is None else {"_seen": seen, "_unseen": ~np.asarray(seen)}
        for suffix, columns in words.items():
            if not (some := array[:, columns]).size:
                continue
            kept = int((through[layer][part] if layer in through and part in through[layer] else some).sum())
            strength = weight if part != EMBED or weight is None else weight.T[:, columns]
            line = math.nan if weight is None else persistence(some, strength, largest)
            rows.append({**row, "component": part + suffix, **_of_matrix(some, kept), "persistence": line})
    for layer, parts in layers.items():
        size = len(parts["query"]) // heads
        for head in range(heads):
            spans = [inner(some, ATTENTION, slice(head * size, (head + 1) * size)) for some in (parts, through[layer])]
            of_heads.append({"layer": layer, "head": head, **_of_block(*spans), **_of_head(*spans)})
        ffn.append({"layer": layer, **_of_block(inner(parts, FFN), inner(through[layer], FFN))})
    return Report(pd.DataFrame(rows), pd.DataFrame(of_heads), pd.DataFrame(ffn))


def _check_weights(found: Mapping[str, np.ndarray], weights: Mapping[str, Tensor] | None) -> None:
    """ValueError if ``weights`` (where given) lack a matrix of `arrays`, have another shape, or are all 0."""
    if weights is None:
        return
    for name, array in found.items():
        shape = array.T.shape if component_of(name) == EMBED else array.shape
        if name not in weights:
            raise ValueError(f"weights have no {name}, which the mask has")
        if tuple(weights[name].shape) != shape:
            raise ValueError(f"{name}: the weights have shape {tuple(weights[name].shape)}, the mask {shape}")
    if not any(weights[name].any() for name in found):
        raise ValueError("weights are 0 in all matrices of the mask: their persistence has no scale")


def _check_seen(found: Mapping[str, np.ndarray], seen: np.ndarray | None) -> None:
    """ValueError if ``seen`` (where given) is not one boolean per word of the table."""
    for name, array in found.items():
        if seen is None or component_of(name) != EMBED:
            continue
        told, words = np.asarray(seen), array.shape[1]
        if told.dtype != bool or told.shape != (words,):
            raise ValueError(
                f"seen must be boolean of shape ({words},), the words of {name}, got {told.dtype} {told.shape}"
            )


def _of_matrix(array: np.ndarray, effective_kept: int) -> dict[str, float]:
    """The statistics of one matrix, except its persistence."""
    into, out = degrees(array)
    kept, total = int(into.sum()), array.size
    count, largest = connected_components(array)
    return {
        "total": total, "kept": kept, "sparsity": 1 - kept / total,
        "effective_kept": effective_kept, "effective_sparsity": 1 - effective_kept / total,
        "outputs": len(into), "inputs": len(out),
        "dead_outputs": int((into == 0).sum()), "dead_inputs": int((out == 0).sum()),
        "in_spread": _spread(into, len(out)), "out_spread": _spread(out, len(into)),
        "parts": count, "largest_part": largest, **spectrum(array),
    }  # fmt: skip


def _spread(found: np.ndarray, most: int) -> float:
    """Standard deviation of degrees divided by that of a binomial, i.e. of a random mask: 1 is chance."""
    p = found.mean() / most
    return float(found.std() / math.sqrt(most * p * (1 - p))) if 0 < p < 1 else math.nan


def _of_block(whole: list[np.ndarray], path: list[np.ndarray]) -> dict[str, float]:
    """Counts for a head or FFN block: kept connections, those on a path, and inner units on no path."""
    kept, on_path = (sum(int(a.sum()) for a in some) for some in (whole, path))
    total, dead = sum(a.size for a in whole), int((~path[-1].any(axis=1)).sum())
    return {"total": total, "kept": kept, "sparsity": 1 - kept / total, "effective_sparsity": 1 - on_path / total,
            "units": len(path[-1]), "dead_units": dead, "dead": dead == len(path[-1])}  # fmt: skip


def _of_head(whole: list[np.ndarray], path: list[np.ndarray]) -> dict[str, float]:
    """Statistics only of heads: units without a query-key product, and the spectra of query-key and value-output."""
    query, key, value, output = whole
    dead = int((~path[0].any(axis=1)).sum())
    spectra = [(*composed(*pair), 0.0)[:2] for pair in ((query, key), (output, value))]
    names = ("qk_mu1", "qk_mu2", "vo_mu1", "vo_mu2")
    return {"dead_query_key_units": dead, **dict(zip(names, (v for pair in spectra for v in pair), strict=True))}


def _bipartite(edges: sparse.coo_array) -> sparse.csr_array:
    """The graph over outputs and then inputs, each edge once; scipy reads it as undirected."""
    m, n = edges.shape
    entries = (edges.data, (edges.row, edges.col + np.int32(m)))
    return sparse.coo_array(entries, shape=(m + n, m + n)).tocsr()
