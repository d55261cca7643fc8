"""How long a run takes when it names no epochs: by rows and sparsity, on paper and as run."""

import json
import math

import pytest

import adaprune
from adaprune.data.tasks import load_task
from adaprune.runs.recipes import MOST_EPOCHS, PAPER, TUNED, epochs_of, plan_for
from adaprune.runs.records import read_record
from adaprune.runs.run import Run


@pytest.mark.parametrize(
    ("sparsity", "batches", "epochs"),
    [
        (0.0, 100, 15),  # 1500 / 100
        (0.2, 100, 15),  # less than one halving counts as one
        (0.5, 100, 15),
        (0.75, 100, 30),  # two halvings
        (0.875, 200, 23),  # three: 4500 / 200 = 22.5
        (0.9, 481, 11),  # 1500 x 3.3219 / 481 = 10.4
        (0.9, 100, MOST_EPOCHS),
        (0.5, 1, MOST_EPOCHS),
        (0.5, 500, 3),
        (0.9, 100_000, 3),  # of many rows the recipe's own
    ],
)
def test_epochs_by_hand(sparsity, batches, epochs):
    assert epochs_of(TUNED, sparsity, batches) == epochs


def test_the_paper_and_a_run_that_names_them_keep_theirs():
    assert epochs_of(PAPER, 0.9, 1) == 3
    named = plan_for(Run(task="sst2", epochs=1.5))
    assert named.steps == 0 and epochs_of(named, 0.9, 1) == 1.5
    assert (
        plan_for(Run(task="sst2")).steps
        == 1500
        == 2 * plan_for(Run(task="sst2", method="finetune", sparsity=0.0)).steps
    )


def test_a_mask_and_fine_tuning_pass_over_the_rows_equally_often():
    """Within one epoch: batches of 32 are half as many, rounded up."""
    for rows in (500, 3301, 7696, 20_000):
        mask, dense = plan_for(Run(task="sst2")), plan_for(Run(task="sst2", method="finetune", sparsity=0.0))
        passes = [epochs_of(plan, 0.5, math.ceil(rows / plan.batch_size)) for plan in (mask, dense)]
        assert abs(passes[0] - passes[1]) <= 1, rows


def test_the_record_says_how_many(ten_sentences, tiny_model_dir, tmp_path):
    """Few training rows are stretched to the most epochs there are, and a second call reads the record."""
    run = Run(
        task=str(ten_sentences), model=str(tiny_model_dir), max_length=16, batch_size=4, results_dir=str(tmp_path)
    )
    record = adaprune.adapt(run)
    batches = math.ceil(len(load_task(str(ten_sentences)).splits["train"]) / 4)
    assert record["environment"]["plan"]["epochs"] == MOST_EPOCHS
    assert record["cost"]["steps"] == MOST_EPOCHS * batches
    assert adaprune.adapt(run) == record


def test_an_old_record_of_three_epochs_is_not_todays(ten_sentences, tiny_model_dir, tmp_path):
    """It was made before the rule, and says nothing of steps."""
    run = Run(
        task=str(ten_sentences), model=str(tiny_model_dir), max_length=16, batch_size=4, results_dir=str(tmp_path)
    )
    adaprune.adapt(run)
    path = next(tmp_path.glob("*.json"))
    record = json.loads(path.read_text())
    del record["environment"]["plan"]["steps"]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="steps was 0, is 1500"):
        adaprune.adapt(run)
    assert read_record(path)
