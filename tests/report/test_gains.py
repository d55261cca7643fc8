"""The share of the gain: by hand on round numbers, its two intervals by another route, and what counts for nothing."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from adaprune.report.gains import frontier, landmarks, shares, speeds, with_rows

SPREAD = np.linspace(-0.02, 0.02, 300)  # what resampling does to a score here


def row(task, method, score, seed=0, selection=None, sparsity=math.nan, noise=0.0, **more):
    plain = {"model": "minilm", "max_train_examples": 0, "ablation": "", "epochs": 0.0, "learning_rate": 0.0}
    plain |= {"batch_size": 0, "teacher": "", "way": method}
    resampled = score + noise * SPREAD
    found = {"task": task, "method": method, "score": score, "seed": seed, "sparsity": sparsity}
    return {
        **plain,
        **found,
        "selection_score": score if selection is None else selection,
        "resampled": resampled,
        **more,
    }


def two_tasks():
    """cola: floor 0.1 (the probe), tuned 0.5; sst2: floor 0.8, tuned 0.9; stsb has no room. Two seeds each."""
    rows = []
    for task, majority, probe, tuned in (("cola", 0.0, 0.1, 0.5), ("sst2", 0.5, 0.8, 0.9), ("stsb", 0.0, 0.86, 0.87)):
        rows += [row(task, "majority", majority), row(task, "probe", probe)]
        rows += [row(task, "finetune", tuned - 0.01, 0, noise=1), row(task, "finetune", tuned + 0.01, 1, noise=1)]
    for task, ours in (("cola", 0.4), ("sst2", 0.87), ("stsb", 0.2)):
        rows += [
            row(task, "adaprune", ours - 0.02, 0, sparsity=0.5),
            row(task, "adaprune", ours + 0.02, 1, sparsity=0.5),
        ]
    return pd.DataFrame(rows)


def test_the_share_is_a_ratio_of_sums_over_tasks_with_room():
    runs = two_tasks()
    found = shares(runs, landmarks(runs), ["way", "sparsity"]).set_index("way").loc["adaprune"]
    assert found["share"] == pytest.approx((0.3 + 0.07) / (0.4 + 0.1))  # not the mean of 0.75 and 0.7
    assert found["retention"] == pytest.approx((0.4 / 0.5 + 0.87 / 0.9) / 2)
    assert (found["lowest"], found["lowest_task"]) == (pytest.approx(0.7), "sst2")
    assert (found["tasks"], found["seeds"]) == (2, 2)


def test_fine_tuning_keeps_all_of_its_gain_and_the_probe_none():
    runs = two_tasks()
    found = shares(runs, landmarks(runs), ["way"]).set_index("way")["share"]
    assert found["finetune"] == pytest.approx(1) and found["probe"] == pytest.approx(0)
    assert found["majority"] < 0


def test_the_interval_over_seeds_is_the_delta_method_s():
    runs = two_tasks()
    found = shares(runs, landmarks(runs), ["way", "sparsity"]).set_index("way").loc["adaprune"]
    ours, tuned = 2 * (0.0008 / 2), 2 * (0.0002 / 2)  # variances of means of two seeds, two tasks
    half = stats.t.ppf(0.975, 4) * math.sqrt(ours + found["share"] ** 2 * tuned) / 0.5
    assert found["seeds_high"] - found["share"] == pytest.approx(half)
    assert found["share"] - found["seeds_low"] == pytest.approx(half)


def test_the_interval_over_rows_pairs_the_samples():
    runs = two_tasks()
    found = shares(runs, landmarks(runs), ["way", "sparsity"]).set_index("way").loc["adaprune"]
    drawn = 0.37 / (0.5 + 2 * SPREAD)  # fine-tuning alone varies, in both tasks alike
    assert [found["rows_low"], found["rows_high"]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]))


def test_the_floor_is_chosen_on_held_out_rows_not_on_dev():
    runs = two_tasks()
    runs.loc[(runs["task"] == "cola") & (runs["method"] == "majority"), "selection_score"] = 0.2
    marks = landmarks(runs)
    assert marks.loc[("minilm", "cola", 0), "floor_is"] == "majority" and marks.loc[("minilm", "cola", 0), "floor"] == 0


def test_of_several_ways_to_fine_tune_the_one_best_on_held_out_rows_counts():
    more = [
        row("cola", "finetune", 0.6, 0, selection=0.1, epochs=6.0),
        row("cola", "finetune", 0.45, 0, selection=0.9, epochs=9.0),
    ]
    runs = pd.concat([two_tasks(), pd.DataFrame(more)], ignore_index=True)
    assert landmarks(runs).loc[("minilm", "cola", 0), "tuned"] == 0.45


def test_one_seed_has_no_interval_over_seeds_and_a_missing_task_no_share():
    runs = two_tasks()
    one = runs[(runs["method"] != "adaprune") | (runs["seed"] == 0)]
    found = shares(one, landmarks(runs), ["way"]).set_index("way").loc["adaprune"]
    assert math.isnan(found["seeds_low"]) and not math.isnan(found["rows_low"])
    lacking = runs[(runs["method"] != "adaprune") | (runs["task"] != "sst2")]
    assert "adaprune" not in set(shares(lacking, landmarks(runs), ["way"])["way"])


def test_without_probe_or_fine_tuning_there_are_no_landmarks():
    runs = two_tasks()
    for method in ("probe", "finetune"):
        assert ("minilm", "cola", 0) not in landmarks(runs[(runs["method"] != method) | (runs["task"] != "cola")]).index


def test_a_task_that_only_fine_tuning_was_run_on_waits_for_the_others():
    runs = two_tasks()
    started = runs[(runs["method"] != "adaprune") | (runs["task"] != "sst2")]
    assert set(landmarks(started).index.get_level_values("task")) == {"cola", "stsb"}
    found = shares(started, landmarks(started), ["way"]).set_index("way").loc["adaprune"]
    assert found["share"] == pytest.approx(0.3 / 0.4) and found["tasks"] == 1


def test_nothing_to_place_scores_between_gives_empty_tables():
    none = landmarks(two_tasks()[lambda runs: runs["method"] == "adaprune"])
    assert none.empty and shares(two_tasks(), none, ["way"]).empty


def test_records_without_answers_have_missing_samples(tmp_path):
    found = with_rows(pd.DataFrame({"record": ["none.json"]}), tmp_path)
    assert np.isnan(found["resampled"][0]).all()


def test_speeds_stand_beside_the_share_of_their_masks():
    kept = pd.DataFrame({
        "pattern": ["weights", "weights", "units"], "sparsity": [0.5, 0.9, 0.5], "share": [0.9, 0.7, 0.5],
        "rows_low": [0.8, 0.6, 0.4], "rows_high": [1.0, 0.8, 0.6],
    })  # fmt: skip

    def row(way, sparsity, faster, mask="magnitude", batch="1x32"):
        about = {"shape": "minilm", "batch": batch, "threads": 1, "mask": mask if sparsity else ""}
        return {**about, "way": way, "sparsity": sparsity, "faster": {"median": faster}}

    rows = [
        row("dense float32", None, 1.0), row("int8, torch", None, 3.0), row("sparse", 0.5, 1.1),
        row("sparse", 0.9000000188, 4.0), row("sparse", 0.99, 9.0), row("units", 0.5, 2.0),
        row("sparse", 0.5, 7.0, mask="cola"), row("sparse", 0.5, 8.0, batch="8x128"),
    ]  # fmt: skip
    found = speeds(kept, rows, shape="minilm", batch="1x32", threads=1, mask="magnitude")
    assert found[["way", "sparsity", "faster"]].values.tolist() == [
        ["int8, torch", 0.0, 3.0], ["sparse", 0.5, 1.1], ["sparse", 0.9, 4.0], ["units", 0.5, 2.0],
    ]  # fmt: skip
    assert found["share"].tolist()[1:] == [0.9, 0.7, 0.5] and math.isnan(found["share"][0])
    assert found["rows_low"].tolist()[1:] == [0.8, 0.6, 0.4]


def shipped(task, method, score, size, seed=0, **more):
    fields = {"head": "", "rank": 0, "head_learning_rate": 0.0, "mask_sparsity": more.get("sparsity", math.nan)}
    fields |= {"pattern": "weights", "initial_theta": "", "recipe": "tuned", "scope": "encoder"}
    return row(task, method, score, seed, **fields | {"shipped_bytes": size} | more)


def bytes_and_scores():
    """Floors 0.1 and 0.8, tuned 0.5 and 0.9, as above; a mask and two LoRA, one with two rates."""
    rows = []
    for task, probe, tuned in (("cola", 0.1, 0.5), ("sst2", 0.8, 0.9)):
        rows += [shipped(task, "majority", 0.0, 9), shipped(task, "probe", probe, 9)]
        rows += [shipped(task, "finetune", tuned, 1e8)]
    for task, ours, one, bad, eight in (("cola", 0.4, 0.3, 0.5, 0.4), ("sst2", 0.85, 0.85, 0.9, 0.85)):
        rows += [shipped(task, "adaprune", ours, size, seed, sparsity=0.5) for seed, size in ((0, 2e5), (1, 4e5))]
        rows += [shipped(task, "lora", one, 1e5, rank=1, head="mlp", learning_rate=1e-3, selection=0.7)]
        rows += [shipped(task, "lora", bad, 1e5, rank=1, head="mlp", learning_rate=3e-3, selection=0.6)]
        rows += [shipped(task, "lora", eight, 2e6)]
    return pd.DataFrame(rows)


def test_the_frontier_by_hand():
    """Shares (0.3 + 0.05) / 0.5 of the mask, 0.25 / 0.5 of rank 1; rank 8 ships more than the mask for as much."""
    found = frontier(bytes_and_scores()).set_index("way")
    assert list(found.index) == ["lora r = 1, mlp head", "adaprune 0.5", "lora r = 8", "finetune"]  # by bytes
    assert found["share"].tolist() == pytest.approx([0.5, 0.7, 0.7, 1.0])  # the rate that is best on held-out rows
    assert found["bytes"].tolist() == [1e5, 3e5, 2e6, 1e8]
    assert found["first"].tolist() == [True, True, False, True]


def test_masks_of_units_are_a_way_of_their_own_on_the_frontier_and_their_start_a_setting():
    """Of two starts the one with the better held-out score counts, whatever their dev scores."""
    runs, rows = bytes_and_scores(), []
    for task, dev in (("cola", 0.3), ("sst2", 0.85)):
        ours = {"sparsity": 0.5, "pattern": "units", "size": 4e3}
        rows.append(shipped(task, "adaprune", score=dev, selection=0.7, **ours))
        rows.append(shipped(task, "adaprune", score=0.9, selection=0.6, initial_theta="gradient", **ours))
    found = frontier(pd.concat([runs, pd.DataFrame(rows)], ignore_index=True)).set_index("way")
    assert found.loc["adaprune units 0.5", ["share", "bytes"]].tolist() == pytest.approx([0.5, 4e3])
    assert found.loc["adaprune 0.5", "bytes"] == 3e5  # as without them


def test_what_is_below_the_floor_is_beaten_by_it():
    """One byte, and scores 0.1 and 0.01 below the floors: no way has as few bytes, but none is needed."""
    low = [shipped(task, "features", score, 1) for task, score in (("cola", 0.0), ("sst2", 0.79))]
    found = frontier(pd.concat([bytes_and_scores(), pd.DataFrame(low)], ignore_index=True)).set_index("way")
    assert found.loc["features", "share"] < 0 and not found.loc["features", "first"]
    assert found["first"].sum() == 3  # the others as without it


def test_the_frontier_asks_for_landmarks_and_leaves_ablations_out():
    runs = bytes_and_scores()
    assert frontier(runs[runs["method"] != "probe"]).empty
    ablated = runs[runs["method"] == "adaprune"].assign(ablation="shuffle", score=9.0)
    pd.testing.assert_frame_equal(frontier(pd.concat([runs, ablated], ignore_index=True)), frontier(runs))
