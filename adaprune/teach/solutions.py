"""Solutions to the exercises in notebooks/teach, one function each; the notebooks show the same lines, folded."""

import itertools
import math
from statistics import NormalDist

import torch


# Lesson 1
def keep_largest(scores, k):
    """True for the k highest scores; ties go to the first."""
    order = scores.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[:k]] = True
    return mask.view_as(scores)


def flips(mask, base):
    """How many connections the mask removes from base, and how many it brings back."""
    removed = base & ~mask
    back = mask & ~base
    return int(removed.sum()), int(back.sum())


def my_score(weight, norms):
    """The absolute weight times the norm of its input: Wanda's score."""
    return weight.abs() * norms


# Lesson 2
def straight_through(theta, grad_mask, rate, gamma, t_s):
    """One step of Algorithm 1 on theta: Eqs. 4, 5 and 7."""
    soft = torch.sigmoid(t_s * theta)
    surrogate = grad_mask * t_s * soft * (1 - soft)
    return theta - rate * surrogate - gamma


def cubic_schedule(step, begin, end, final):
    """0 before begin, final after end, cubic in between."""
    way = (step - begin) / (end - begin)
    way = min(1, max(0, way))
    return final * (1 - (1 - way) ** 3)


def comebacks(kept):
    """How often False is followed by True, per column."""
    returns = ~kept[:-1] & kept[1:]
    return returns.sum(0)


# Lesson 3
def best_mask(loss, d):
    """Tries all 2^d masks."""
    masks = [torch.tensor(m) for m in itertools.product((0.0, 1.0), repeat=d)]
    return min(masks, key=loss)


def bumps(loss, one, other):
    """Counts the pairs whose midpoint has a loss above the mean of the two."""
    middle = loss((one + other) / 2)
    mean = (loss(one) + loss(other)) / 2
    return int((middle > mean + 1e-9).sum())


def best_rate(T, G, C):
    """The bound is a / c + b c; its derivative is 0 at c = sqrt(a / b)."""
    a = 1 / math.sqrt(T)
    b = G**2 * (1 + C) * (1 + math.log(T)) / T
    return math.sqrt(a / b)


# Lesson 4
def jaccard_and_chance(one, other):
    """Intersection over union: the measured one and the one expected by chance."""
    overlap = (one & other).sum() / (one | other).sum()
    p, q = one.float().mean(), other.float().mean()
    return overlap, p * q / (p + q - p * q)


def working(into, out):
    """Counts lines into neurons with an output and lines out of neurons with an input."""
    hears = into.any(1)
    speaks = out.any(0)
    return int(into[speaks].sum() + out[:, hears].sum())


def parts(square):
    """For each line, merges the groups of its two ends."""
    outputs, inputs = square.shape
    group = list(range(outputs + inputs))
    for o, i in square.nonzero().tolist():
        old, new = group[outputs + i], group[o]
        group = [new if g == old else g for g in group]
    return len(set(group))


# Lesson 5
def share_negative(mean, deviation):
    """The normal distribution function at 0."""
    return NormalDist(mean, deviation).cdf(0)


def linear_share(linear, seen, unseen, sparsity):
    """Weights to remove over weights that may be removed, at most 1."""
    to_go = sparsity * (linear + seen + unseen)
    return min(1, to_go / (linear + seen))


def paired_difference(runs, one, other):
    """The mean difference over pairs of task and seed that both methods have."""
    score = {(task, seed, method): s for task, seed, method, s in runs}
    pairs = {(task, seed) for task, seed, _, _ in runs}
    both = [pair for pair in pairs if {(*pair, one), (*pair, other)} <= score.keys()]
    found = [score[*pair, one] - score[*pair, other] for pair in both]
    return sum(found) / len(found)


# Lesson 6
def majority_score(train, dev):
    """The share of dev that has the most frequent training label."""
    said = max(set(train), key=list(train).count)
    return sum(label == said for label in dev) / len(dev)


def nearest_mean(vectors, labels, new):
    """The class whose mean vector is nearest."""
    means = torch.stack([vectors[labels == k].mean(0) for k in (0, 1)])
    return torch.cdist(new, means).argmin(1)


def share_of_gain(scores, floors, tuned):
    """The sum of gains over the sum of rooms, for tasks that have room."""
    rows = zip(scores, floors, tuned, strict=True)
    tasks = [row for row in rows if row[2] - row[1] >= 0.03]
    gained = sum(score - floor for score, floor, _ in tasks)
    return gained / sum(best - floor for _, floor, best in tasks)


# Lesson 7
def to_gaps(mask, base):
    """The distance of each flip from the previous one, minus 1."""
    places = [-1, *(mask != base).nonzero().flatten().tolist()]
    return [b - a - 1 for a, b in itertools.pairwise(places)]


def from_gaps(gaps, base):
    """Walks along the gaps and flips the entry after each."""
    mask, at = base.clone(), -1
    for gap in gaps:
        at += gap + 1
        mask[at] = ~mask[at]
    return mask


def least_bits(weights, flips):
    """The number of weights times the entropy of one entry."""
    p = flips / weights
    return -weights * (p * math.log2(p) + (1 - p) * math.log2(1 - p))
