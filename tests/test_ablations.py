"""Ablations, snapshots and the notebooks that study masks, on tiny runs that are made once."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch

from adaprune import Run, adapt, load_mask, table
from adaprune.ablations import perturb, shuffled
from adaprune.deploy.mask_file import save_mask
from adaprune.masks.schedules import SparsityControl
from adaprune.methods import learning
from adaprune.report import contrasts, published
from adaprune.runs.paths import mask_path, paths_of, record_path
from adaprune.topology import overlap
from adaprune.training.encoders import load_encoder
from adaprune.training.model_files import file_hash
from tests.small_data import SENTENCES
from tests.topology.test_structure import random_mask

ROOT = Path(__file__).resolve().parents[1]
CHANGES = {
    "seed 0": {"keep": "snapshots"},
    "seed 1": {"seed": 1, "keep": "snapshots"},
    "magnitude": {"method": "magnitude"},
    "features": {"method": "features"},
    "head": {"ablation": "head"},
    "shuffle": {"ablation": "shuffle"},
    "noise": {"ablation": "head", "noise": 0.01},
    "dense noise": {"method": "features", "ablation": "head", "noise": 0.1},
    "probe": {"ablation": "probe"},
    "wide": {"scope": "encoder+embeddings", "sparsity": 0.9},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model_dir) -> dict[str, Run]:
    """Tiny runs by name, all of them done."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "ten").mkdir()
    for split, rows in SENTENCES.items():
        (folder / "ten" / f"{split}.csv").write_text(rows, encoding="utf-8")
    common = {"task": str(folder / "ten"), "model": str(tiny_model_dir), "epochs": 2, "batch_size": 4}
    common["max_length"] = 16
    made = {name: Run(**common, results_dir=str(folder / "out"), **changed) for name, changed in CHANGES.items()}
    with pytest.raises(ValueError, match="is missing: adapt the run without ablation first"):
        adapt(made["head"])
    for run in made.values():
        adapt(run)
    return made


def snapshots_of(run: Run) -> Path:
    return paths_of(record_path(run)).snapshots


def test_shuffled_masks_keep_as_many_in_every_matrix():
    masks = random_mask(0.3)
    found, other = shuffled(masks, 0), shuffled(masks, 1)
    assert {n: int(m.sum()) for n, m in found.items()} == {n: int(m.sum()) for n, m in masks.items()}
    assert all((found[n] != masks[n]).any() for n in masks) and any((found[n] != other[n]).any() for n in masks)
    assert all((shuffled(masks, 0)[n] == found[n]).all() for n in masks)


def test_noise_has_the_asked_size(tiny_model_dir):
    encoder, base = (load_encoder(str(tiny_model_dir)).model for _ in range(2))
    perturb(encoder, 0.01, seed=0)
    pairs = list(zip(encoder.parameters(), base.parameters(), strict=True))
    ratios = torch.cat([(p / q)[q != 0] for p, q in pairs])
    assert abs(ratios.mean() - 1) < 0.001 and abs(ratios.std() - 0.01) < 0.001
    assert all((p == 0).all() for p, q in pairs if (q == 0).all())


def test_an_ablation_starts_from_the_finished_mask(runs):
    learned = load_mask(mask_path(runs["seed 0"]))
    same, moved = (load_mask(mask_path(runs[name])) for name in ("head", "shuffle"))
    assert overlap.jaccard(learned, same).jaccard == 1 and overlap.jaccard(learned, moved).jaccard < 0.9
    assert moved.kept == learned.kept
    rows = table(runs["head"].results_dir).set_index(["method", "ablation", "noise"])
    assert rows["weights_intact"].to_dict() == {key: key[2] == 0 for key in rows.index}
    assert not mask_path(runs["noise"]).exists()  # a mask of weights that nobody has
    assert not mask_path(runs["probe"]).exists()  # a mask without the head that read it
    assert runs["shuffle"].name.endswith("_ablation~shuffle") and "noise~0.01" in runs["noise"].name


def test_snapshots_lead_to_the_mask_and_change_nothing(runs, tmp_path):
    history = overlap.history(snapshots_of(runs["seed 0"]))
    assert list(history) == [1, 2, 3, 4, 5, 6]  # fewer steps than snapshots
    assert overlap.jaccard(history[6], load_mask(mask_path(runs["seed 0"]))).jaccard > 0.9
    assert overlap.recovery(history)["step"].tolist() == [2, 3, 4, 5, 6]
    plain = runs["seed 0"].model_copy(update={"keep": "", "results_dir": str(tmp_path)})
    assert plain.name == runs["seed 0"].name
    adapt(plain)
    assert overlap.jaccard(load_mask(mask_path(plain)), load_mask(mask_path(runs["seed 0"]))).jaccard == 1
    with pytest.raises(ValueError, match="holds no snapshots"):
        overlap.history(tmp_path)


def test_snapshots_are_of_one_run_that_may_be_resumed(runs, tmp_path, monkeypatch):
    run = runs["seed 0"].model_copy(update={"checkpoint_steps": 3, "results_dir": str(tmp_path)})
    folder, update = snapshots_of(run), learning.Snapshots.update
    folder.mkdir(parents=True)
    for left in ("5.safetensors", "7.partial", ".0a.tmp"):
        (folder / left).write_text("of an earlier run with other steps")

    def kill(self, step, *rest):
        if step == 5:
            raise KeyboardInterrupt
        return update(self, step, *rest)

    monkeypatch.setattr(learning, "SNAPSHOTS", 3)
    with monkeypatch.context() as patch:
        patch.setattr(learning.Snapshots, "update", kill)
        with pytest.raises(KeyboardInterrupt):
            adapt(run)
    early = folder / "2.safetensors"
    before = early.stat().st_mtime_ns
    adapt(run)
    assert sorted(file.name for file in folder.iterdir()) == ["2.safetensors", "4.safetensors", "6.safetensors"]
    assert early.stat().st_mtime_ns == before  # the run went on at step 3
    reference = runs["seed 0"].model_copy(update={"results_dir": str(tmp_path / "whole")})
    adapt(reference)
    found, expected = (overlap.history(snapshots_of(each)) for each in (run, reference))
    assert all(overlap.jaccard(found[step], expected[step]).jaccard == 1 for step in (4, 6))


def test_a_snapshot_is_whole_or_absent(tmp_path, monkeypatch):
    def kill(*args):
        raise KeyboardInterrupt

    control = learning.Snapshots(SparsityControl("cubic", 0.5, 10), ["w"], tmp_path, 1)
    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        control.update(1, [torch.ones(2, 2)], torch.zeros((), dtype=torch.float64))
    assert not list(tmp_path.glob("*.safetensors"))


WRONG = {
    "noise=0.1 is of an ablation": {"noise": 0.1},
    "ablation='shuffle' needs a mask, method 'features' has none": {"method": "features", "ablation": "shuffle"},
    "needs a mask of the checkpoint's own weights, method 'finetune'": {"method": "finetune", "ablation": "head"},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_ablations_of_nothing_are_refused(runs, sentence):
    with pytest.raises(ValueError, match=sentence):
        adapt(runs["seed 0"].model_copy(update={"keep": "", **WRONG[sentence]}))


def test_a_mask_of_another_base_is_not_ablated(runs, tmp_path):
    run = runs["head"].model_copy(update={"results_dir": str(tmp_path)})
    other = load_encoder(run.model).model
    perturb(other, 0.1, 0)
    mask = load_mask(mask_path(runs["seed 0"]))
    save_mask(mask_path(runs["seed 0"].model_copy(update={"results_dir": str(tmp_path)})), mask.masks, mask.head,
              {"labels": mask.card["labels"]}, other)  # fmt: skip
    with pytest.raises(ValueError, match="mask made for another base: embeddings.LayerNorm.weight differs"):
        adapt(run)


def test_a_finished_ablation_of_a_mask_that_changed_is_refused(runs, tmp_path):
    copied = shutil.copytree(runs["head"].results_dir, tmp_path / "out")
    ablation, other = (runs[name].model_copy(update={"results_dir": str(copied)}) for name in ("head", "seed 1"))
    first = adapt(ablation)
    assert first["environment"]["ablated_mask"] == file_hash(mask := mask_path(runs["seed 0"]))
    shutil.copy(mask_path(other), copied / "masks" / mask.name)
    with pytest.raises(ValueError, match=rf"ablated_mask has changed, of {copied / 'masks' / mask.name} \("):
        adapt(ablation)
    (copied / "masks" / mask.name).unlink()  # a record can be read without it
    assert adapt(ablation) == first


FEATURES = {"method": "features"}


def test_contrasts_pair_runs_that_differ_in_nothing_else(runs):
    records = table(runs["head"].results_dir)
    pairs = contrasts.contrast(records, {"ablation": "shuffle"}, {"ablation": "head"})
    assert len(pairs) == 1 and pairs["difference"].item() == pairs["score"].item() - pairs["score_theirs"].item()
    assert len(contrasts.contrast(records, {}, {"method": "features"})) == 1  # seed 1 and the wide scope have none
    assert len(contrasts.contrast(records, {}, {"method": "magnitude"})) == 1
    one, other = (contrasts.contrast(records, *sides) for sides in (({}, FEATURES), (FEATURES, {})))
    assert len(other) == 1 and other["sparsity"].tolist() == one["sparsity"].tolist() == [0.5]
    assert other["difference"].tolist() == (-one["difference"]).tolist()
    twice = pd.concat([records, records.assign(score=records["score"] + 1, record="z/" + records["record"])])
    again = contrasts.contrast(twice, {"ablation": "shuffle"}, {"ablation": "head"})
    assert again["score"].tolist() == [score + 1 for score in pairs["score"]]  # of two folders the last
    apart = records.assign(
        record=["a/" * (kind == "head") + file for kind, file in records[["ablation", "record"]].values]
    )
    assert contrasts.contrast(apart, {"ablation": "shuffle"}, {"ablation": "head"}).empty  # two experiments


def made_pairs(**changed) -> pd.DataFrame:
    budget = dict.fromkeys(contrasts.BUDGET, 0) | {"model": "minilm"}
    scores = {"score": [0.8, 0.81, 0.7, 0.72], "score_theirs": [0.5, 0.52, 0.4, 0.4]}
    made = pd.DataFrame({"task": list("aabb"), "sparsity": 0.5, **scores, **budget})
    return made.assign(difference=made["score"] - made["score_theirs"]).assign(**changed)


def test_verdicts_on_made_pairs():
    made = made_pairs()
    a, b = (f"{task} at 0.5 (all rows, the recipe's epochs)" for task in "ab")
    asked = [(made, 1, 0.0), (made, -1, 0.0), (made, 1, 0.299), (made[:1], 1, 0.0), (made[:0], 1, 0)]
    assert contrasts.verdicts(asked, {}) == [
        f"confirmed in the mean for {a}; {b} (p = 0.00034, after Holm 0.001)", f"not confirmed: not so for {a}; {b}",
        f"not confirmed: not so for {a}", "not tested", "not tested",
    ]  # fmt: skip
    close = made_pairs(difference=[0.11, 0.19, 0.11, 0.19])  # p = 0.034 alone, 0.068 beside another of its kind
    edge = made_pairs(difference=[0.1, 0.2, 0.1, 0.2])  # t = 0.15 / 0.0354 = 4.24: p = 0.051
    sure = made_pairs(difference=[0.19, 0.21, 0.19, 0.21])
    weak = f"right sign, not significant in the mean for {a}; {b} (p = "
    (alone,) = contrasts.verdicts([(close, 1, 0.0)], {})
    assert alone == f"confirmed in the mean for {a}; {b} (p = 0.034, after Holm 0.034)"
    beside = contrasts.verdicts([(sure, 1, 0.0), (close, 1, 0.0), (edge, 1, 0.0)], {})[1:]
    assert beside == [weak + "0.034, after Holm 0.068)", weak + "0.051, after Holm 0.068)"]
    spread = contrasts.verdicts([(made_pairs(difference=[0.1, 0.3, 0.1, 0.3]), 1, 0.0)], {})
    assert spread == [weak + "0.11, after Holm 0.11)"]  # p = 0.106
    assert [contrasts.judged(each) for each in ([], [True, True], [True, False])] == [
        "not tested", "confirmed", "not confirmed"
    ]  # fmt: skip


def test_a_rival_has_fallen_only_if_every_cell_of_several_pairs_is_near_chance():
    made = made_pairs(score_theirs=[0.5, 0.52, 0.4, 0.44], record_theirs=list("wxyz"))
    fallen = {near: published._fallen("gone", made, {"a": near, "b": 0.44})[3:5] for near in (0.52, 0.5)}
    shown = "a at 0.5 (all rows, the recipe's epochs): 0.510, at chance up to {} (2 runs); "
    assert [said.startswith(shown.format(f"{near:.3f}")) for near, (said, _) in fallen.items()] == [True, True]
    said = "not confirmed: not so for a at 0.5 (all rows, the recipe's epochs)"
    assert [verdict for _, verdict in fallen.values()] == ["confirmed", said]
    assert published._fallen("gone", made, {})[4].startswith("not confirmed")  # of which no chance is known
    assert published._fallen("gone", made[:1], {"a": 0.5})[4] == "not tested"


def test_cells_of_one_pair_or_at_chance_do_not_count():
    mixed = made_pairs(sparsity=[0.5, 0.5, 0.5, 0.9], difference=[0.3, 0.31, -0.1, -0.1])
    assert contrasts.cells(mixed, {})["left_out"].tolist() == ["", "one pair", "one pair"]
    (said,) = contrasts.verdicts([(mixed, 1, 0.0)], {})  # though both of b go the other way
    assert said.startswith("confirmed for a at 0.5 (all rows, the recipe's epochs) (p = ")
    made = made_pairs(score=[0.8, 0.81, 0.41, 0.42], difference=[0.3, 0.31, -0.1, -0.1])
    for chance, said in {0.41: "", 0.42: "both at chance"}.items():  # b: 0.415 against 0.4
        assert contrasts.cells(made, {"b": chance})["left_out"].tolist() == ["", said]
    assert contrasts.verdicts([(made, 1, 0.0)], {"a": 0.9, "b": 0.9}) == ["not tested"]
    told = contrasts.evidence(made, {"b": 0.42})
    assert told == (
        "a at 0.5 (all rows, the recipe's epochs): 0.805 against 0.510 (2 pairs); "
        "b at 0.5 (all rows, the recipe's epochs): 0.415 against 0.400 (2 pairs; left out, both at chance)"
    )
    budgets = made.assign(
        max_train_examples=[3000, 3000, 0, 0], epochs=[3.0, 3.0, 1.5, 1.5], model=["minilm"] * 2 + ["b"] * 2
    )
    told = contrasts.evidence(budgets, {})
    assert told.startswith("a at 0.5 (3,000 rows, 3 epochs):") and "; b at 0.5 (b, all rows, 1.5 epochs):" in told


def held_out(differences: dict[str, list[float]]) -> pd.DataFrame:
    """Pairs whose difference on held-out rows is given: task -> a number a seed."""
    budget = dict.fromkeys(contrasts.BUDGET, 0) | {"model": "minilm", "sparsity": 0.5, "selection_score_theirs": 0.5}
    return pd.DataFrame(
        [
            {**budget, "task": task, "seed": seed, "selection_score": 0.5 + found}
            for task, values in differences.items()
            for seed, found in enumerate(values)
        ]
    )


def test_not_worse_by_hand():
    """Three seeds in each of five tasks, -d, 0, d about their mean: variance d^2, so the error is d / sqrt(15)."""
    spread = [-0.003, 0.0, 0.003]
    pairs = held_out({task: [value - 0.002 for value in spread] for task in "abcde"})
    half = 2.228139 * 0.003 / 15**0.5  # t of 10 degrees of freedom
    said = contrasts.not_worse(pairs, 0.01)
    assert said.startswith(f"not worse: -0.0020 [{-0.002 - half:+.4f}, {-0.002 + half:+.4f}], 5 tasks, 3 seeds at the")
    assert (
        contrasts.not_worse(pairs, 0.003).startswith("not known") and contrasts.not_worse(pairs, 0.0001)[:5] == "worse"
    )
    assert contrasts.not_worse(pairs[pairs["task"] != "e"], 0.01).startswith("too few: -0.0020")
    assert contrasts.not_worse(pairs[pairs["seed"] != 2], 0.01).startswith("too few")
    assert contrasts.not_worse(pairs[:0], 0.01) == "too few: no pair"
    assert "a -0.0020; b -0.0020" in said


def test_chance_is_what_the_majority_records_say_and_two_standard_errors_more():
    records = pd.DataFrame({"method": ["majority", "majority", "probe"], "ablation": "", "task": list("aba"),
                            "score": [0.6, 0.0, 0.9], "primary": ["accuracy", "spearman", "accuracy"]})  # fmt: skip
    assert contrasts.chance_of(records) == pytest.approx({"a": 0.62, "b": 0.05})
    assert contrasts.chance_of(records[2:]) == {}


def test_a_verdict_says_in_how_many_cells_a_probe_is_not_beaten():
    pairs = made_pairs()  # a: 0.805 and 0.51; b: 0.71 and 0.4
    probes = pd.DataFrame({"method": "probe", "ablation": "", "task": ["a", "b"], "score": [0.8, 0.71],
                           "model": "minilm", "max_train_examples": 0})  # fmt: skip
    assert contrasts.below_probe(pairs, {}, probes) == "; neither side above a probe in 1 of 2 cells"
    assert contrasts.below_probe(pairs, {"b": 0.9}, probes) == ""  # a cell that does not count
    assert contrasts.below_probe(pairs, {}, probes.assign(max_train_examples=3000)) == ""  # of other rows
    assert contrasts.below_probe(pairs[:0], {}, probes) == ""


def test_the_interval_over_dev_rows_is_of_the_mean_difference():
    drawn = np.arange(4)[:, None] + np.linspace(0, 1, 101)  # every seed's scores on the same samples
    made = made_pairs(resampled=list(drawn), resampled_theirs=list(np.zeros((4, 101))))
    found = contrasts.cells(made, {})
    np.testing.assert_allclose(found["rows_low"], [0.5 + 0.025, 2.5 + 0.025])  # means of seeds 0, 1 and 2, 3
    np.testing.assert_allclose(found["rows_high"], [0.5 + 0.975, 2.5 + 0.975])
    assert "over dev rows [+0.525, +1.475]" in contrasts.evidence(made, {})


def papermill(name: str, folder: Path, **parameters: object) -> tuple[int, str, str]:
    """Exit code, what the notebook printed, and the error."""
    command = [
        sys.executable,
        "-m",
        "papermill",
        "-k",
        "python3",
        "--no-progress-bar",
        ROOT / "notebooks" / f"{name}.ipynb",
    ]
    values = [word for key, value in parameters.items() for word in ("-y", json.dumps({key: value}))]
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "JUPYTER_PREFER_ENV_PATH": "1"}
    done = subprocess.run([*map(str, command), str(folder / f"{name}.ipynb"), *values], capture_output=True, text=True,
                          cwd=folder, env=surroundings)  # fmt: skip
    cells = json.loads((folder / f"{name}.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return done.returncode, "".join("".join(output.get("text", "")) for output in outputs), done.stderr


def test_04_topology(runs, tmp_path):
    run = runs["seed 0"]
    asked = {"results_dir": run.results_dir, "figures_dir": "pictures", "model": run.model, "tasks": [run.task],
             "methods": ["adaprune", "imp", "magnitude"], "sparsities": [0.2, 0.5]}  # fmt: skip
    code, said, error = papermill("04_topology", tmp_path, **asked)
    assert code == 0, error
    assert "3 masks of 2 attention heads a layer" in said and "seeds on" in said and "of the kept came back" in said
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    names = ("fig3_", "extra_topology.", "extra_degrees.", "extra_overlap.", "extra_recovery.", "extra_head_graphs.")
    assert all(any(picture.startswith(name) for picture in pictures) for name in names), pictures
    assert len(nx.read_graphml(tmp_path / "pictures" / "head_graph_adaprune.graphml")) == 2 * 3
    overlaps = pd.read_csv(Path(run.results_dir, "overlaps.csv"))
    for pair in overlaps[["left", "right", "methods"]].itertuples(index=False):
        assert sorted(label.split()[-2] for label in pair[:2]) == pair.methods.split(", ")
    assert set(overlaps["methods"]) == {"adaprune, adaprune", "adaprune, magnitude"}
    assert re.search(r"differs in methods.*method +adaprune, magnitude ", said, re.DOTALL)
    code, _, error = papermill("04_topology", tmp_path, **asked | {"sparsities": [0.99]})
    assert code != 0 and "has no run of ['adaprune', 'imp', 'magnitude']" in error


def test_05_ablations_and_08_claims(runs, tmp_path):
    folders = {"results_dir": runs["head"].results_dir, "figures_dir": "pictures"}
    code, said, error = papermill("05_ablations", tmp_path, **folders)
    assert code == 0, error
    assert re.search(r"t_s = 0.1: not tested", said)
    assert re.search(r"weights x N\(1, 0.1\): no direction in the paper", said)
    assert "mask shuffled 1, weights x N(1, 0.001) 0, weights x N(1, 0.01) 1" in said and "not testable here" in said
    assert (tmp_path / "pictures" / "extra_ablations.svg").is_file()
    code, said, error = papermill("08_claims", tmp_path, **folders)
    assert code == 0, error
    lines = (tmp_path / "pictures" / "claims.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == 22 and sum("**not tested**" in row for row in rows) >= 8
    assert any("No pre-trained weight is changed" in row and "**confirmed**" in row for row in rows)


def test_all_committed_records_together_are_read(tmp_path):
    code, _, error = papermill("05_ablations", tmp_path, results_dir=str(ROOT / "results"), figures_dir="pictures")
    assert code == 0, error
