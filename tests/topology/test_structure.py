"""Topology of one mask: a small one counted by hand, random ones against networkx, brute force and numpy."""

import math
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch

from adaprune.topology import structure as topology
from adaprune.topology.spectra import composed, degrees, singular_values
from adaprune.topology.structure import arrays, blocks, connected_components, effective, report

SHAPES = {"attention.self.query": "dd", "attention.self.key": "dd", "attention.self.value": "dd",
          "attention.output.dense": "dd", "intermediate.dense": "fd", "output.dense": "df"}  # fmt: skip


def random_mask(density=0.5, layers=2, width=8, neurons=12, words=0, seed=0):
    """A random mask of a small BERT by the names of its weights."""
    generator, sizes = torch.Generator().manual_seed(seed), {"d": width, "f": neurons}
    shapes = {
        f"encoder.layer.{i}.{n}.weight": tuple(sizes[c] for c in s) for i in range(layers) for n, s in SHAPES.items()
    }
    if words:
        shapes["embeddings.word_embeddings.weight"] = (words, width)
    return {name: torch.rand(shape, generator=generator) < density for name, shape in shapes.items()}


def by_hand():
    """One layer, width 2, two heads of one unit, two neurons."""
    rows = {
        "attention.self.query": [[1, 0], [0, 1]],
        "attention.self.key": [[1, 1], [0, 0]],  # unit 1: no key
        "attention.self.value": [[0, 1], [1, 1]],
        "attention.output.dense": [[1, 0], [1, 0]],  # unit 1 (second column): writes nothing
        "intermediate.dense": [[1, 1], [0, 0]],  # neuron 1: reads nothing
        "output.dense": [[1, 1], [0, 1]],
    }
    return {f"encoder.layer.0.{name}.weight": torch.tensor(value) == 1 for name, value in rows.items()}


def test_a_small_mask_by_hand():
    found = report(by_hand(), heads=2, progress=False)
    table = found.matrices.set_index("component")
    assert table["kept"].to_dict() == {
        "query": 2, "key": 2, "value": 3, "attention_output": 2, "ffn_in": 2, "ffn_out": 3
    }  # fmt: skip
    # head 1 has no path: its query, value go (key, output have none); of the FFN the two connections of neuron 1
    assert table["effective_kept"].to_dict() == {
        "query": 1, "key": 2, "value": 1, "attention_output": 2, "ffn_in": 2, "ffn_out": 1
    }  # fmt: skip
    assert table["dead_outputs"].to_dict() == {
        "query": 0, "key": 1, "value": 0, "attention_output": 0, "ffn_in": 1, "ffn_out": 0
    }  # fmt: skip
    assert table.loc["attention_output", "dead_inputs"] == 1
    assert table.loc["query", ["parts", "largest_part"]].tolist() == [2, 2]
    assert table.loc["ffn_in", ["parts", "largest_part"]].tolist() == [2, 3]
    assert found.heads["dead"].tolist() == [False, True]
    assert found.heads["kept"].tolist() == [1 + 2 + 1 + 2, 1 + 0 + 2 + 0]
    assert found.heads["effective_sparsity"].tolist() == [1 - 6 / 8, 1.0]
    assert found.heads["dead_query_key_units"].tolist() == [0, 1]
    assert found.ffn.loc[0, ["kept", "dead_units", "units", "dead"]].tolist() == [5, 1, 2, False]
    assert table["sparsity"].to_dict() == {
        "query": 0.5, "key": 0.5, "value": 0.25, "attention_output": 0.5, "ffn_in": 0.5, "ffn_out": 0.25
    }  # fmt: skip
    assert table["kept"].sum() == 14 and table["total"].sum() == 24


def test_spectra_by_hand():
    # rows (1 1), (1 1): rank one, sigma = 2; the identity: 1, 1
    assert np.allclose(singular_values(np.ones((2, 2), bool)), [2, 0])
    assert np.allclose(singular_values(np.eye(3, dtype=bool)), [1, 1])
    # the complete 4 x 9 graph: mu = 6, 0; degrees 9 and 4, so ramanujan = sqrt 8 + sqrt 3, alone = 2 sqrt 5; p = 1
    found = topology.spectrum(np.ones((4, 9), bool))
    expected = {"mu1": 6, "mu2": 0, "gap": 6, "ramanujan": 8**0.5 + 3**0.5, "alone": 2 * 5**0.5, "mu2_random": math.nan}
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)  # whole: no chance, as mu2 / 0 would be infinite
    # an isolated output and two isolated inputs change none of it
    assert topology.spectrum(np.pad(np.ones((4, 9), bool), ((0, 1), (2, 0)))) == pytest.approx(
        expected, abs=1e-6, nan_ok=True
    )
    assert math.isnan(topology.spectrum(np.eye(4, dtype=bool))["ramanujan"])  # degrees below 3
    assert math.isnan(topology.spectrum(np.zeros((2, 2), bool))["mu1"])


def test_persistence_by_hand():
    # the edges .9 and .6 join three of the four nodes, the fourth stays alone; then all are joined by 1, .9 and .6
    weight, mask = np.array([[0.9, -0.6], [1.0, 0.2]]), np.array([[True, True], [False, False]])
    assert topology.persistence(mask, weight, 1.0) == pytest.approx(math.sqrt((0.1**2 + 0.4**2 + 1) / 3))
    assert topology.persistence(np.ones((2, 2), bool), weight, 1.0, p=1) == pytest.approx((0 + 0.1 + 0.4) / 3)


def graph_of(array):
    graph = nx.Graph()
    graph.add_nodes_from(range(sum(array.shape)))
    graph.add_edges_from((int(o), len(array) + int(i)) for o, i in np.argwhere(array))
    return graph


@pytest.mark.parametrize("density", [0.03, 0.1, 0.5])
def test_random_matrices_against_networkx_and_numpy(density):
    generator = np.random.default_rng(1)
    array, weight = generator.random((17, 29)) < density, generator.normal(size=(17, 29))
    graph = graph_of(array)
    into, out = degrees(array)
    assert [*into, *out] == [degree for _, degree in graph.degree()]
    parts = list(nx.connected_components(graph))
    assert connected_components(array) == (len(parts), max(map(len, parts)))
    assert np.allclose(singular_values(array, 4), np.linalg.svd(array.astype(float))[1][:4])
    assert np.allclose(singular_values(array.T, 4), singular_values(array, 4))
    largest = np.abs(weight).max()
    for o, i in np.argwhere(array):
        graph.edges[int(o), 17 + int(i)]["weight"] = abs(weight[o, i]) / largest
    merges = [data["weight"] for *_, data in nx.maximum_spanning_edges(graph)]
    lives = [1 - w for w in merges] + [1.0] * (len(parts) - 1)
    assert len(lives) == 45
    assert topology.persistence(array, weight, largest) == pytest.approx(np.linalg.norm(lives) / math.sqrt(45))


@pytest.mark.parametrize("density", [0.1, 0.25, 0.6])
def test_effective_connections_lie_on_a_path_that_networkx_finds(density):
    heads, width = 4, 8
    for parts in blocks(arrays(random_mask(density, seed=3)), heads).values():
        found = effective(parts, heads)
        for head in range(heads):
            units = range(head * 2, head * 2 + 2)
            assert {name: found[name][list(units)].tolist() for name in ("query", "key", "value")} == on_paths(
                parts, units
            )
        graph = nx.DiGraph()
        graph.add_edges_from((("i", i), ("n", n)) for n, i in np.argwhere(parts["ffn_in"]).tolist())
        graph.add_edges_from((("n", n), ("o", o)) for o, n in np.argwhere(parts["ffn_out"]).tolist())
        for n, i in np.argwhere(parts["ffn_in"]).tolist():
            reaches = any(kind == "o" for kind, _ in nx.descendants(graph, ("n", n)))
            assert found["ffn_in"][n, i] == reaches
        for o, n in np.argwhere(parts["ffn_out"]).tolist():
            assert found["ffn_out"][o, n] == any(kind == "i" for kind, _ in nx.ancestors(graph, ("n", n)))
        assert all((found[name] <= parts[name]).all() for name in found) and width == len(parts["query"])


def on_paths(parts, units):
    """By brute force: the rows of query, key and value in a head with what is on no path set False."""
    live = [u for u in units if any(parts["value"][u]) and any(row[u] for row in parts["attention_output"])]
    scores = [u for u in units if live and any(parts["query"][u]) and any(parts["key"][u])]
    return {
        name: [parts[name][u].tolist() if u in kept else [False] * len(parts[name][u]) for u in units]
        for name, kept in (("query", scores), ("key", scores), ("value", live))
    }


def test_composed_spectra_are_those_of_the_product():
    generator = np.random.default_rng(0)
    a, b = (generator.random((3, 10)) < 0.4 for _ in range(2))
    product = a.T.astype(float) @ b.astype(float)
    assert np.allclose(composed(a, b, 3), np.linalg.svd(product)[1][:3])
    assert np.allclose(composed(np.zeros((3, 10), bool), b), 0)


def test_random_masks_are_at_chance_in_spread_and_spectrum():
    found = report(random_mask(0.3, layers=1, width=300, neurons=400), heads=4, progress=False).matrices
    assert (found["mu2"] / found["mu2_random"]).between(0.95, 1.05).all()
    assert found["in_spread"].between(0.85, 1.15).all() and found["out_spread"].between(0.85, 1.15).all()
    assert (found["ramanujan"] > 0).all()


def test_a_report_counts_every_connection_and_shows_a_bar(capsys):
    mask = random_mask(0.4, words=20)
    seen = np.arange(20) < 5
    weights = {name: torch.ones(m.shape) for name, m in mask.items()}
    found = report(SimpleNamespace(masks=mask), heads=2, weights=weights, seen=seen)
    assert "topology" in capsys.readouterr().err
    assert found.matrices["kept"].sum() == sum(int(m.sum()) for m in mask.values())
    assert found.heads["kept"].sum() + found.ffn["kept"].sum() == found.matrices.query("layer >= 0")["kept"].sum()
    table = found.matrices.set_index("component")
    words = mask["embeddings.word_embeddings.weight"]
    assert table.loc["embed_seen", "kept"] == words[:5].sum() and table.loc["embed_unseen", "kept"] == words[5:].sum()
    assert table.loc["embed_seen", ["inputs", "outputs"]].tolist() == [5, 8]
    assert found.matrices["persistence"].between(0, 1).all()
    whole = report(mask, heads=2, seen=np.ones(20, bool), progress=False)  # no unseen row: no such part
    assert "embed_unseen" not in set(whole.matrices["component"]) and whole.matrices["persistence"].isna().all()


def test_matrix_finds_and_names():
    mask = random_mask(words=20)
    assert (topology.matrix(mask, 1, "ffn_in") == mask["encoder.layer.1.intermediate.dense.weight"].numpy()).all()
    assert topology.matrix(mask, None, "embed").shape == (8, 20)
    with pytest.raises(ValueError, match="no matrix of layer 2, component 'query'; it has 0 query, 0 key"):
        topology.matrix(mask, 2, "query")
    twice = {
        name: torch.eye(3, dtype=torch.bool) for name in ("encoder.layer.0.one.weight", "encoder.layer.0.two.weight")
    }
    with pytest.raises(
        ValueError, match="the mask has several matrices of layer 0, component 'other': take it by name"
    ):
        topology.matrix(twice, 0, "other")


WRONG = {
    "keeps 0 of 0": {},
    "keeps 0 of 4": {"w": torch.zeros(2, 2, dtype=torch.bool)},
    "keeps 4 of 4": {"w": torch.ones(2, 2, dtype=torch.bool)},
    "w: a mask is a boolean matrix, got float32": {"w": torch.ones(2, 2)},
    r"w: a mask is a boolean matrix, got bool \(3,\)": {"w": torch.ones(3, dtype=torch.bool)},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_masks_without_topology_are_refused(sentence):
    with pytest.raises(ValueError, match=sentence):
        report(WRONG[sentence], heads=1)


WEIGHTS = {name: torch.ones(mask.shape) for name, mask in random_mask(words=20).items()}
FIRST = "encoder.layer.0.attention.self.query.weight"
MISFITS = {
    "a mask is a dict name -> boolean tensor or what load_mask returns, got 'file": {"mask": "file.safetensors"},
    "nothing says how many heads": {"heads": None},
    "heads must be a whole number, got True": {"heads": True},
    "heads must be a whole number, got 2.0": {"heads": 2.0},
    f"weights have no {FIRST}": {"weights": {n: w for n, w in WEIGHTS.items() if n != FIRST}},
    rf"{FIRST}: the weights have shape \(8, 7\), the mask \(8, 8\)": {"weights": WEIGHTS | {FIRST: torch.ones(8, 7)}},
    "weights are 0 in all matrices": {"weights": {n: w * 0 for n, w in WEIGHTS.items()}},
    r"seen must be boolean of shape \(20,\), .*, got bool \(19,\)": {"seen": np.ones(19, bool)},
    r"seen must be boolean of shape \(20,\), .*, got int64 \(20,\)": {"seen": np.arange(20)},
}


@pytest.mark.parametrize("sentence", MISFITS)
def test_what_does_not_fit_the_mask_is_told(sentence):
    with pytest.raises(ValueError, match=sentence):
        report(**{"mask": random_mask(words=20), "heads": 2, "progress": False, **MISFITS[sentence]})


def test_heads_may_be_a_number_of_numpy():
    assert len(report(random_mask(), heads=np.int64(2), progress=False).heads) == 4


def test_heads_that_do_not_fit_and_layers_that_lack_a_matrix_are_refused():
    mask = random_mask()
    with pytest.raises(ValueError, match="8 query outputs do not make 3 equal heads"):
        report(mask, heads=3)
    del mask["encoder.layer.1.output.dense.weight"]
    with pytest.raises(ValueError, match="layer 1 has no ffn_out"):
        report(mask, heads=2)
