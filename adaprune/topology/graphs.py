"""A mask as networkx graphs: of blocks, of one matrix, of a neuron's neighbourhood; and files of these graphs."""

import json
from collections.abc import Mapping
from pathlib import Path

import networkx as nx
import numpy as np
from torch import Tensor

from adaprune.data import expanded
from adaprune.masks import EMBED, layer_of
from adaprune.topology.structure import ATTENTION, FFN, arrays, blocks, effective, heads_of, inner, matrix

MOST_EDGES = 500_000  # each takes about 0.2 kB and a microsecond in networkx
# Units of a layer by where a matrix leads: component -> (from, to); "stream" is the residual stream that enters a
# layer, "middle" the same after attention, and ffn_out writes into the next layer's stream.
WIRES = {
    "query": ("stream", "query"),
    "key": ("stream", "key"),
    "value": ("stream", "value"),
    "attention_output": ("value", "middle"),
    "ffn_in": ("middle", "ffn"),
    "ffn_out": ("ffn", "next"),
}


def head_graph(mask: Mapping[str, Tensor], heads: int | None = None) -> nx.DiGraph:
    """Heads and FFN blocks as nodes (``0.h3``, ``0.ffn``), with an edge if one can write what a later one reads.

        weight(a -> b) = sum_d out_a[d] in_b[d] / (the same with nothing pruned)

    out_a[d] and in_b[d] are the numbers of the block's kept connections to and from dimension d of the residual stream,
    without those on no path inside the block. A head reads with query, key and value. A mask file's card gives
    ``heads``.

    Node attributes: ``layer``, ``kind`` (head, ffn), ``head`` (-1 for ffn), ``kept``, ``density``, ``alive``. Edge:
    ``weight`` in (0, 1], ``paths``.
    """
    graph, sides, heads = nx.DiGraph(), {}, heads_of(mask, heads)
    for layer, parts in blocks(arrays(mask), heads).items():
        through, size = effective(parts, heads), len(parts["query"]) // heads
        spans = [(f"h{head}", ATTENTION, slice(head * size, (head + 1) * size)) for head in range(heads)]
        for head, (name, names, units) in enumerate([*spans, ("ffn", FFN, slice(None))]):
            whole, (*reads, writes) = inner(parts, names, units), inner(through, names, units)
            kind, node = "ffn" if name == "ffn" else "head", f"{layer}.{name}"
            kept, total = sum(int(a.sum()) for a in whole), sum(a.size for a in whole)
            graph.add_node(node, layer=layer, kind=kind, head=-1 if kind == "ffn" else head, kept=kept,
                           density=kept / total, alive=bool(writes.any()))  # fmt: skip
            ends = sum(a.sum(axis=0) for a in reads), writes.sum(axis=0)
            sides[node] = ((layer, kind == "ffn"), *ends, len(reads) * len(writes), len(writes))
    for source, (place, _, out, _, writers) in sides.items():
        for target, (later, into, _, readers, _) in sides.items():
            paths = int(out @ into) if place < later else 0
            if paths:
                graph.add_edge(source, target, paths=paths, weight=paths / (writers * readers * len(out)))
    return graph


def layer_graph(mask: Mapping[str, Tensor], layer: int | None, component: str) -> nx.Graph:
    """The bipartite graph of one matrix: nodes ``in 0``, ... and ``out 0``, ..., and one edge per kept connection.

    Node attributes: ``side`` (in, out), ``index``, ``bipartite`` (0: in, 1: out). Isolated nodes are included.

    Raises:
        ValueError: no such matrix (the message lists those there are), or more than 500,000 edges.
    """
    array = matrix(mask, layer, component)
    if (edges := int(array.sum())) > MOST_EDGES:
        raise ValueError(
            f"layer {layer}, {component} has {edges} edges, a graph to look at at most {MOST_EDGES}: "
            "use adaprune.topology on the matrix"
        )
    graph = nx.Graph(layer=-1 if layer is None else layer, component=component)
    for number, (side, count) in enumerate((("in", array.shape[1]), ("out", array.shape[0]))):
        graph.add_nodes_from((f"{side} {i}", {"side": side, "index": i, "bipartite": number}) for i in range(count))
    graph.add_edges_from((f"in {i}", f"out {o}") for o, i in np.argwhere(array).tolist())
    return graph


def neuron_neighbourhood(mask: Mapping[str, Tensor], neuron: str, hops: int = 1) -> nx.DiGraph:
    """All units within ``hops`` kept connections of a neuron, in either direction, and the connections walked.

    A unit is ``<layer>.<kind>.<number>``. The kind is query, key, value or ffn for inner units, stream for a dimension
    of the residual stream that enters the layer, and middle for one after its attention; with embeddings in the mask
    there is also ``word.<number>``. Residual connections, which join every unit of a dimension, are left out, and no
    edges join queries and keys. Node attributes: ``hops`` (distance), ``kind``, ``layer``, ``index``. Edge:
    ``component``.

    Raises:
        ValueError: no such unit, hops below 0, or more than 500,000 connections.
    """
    links = _links(arrays(mask))
    sizes = {link[end]: link[2].shape[1 - end] for link in links for end in (0, 1)}
    group, _, number = neuron.rpartition(".")
    if group not in sizes or not number.isdecimal() or int(number) >= sizes[group]:
        choices = ", ".join(f"{name}.0 ... {size - 1}" for name, size in list(sizes.items())[:8])
        raise ValueError(f"no unit {neuron!r} in the mask; units are {choices}, ...")
    if hops < 0:
        raise ValueError(f"hops must be at least 0, got {hops}")
    graph, frontier = nx.DiGraph(), {(group, int(number))}
    graph.add_node(neuron, hops=0, **_attributes(group, int(number)))
    for hop in range(1, hops + 1):
        reached = set()
        for name, unit in frontier:
            for source, target, array, component in links:
                ends = [((source, i), (name, unit)) for i in np.flatnonzero(array[unit])] if target == name else []
                ends += [((name, unit), (target, o)) for o in np.flatnonzero(array[:, unit])] if source == name else []
                for one, other in ends:
                    for end in (one, other):
                        if _label(end) not in graph:
                            graph.add_node(_label(end), hops=hop, **_attributes(*end))
                            reached.add(end)
                    graph.add_edge(_label(one), _label(other), component=component)
        if graph.number_of_edges() > MOST_EDGES:
            raise ValueError(f"{neuron} has over {MOST_EDGES} connections within {hop} hops: take fewer hops")
        frontier = reached
    return graph


def write_graph(graph: nx.Graph, path: str | Path) -> Path:
    """Writes a graph as GraphML (``.graphml``) or as node-link JSON (``.json``) and returns the path.

    Raises:
        ValueError: any other suffix.
        OSError: the file cannot be written.
    """
    path = expanded(path)
    if path.suffix not in (".graphml", ".json"):
        raise ValueError(f"{path}: graphs are written as .graphml or .json")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".graphml":
        nx.write_graphml(graph, path)
    else:
        path.write_text(json.dumps(nx.node_link_data(graph, edges="edges"), indent=1) + "\n", encoding="utf-8")
    return path


def _links(found: Mapping[str, np.ndarray]) -> list[tuple[str, str, np.ndarray, str]]:
    """(source group, target group, matrix, component) for every matrix of the mask."""
    links = []
    for layer, parts in blocks(found, 1).items():
        for component, (source, target) in WIRES.items():
            end = f"{layer + 1}.stream" if target == "next" else f"{layer}.{target}"
            links.append((f"{layer}.{source}", end, parts[component], component))
    return links + [("word", "0.stream", array, EMBED) for name, array in found.items() if layer_of(name) is None]


def _label(end: tuple[str, int]) -> str:
    return f"{end[0]}.{end[1]}"


def _attributes(group: str, number: int) -> dict[str, str | int]:
    layer, _, kind = group.rpartition(".")
    return {"kind": kind, "layer": int(layer) if layer else -1, "index": int(number)}
