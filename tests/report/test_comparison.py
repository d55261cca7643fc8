"""The comparison: which runs are one way, what is tested against what, and a table that says it; by hand."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest

from adaprune.report.comparison import (
    against_adaprune,
    budget,
    curves,
    retained,
    sections,
    shared,
    with_ways,
    write_table,
)
from adaprune.report.published import paper_ablations, paper_results
from adaprune.runs import RETIRED, Run, table, write_record
from tests.runs.test_records import make_record


@pytest.fixture
def results(tmp_path):
    """Writes records of scores, {(method, sparsity, task, more fields): by seed}, to a new folder; their table.

    Of more fields those that `Run` has had are written as they stand in old records.
    """
    folders = map(str, itertools.count())

    def write(scores: dict) -> pd.DataFrame:
        folder = tmp_path / next(folders)
        for (method, sparsity, task, *more), values in scores.items():
            for seed, value in enumerate(values):
                fields = {"method": method, "sparsity": sparsity, "task": task, **dict(more)}
                retired = {name: fields.pop(name) for name in RETIRED if name in fields}
                run = Run(seed=seed, results_dir=str(folder), **fields)
                metrics = {"validation": {"accuracy": value}, "selection": {}, "primary": "accuracy"}
                intact = run.kind.weights_intact and not run.noise
                path = write_record(make_record(run, metrics=metrics, weights_intact=intact), run)
                if retired:
                    record = json.loads(path.read_text())
                    path.write_text(json.dumps({**record, "run": record["run"] | retired}))
        return with_ways(table(folder))

    return write


SCORES = {
    ("adaprune", 0.5, "rte"): [0.80, 0.82, 0.81],
    ("adaprune", 0.9, "rte"): [0.60, 0.61, 0.65],
    ("magnitude", 0.5, "rte"): [0.70, 0.71, 0.72],
    ("random", 0.5, "rte"): [0.50],
    ("features", 0.5, "rte"): [0.75, 0.74, 0.76],
    ("finetune", 0.5, "rte"): [0.90, 0.90],
}


def test_a_way_is_named_by_the_settings_that_differ(results):
    runs = results({
        ("adaprune", 0.5, "rte", ("epochs", 3)): [0.8],
        ("adaprune", 0.5, "rte", ("epochs", 3), ("recipe", "paper")): [0.7],
        ("features", 0.5, "rte", ("epochs", 3)): [0.6],
        ("imp", 0.5, "rte", ("epochs", 1), ("imp_rule", "original")): [0.5],
    })  # fmt: skip
    assert sorted(runs["way"]) == ["adaprune", "adaprune recipe paper", "features", "imp epochs 1 imp_rule original"]
    assert shared(runs) == "epochs 3"


def test_the_share_kept_over_tasks_by_hand(results, tmp_path):
    """Epochs differ by task, as rows do; smp lacks a task, so it has no mean; finetune keeps 1 by definition."""
    few, many = (("epochs", 2), ("max_train_examples", 200)), (("epochs", 5),)
    runs = results({
        ("finetune", 0.5, "rte", *many): [0.5, 0.7],
        ("finetune", 0.5, "sst2", *few): [0.8],
        ("adaprune", 0.5, "rte", *many): [0.6, 0.54],
        ("adaprune", 0.5, "sst2", *few): [0.6, 0.8],
        ("features", 0.5, "rte", *many): [0.3],
        ("features", 0.5, "sst2", *few): [0.8],
        ("smp", 0.5, "rte", *many): [0.6],
    })  # fmt: skip
    kept = retained(runs).set_index("way")
    assert set(kept.index) == {"adaprune", "features", "finetune"}
    assert kept["mean"].to_dict() == pytest.approx({"adaprune": (0.95 + 0.875) / 2, "features": 0.75, "finetune": 1})
    assert kept["worst"].to_dict() == pytest.approx({"adaprune": 0.875, "features": 0.5, "finetune": 1})
    ours = kept.loc["adaprune"]
    assert (0.9 + 0.75) / 2 <= ours["low"] < ours["mean"] < ours["high"] <= (1 + 1) / 2
    assert (ours["tasks"], ours["seeds"]) == (2, 2) and math.isnan(kept.loc["features", "low"])
    written = write_table(runs, tmp_path / "table.md").read_text()
    assert "share of fine-tuning's score kept, mean over 2 tasks" in written
    assert "| features | 0.750 (1), lowest 0.500 |" in written  # without a mask it stands under every sparsity


@pytest.mark.parametrize("change", ["one task", "no finetune", "two numbers of rows"])
def test_no_share_is_told_where_it_would_mean_nothing(results, change):
    scores = {(m, 0.5, task): [0.5] for m in ("finetune", "adaprune") for task in ("rte", "sst2")}
    if change == "one task":
        scores = {key: value for key, value in scores.items() if key[2] == "rte"}
    elif change == "no finetune":
        del scores["finetune", 0.5, "sst2"]
    else:
        scores["adaprune", 0.5, "rte", ("max_train_examples", 9)] = [0.5]
    assert retained(results(scores)).empty


def test_runs_with_noise_on_the_weights_are_context_as_trained_ones_are(results, tmp_path):
    noised = (("ablation", "head"), ("noise", 0.1))
    runs = results({("adaprune", 0.5, "rte"): [0.5, 0.6], ("adaprune", 0.5, "rte", *noised): [0.7, 0.9]})
    assert against_adaprune(runs).empty  # not a rival with intact weights
    written = write_table(runs, tmp_path / "table.md").read_text()
    assert "| adaprune ablation head noise 0.1 (weights noised) | 0.800" in written and "**0.800**" not in written


def test_pupils_of_each_tasks_and_seeds_own_teacher_are_one_way(results):
    def taught(task, seed, sparsity=0):
        return ("teacher", f"out/task~{task}_method~finetune_sparsity~{sparsity}_seed~{seed}_model~minilm.json")

    scores = {("adaprune", 0.5, task, taught(task, 1)): [0.7, 0.8] for task in ("rte", "mrpc")}
    assert set(results(scores | {("adaprune", 0.5, "rte"): [0.6]})["way"]) == {"adaprune", "adaprune + teacher"}
    quick = {("adaprune", 0.5, "rte", ("epochs", 2), ("noise", 0.1), ("ablation", "head"), taught("rte", 0)): [0.6]}
    plain = {("adaprune", 0.5, "rte"): [0.6]}
    assert "adaprune epochs 2 ablation head noise 0.1 + teacher" in set(results(plain | quick)["way"])
    longer = ("teacher", "out/task~sst2_method~finetune_sparsity~0_seed~0_model~minilm_epochs~9.json")
    assert set(results(scores | {("adaprune", 0.5, "sst2", longer): [0.6]})["way"]) == {"adaprune"}  # all are taught
    other = {("adaprune", 0.5, "rte", taught("rte", 0, sparsity=0.1)): [0.6]}
    assert len(set(results(scores | other)["way"])) == 2  # two teachers of one task


def test_a_method_without_mask_is_the_same_at_every_sparsity_and_scope(results):
    runs = results({
        ("features", 0.0, "rte"): [0.6],
        ("features", 0.5, "rte", ("scope", "encoder+embeddings")): [0.6],
        ("adaprune", 0.5, "rte", ("scope", "encoder+embeddings")): [0.7],
    })  # fmt: skip
    assert runs["way"].tolist() == ["adaprune", "features"]
    assert runs["sparsity"].isna().tolist() == [False, True]
    assert shared(runs) == "scope encoder+embeddings"


def test_curves_give_mean_interval_and_seeds(results):
    points = curves(results(SCORES)).set_index(["way", "sparsity"])
    line = points.loc[("magnitude", 0.5)]
    assert line["mean"] == pytest.approx(0.71) and line["seeds"] == 3
    assert 0.699 < line["low"] < 0.71 < line["high"] < 0.721
    assert math.isnan(points.loc[("random", 0.5), "low"])


def test_the_budget_of_a_panel_tells_what_differs(results):
    points = curves(
        results({**SCORES, ("imp", 0.5, "rte", ("epochs", 2)): [0.5], ("imp", 0.9, "rte", ("epochs", 1.5)): [0.5]})
    )
    assert budget(points["epochs"], points["seeds"]) == "epochs: the recipe's or 1.5 to 2; seeds per point: 1 to 3"
    masked = points[points["way"] == "magnitude"]  # 0 epochs of a run: as many as the recipe has
    assert budget(masked["epochs"], masked["seeds"]) == "epochs: the recipe's; seeds per point: 3"
    assert budget(pd.Series([3.0, 3.0]), pd.Series([2, 2])) == "epochs: 3; seeds per point: 2"


def test_an_interval_depends_on_its_own_scores_only(results):
    alone = curves(results({("magnitude", 0.5, "rte"): SCORES["magnitude", 0.5, "rte"]}))
    among = curves(results(SCORES))
    columns = ["mean", "low", "high"]
    assert among.loc[among["way"] == "magnitude", columns].to_numpy().tolist() == alone[columns].to_numpy().tolist()


def test_a_section_is_a_sparsity_with_the_methods_without_mask(results):
    found = {title: set(part["way"]) for title, part in sections(results(SCORES))}
    assert found == {
        "minilm, all training rows, sparsity 0.5": {"adaprune", "magnitude", "random", "features", "finetune"},
        "minilm, all training rows, sparsity 0.9": {"adaprune", "features", "finetune"},
    }


def test_tests_pair_seeds_with_adaprune_and_leave_trained_weights_out(results):
    (_, part), _ = sections(results(SCORES))
    found = against_adaprune(part).set_index("way")
    assert list(found.index) == ["features", "magnitude", "random"]
    assert found["pairs"].tolist() == [3, 3, 1]
    assert found.loc["magnitude", "difference"] == pytest.approx(-0.1)
    # differences -0.10, -0.11, -0.09: t = -0.1 / (0.01 / sqrt 3), and P for two degrees of freedom in closed form
    t = 10 * math.sqrt(3)
    assert found.loc["magnitude", "p"] == pytest.approx(1 - t / math.sqrt(t**2 + 2), rel=1e-6)
    assert found.loc["magnitude", "p_holm"] == pytest.approx(2 * found.loc["magnitude", "p"])
    assert math.isnan(found.loc["random", "p"])


def test_no_adaprune_no_tests_and_no_bold(results, tmp_path):
    runs = results({("magnitude", 0.5, "rte"): [0.7, 0.8], ("random", 0.5, "rte"): [0.5, 0.6]})
    text = write_table(runs, tmp_path / "table_x.md").read_text()
    assert "### Tests" not in text and "| **" not in text
    assert "| magnitude | 0.750 [0.700, 0.800] (2) |" in text


def test_bold_only_where_the_best_is_significantly_so(results, tmp_path):
    def bold(scores):
        text = write_table(results(scores), tmp_path / "table_x.md").read_text()
        return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|") and "**" in line]

    assert bold({k: v for k, v in SCORES.items() if k[0] in ("adaprune", "magnitude") and k[1] == 0.5}) == ["adaprune"]
    rival = {("magnitude", 0.5, "rte"): [0.90, 0.92, 0.915]}
    assert bold({k: v for k, v in {**SCORES, **rival}.items() if k[1] == 0.5}) == ["magnitude"]
    untested = {("magnitude", 0.5, "rte"): [0.99]}
    assert bold({("adaprune", 0.5, "mrpc"): [0.5, 0.6], ("magnitude", 0.5, "mrpc"): [0.55, 0.53], **untested}) == []


def test_the_table_by_hand(results, tmp_path):
    lines = write_table(results(SCORES), tmp_path / "new" / "table_x.md").read_text().splitlines()
    assert lines[0] == "# Comparison: x"
    ways = [line.split(" | ")[0] for line in lines if line.startswith("| ")][:6]
    assert ways == [
        "| method", "| ---", "| adaprune", "| features", "| magnitude", "| random"
    ]  # fmt: skip
    assert "| random | 0.500 (1) |" in lines
    assert "| finetune (weights trained) | 0.900 [0.900, 0.900] (2) |" in lines
    assert "| rte | random | -0.300 | 1 | - | - |" in lines
    assert (
        "| adaprune | - | 0.900 | 2 | 1.00 | - |" in lines
    )  # no probe; 0.81 / 0.90; 1.5 s, 2**30 bytes, an old record


def test_the_gain_kept_stands_beside_retention_where_there_is_a_probe(results, tmp_path):
    runs = results({**SCORES, ("probe", 0.0, "rte"): [0.60], ("majority", 0.0, "rte"): [0.50]})
    runs["selection_score"] = runs["method"].map({"probe": 0.6, "majority": 0.5})
    lines = write_table(runs, tmp_path / "table_x.md").read_text().splitlines()
    assert "| adaprune | 0.70 | 0.900 | 2 | 1.00 | - |" in lines  # (0.81 - 0.60) / 0.30
    assert "| random | -0.33 | 0.556 | 2 | 1.00 | - |" in lines
    near = runs.assign(score=runs["score"].where(runs["method"] != "probe", 0.88))  # fine-tuning gains 0.02
    assert "| adaprune | - | 0.900 | 2 | 1.00 | - |" in write_table(near, tmp_path / "b.md").read_text().splitlines()


def test_several_tasks_have_a_mean_only_where_all_are_there(results, tmp_path):
    runs = results({**SCORES, ("adaprune", 0.5, "mrpc"): [0.70, 0.72, 0.71]})
    lines = write_table(runs, tmp_path / "table_x.md").read_text().splitlines()
    (adaprune,) = [line for line in lines if line.startswith("| adaprune | 0.710")]
    assert adaprune.split(" | ")[-1].startswith("0.760 [") and adaprune.endswith("(3) |")
    (random,) = [line for line in lines if line.startswith("| random | - | 0.500")]
    assert random.endswith("| - |")


def test_same_records_same_bytes(results, tmp_path):
    runs = results(SCORES)
    first, second = (write_table(runs, tmp_path / name / "table_x.md").read_bytes() for name in "ab")
    assert first == second == write_table(runs, tmp_path / "c" / "table_x.md").read_bytes()


def test_the_papers_ablations_are_those_of_tables_3_and_4():
    paper = paper_ablations()
    assert set(paper["ablation"]) == {"shuffle_mask", "perturb_weights_sigma_0.01", "no_recovery"}
    scores = paper.set_index(["ablation", "task", "sparsity"])["score"]
    assert scores["shuffle_mask", "stsb", 0.5] == 0.312 and scores["no_recovery", "stsb", 0.5] == 0.804


def test_the_paper_in_our_names():
    paper = paper_results()
    assert set(paper["method"]) == {"features", "finetune", "random_guess", "random", "imp", "gmp", "adaprune"}
    assert set(paper["task"]) == {"stsb", "sst2", "mnli"}
    ours = paper[(paper["method"] == "adaprune") & (paper["task"] == "stsb")]
    assert ours["sparsity"].tolist() == [0.2, 0.5, 0.7, 0.9, 0.95, 0.99, 0.999, 0.9999]
    assert ours["score"].tolist()[:2] == [0.794, 0.837] and np.isnan(ours["score"].tolist()[-1])
