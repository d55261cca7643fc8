"""Graph views: the small mask by hand, random ones against products of matrices, and files that come back."""

import json
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest

from adaprune.topology import graphs
from adaprune.topology.structure import arrays, blocks, effective
from tests.topology.test_structure import by_hand, random_mask


def test_head_graph_by_hand():
    graph = graphs.head_graph(by_hand(), heads=2)
    assert list(graph) == ["0.h0", "0.h1", "0.ffn"]
    assert graph.nodes["0.h0"] == {"layer": 0, "kind": "head", "head": 0, "kept": 6, "density": 6 / 8, "alive": True}
    assert graph.nodes["0.h1"]["alive"] is False
    assert graph.nodes["0.ffn"] == {"layer": 0, "kind": "ffn", "head": -1, "kept": 5, "density": 5 / 8, "alive": True}
    # head 0 writes both dimensions once, neuron 0 reads both once: 2 paths of 1 unit x 2 neurons x 2 dimensions
    assert list(graph.edges(data=True)) == [("0.h0", "0.ffn", {"paths": 2, "weight": 2 / 4})]


def test_heads_come_from_the_mask_files_card():
    mask = by_hand()
    of_file = SimpleNamespace(masks=mask, card={"heads": 2})
    assert nx.utils.graphs_equal(graphs.head_graph(of_file), graphs.head_graph(mask, heads=2))
    with pytest.raises(ValueError, match="give heads=, config.num_attention_heads"):
        graphs.head_graph(mask)


def test_head_graph_weights_are_shares_of_paths():
    mask = random_mask(0.3, layers=3, seed=5)
    graph, heads = graphs.head_graph(mask, heads=2), 2
    layers = {layer: effective(parts, heads) for layer, parts in blocks(arrays(mask), heads).items()}
    writes = layers[0]["attention_output"][:, 4:8].astype(int)  # head 1 of layer 0
    reads = np.concatenate([layers[2][name][:4] for name in ("query", "key", "value")]).astype(int)  # head 0 of layer 2
    paths = (reads @ writes).sum()
    assert graph.edges["0.h1", "2.h0"] == {"paths": paths, "weight": paths / (4 * 12 * 8)}
    assert all(0 < weight <= 1 for *_, weight in graph.edges(data="weight"))
    assert nx.is_directed_acyclic_graph(graph)
    for one, other in graph.edges:
        assert graph.nodes[one]["layer"] <= graph.nodes[other]["layer"]


def test_layer_graph_is_the_matrix():
    mask = random_mask(0.3, words=20)
    graph = graphs.layer_graph(mask, 1, "ffn_in")
    found = nx.bipartite.biadjacency_matrix(graph, [f"out {i}" for i in range(12)], [f"in {i}" for i in range(8)])
    assert (found.toarray() == mask["encoder.layer.1.intermediate.dense.weight"].numpy()).all()
    assert nx.is_bipartite(graph) and len(graph) == 20 and graph.nodes["out 3"]["index"] == 3
    assert len(graphs.layer_graph(mask, None, "embed")) == 28
    with pytest.raises(ValueError, match="no matrix of layer 7"):
        graphs.layer_graph(mask, 7, "ffn_in")


def test_a_graph_too_large_to_look_at_is_refused(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_EDGES", 10)
    with pytest.raises(ValueError, match="edges, a graph to look at at most 10"):
        graphs.layer_graph(random_mask(), 0, "query")
    with pytest.raises(ValueError, match="over 10 connections within 1 hops"):
        graphs.neuron_neighbourhood(random_mask(0.9), "0.ffn.0")


def test_a_neighbourhood_by_hand():
    graph = graphs.neuron_neighbourhood(by_hand(), "0.ffn.1")
    assert sorted(graph.edges) == [("0.ffn.1", "1.stream.0"), ("0.ffn.1", "1.stream.1")]
    graph = graphs.neuron_neighbourhood(by_hand(), "0.value.0", hops=2)
    assert dict(graph.nodes(data="hops")) == {
        "0.value.0": 0, "0.stream.1": 1, "0.middle.0": 1, "0.middle.1": 1,
        "0.query.1": 2, "0.key.0": 2, "0.value.1": 2, "0.ffn.0": 2,
    }  # fmt: skip
    assert graph.edges["0.stream.1", "0.key.0"]["component"] == "key"
    assert len(graphs.neuron_neighbourhood(by_hand(), "0.ffn.0", hops=0)) == 1


def test_a_neighbourhood_is_the_ego_graph_of_the_whole():
    mask = random_mask(0.12, layers=2, words=9, seed=2)
    whole = nx.DiGraph()
    for layer in (0, 1):
        for component, (source, target) in graphs.WIRES.items():
            end = f"{layer + 1}.stream" if target == "next" else f"{layer}.{target}"
            matrix = blocks(arrays(mask), 2)[layer][component]
            whole.add_edges_from((f"{layer}.{source}.{i}", f"{end}.{o}") for o, i in np.argwhere(matrix))
    words = mask["embeddings.word_embeddings.weight"].numpy()
    whole.add_edges_from((f"word.{w}", f"0.stream.{d}") for w, d in np.argwhere(words))
    start = next(node for node in whole if node.startswith("1.middle") and whole.degree(node) > 1)
    for hops in (1, 2, 3):
        expected = nx.single_source_shortest_path_length(whole.to_undirected(), start, cutoff=hops)
        assert dict(graphs.neuron_neighbourhood(mask, start, hops).nodes(data="hops")) == expected


@pytest.mark.parametrize("neuron", ["0.ffn.12", "9.ffn.0", "0.nothing.1", "ffn", "0.ffn.-1", "0.ffn.x", "word.0"])
def test_units_that_are_not_there_are_refused(neuron):
    with pytest.raises(ValueError, match=r"no unit .* units are 0.stream.0 ... 7"):
        graphs.neuron_neighbourhood(random_mask(), neuron)
    with pytest.raises(ValueError, match="hops must be at least 0"):
        graphs.neuron_neighbourhood(random_mask(), "0.ffn.0", hops=-1)


def test_written_graphs_come_back(tmp_path):
    mask = random_mask(0.4)
    for graph in (
        graphs.head_graph(mask, 2),
        graphs.layer_graph(mask, 0, "value"),
        graphs.neuron_neighbourhood(mask, "1.ffn.3", 2),
    ):
        for suffix, read in ((".graphml", nx.read_graphml), (".json", from_json)):
            back = read(graphs.write_graph(graph, tmp_path / "deep" / f"graph{suffix}"))
            assert dict(back.nodes(data=True)) == dict(graph.nodes(data=True))
            assert nx.utils.edges_equal(back.edges(data=True), graph.edges(data=True), directed=graph.is_directed())
    with pytest.raises(ValueError, match=".graphml or .json"):
        graphs.write_graph(graph, tmp_path / "graph.pickle")


def from_json(path):
    return nx.node_link_graph(json.loads(path.read_text()), edges="edges")
