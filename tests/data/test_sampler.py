"""The order of training batches: every row once, like lengths together, lengths in no order over the steps."""

import random

import numpy as np
import pytest

from adaprune.data.sampler import POOL, GroupedByLength


def padded(lengths, order, batch):
    """Tokens of an epoch when each batch is padded to its longest row, by plain loops."""
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    return sum(len(rows) * max(lengths[row] for row in rows) for rows in batches)


@pytest.mark.parametrize(("rows", "batch"), [(1, 1), (1, 32), (31, 32), (32, 32), (33, 32), (1000, 7), (5, 2)])
def test_each_row_comes_once_whatever_the_sizes(rows, batch):
    sampler = GroupedByLength([row % 5 for row in range(rows)], batch, seed=3, rows=rows)
    assert sorted(sampler) == list(range(rows)) and len(sampler) == rows


def test_batches_are_of_like_lengths_and_come_in_no_order_of_length():
    lengths = random.Random(0).choices(range(5, 120), k=32 * 5 * POOL + 9)
    order = list(GroupedByLength(lengths, 32, seed=0, rows=len(lengths)))
    shuffled = random.Random(1).sample(range(len(lengths)), len(lengths))
    assert padded(lengths, order, 32) < 0.65 * padded(lengths, shuffled, 32)
    batches = np.array(order[:-9]).reshape(-1, 32)
    means = np.array(lengths)[batches].mean(1)
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3
    steps = np.sign(np.diff(means))  # sorted pools would go on falling; in random order it turns two times in three
    assert 0.5 < np.mean(steps[1:] != steps[:-1]) < 0.8


def test_the_order_is_one_for_seed_and_epoch():
    lengths = list(range(100))

    def order(seed, epoch):
        sampler = GroupedByLength(lengths, 4, seed, rows=len(lengths))
        sampler.epoch = epoch
        return tuple(sampler)

    assert order(1, 2) == order(1, 2)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_an_epoch_takes_a_copy_instead_of_about_half_of_the_rows():
    rows, copies = 500, 3
    sampler = GroupedByLength([7] * rows * (1 + copies), 16, seed=1, rows=rows)
    assert len(sampler) == rows
    taken = np.zeros(1 + copies, int)
    for sampler.epoch in range(6):
        order = np.array(list(sampler))
        assert sorted(order % rows) == list(range(rows))  # each row once, itself or as a copy
        taken += np.bincount(order // rows, minlength=1 + copies)
    assert taken.sum() == 6 * rows
    np.testing.assert_allclose(taken / taken.sum(), [1 / 2, 1 / 6, 1 / 6, 1 / 6], atol=0.03)
