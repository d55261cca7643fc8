"""Algorithm 1 and the control of its sparsity together, against a reference in plain loops, with and without recovery.

The reference knows no masked layers and no -inf: a mask is a set of places, a quantile the entry of a sorted list, and
what is pruned for good is taken out of a set `alive`. Its dL/dm comes from torch's autograd over plain products.
"""

import math
from itertools import product

import pytest
import torch
from torch import nn

from adaprune.masks import schedules
from adaprune.masks.layers import attach, threshold_of
from adaprune.masks.optim import AdaPrune
from adaprune.masks.schedules import CONTROLS, SparsityControl
from adaprune.methods.scores import Scores
from tests.masks.reference import DIRECTIONS

STEPS, END, TARGET, T_S = 100, 60, 0.6, 20.0
RULES, SLOPES = ("sgd", "adam", "adafactor"), ("sigmoid", "identity")
ALPHA = {"adam": 1e-3, "adafactor": 1e-3}  # theta moves by its own size within the run
SGD = {"sigmoid": 1e-2, "identity": 5e-2}  # the sigmoid's slope is 5 at the threshold
GAMMA = 2e-4  # of the penalty control, which is given as such


class Net(nn.Module):
    """Two layers that count as Transformer layers, 5 -> 6 -> 4, with a tanh between them, in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.ModuleList([nn.Linear(5, 6, dtype=torch.float64), nn.Linear(6, 4, dtype=torch.float64)])
        self.table = nn.Embedding(2, 2)

    def get_input_embeddings(self):
        return self.table

    def forward(self, x):
        return self.layer[1](torch.tanh(self.layer[0](x)))


def batches(steps=STEPS):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = (torch.randn(8, width, dtype=torch.float64, generator=generator) for width in (5, 4))
        yield x, y


def start(kind="spread"):
    """theta_0 of the two matrices; of "spread" some start below 0."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(6, 5), (4, 6)]
    if kind != "spread":
        return [torch.full(shape, kind, dtype=torch.float64) for shape in shapes]
    return [0.01 * (1 + torch.randn(shape, dtype=torch.float64, generator=generator)) for shape in shapes]


# ---------------------------------------------------------------- the reference


def scheduled(kind, step):
    """The share that should be pruned after so many steps, of the controls that follow theta's quantiles."""
    return TARGET * (1 - (1 - min(1, step / END)) ** 3) if kind == "cubic" else TARGET


def lowest(values, count):
    """The value of which `count` of the numbers do not exceed it; the one below where equal ones would be too many."""
    if not count:
        return None
    ordered = sorted(values)
    value = ordered[count - 1]
    if sum(v <= value for v in ordered) > count + 0.01 * len(ordered):
        value = max((v for v in ordered if v < value), default=None)
    return value


def rate(rule, surrogate):
    return ALPHA.get(rule, SGD[surrogate])


def slope_of(surrogate, theta, level):
    if surrogate == "identity":
        return 1.0
    decay = math.exp(-T_S * (theta - level))
    return T_S * decay / (1 + decay) ** 2


def loss_of(net, masks, x, y):
    """The loss of a plain network with the products of weights and masks."""
    one, two = ((layer.weight * mask, layer.bias) for layer, mask in zip(net.layer, masks, strict=True))
    return ((torch.tanh(x @ one[0].t() + one[1]) @ two[0].t() + two[1] - y) ** 2).mean()


def reference(kind, rule, surrogate, recovery, thetas, alpha):
    """Yields after each step: thetas, the level they are compared with (None: nothing), the places kept, stop."""
    net, thetas, level = Net(), [theta.clone() for theta in thetas], 0.0
    places = [(m, i, j) for m, theta in enumerate(thetas) for i in range(len(theta)) for j in range(theta.shape[1])]
    alive, past = set(places), ([], [])

    def value(place):
        return float(thetas[place[0]][place[1], place[2]])

    def kept():
        return {p for p in places if value(p) > (-math.inf if level is None else level)} if recovery else set(alive)

    for step, (x, y) in enumerate(batches(), 1):
        masks = [torch.zeros_like(theta) for theta in thetas]
        for m, i, j in kept():
            masks[m][i, j] = 1.0
        to_masks = torch.autograd.grad(loss_of(net, [mask.requires_grad_() for mask in masks], x, y), masks)
        for m, to_mask in enumerate(to_masks):
            grad = torch.zeros_like(to_mask)
            for place in (p for p in places if p[0] == m):
                gone = surrogate == "sigmoid" and place not in alive  # theta at minus infinity: no slope there
                slope = 0.0 if gone else slope_of(surrogate, value(place), 0.0 if level is None else level)
                grad[place[1:]] = float(to_mask[place[1:]]) * slope
            past[m].append(grad)
            thetas[m] = thetas[m] - alpha * DIRECTIONS[rule](past[m])
        stop, cut = False, None  # what does not exceed the cut is pruned
        if kind == "penalty":
            cut = level = level + GAMMA
        elif kind == "cubic":
            if step % 3 == 0 or step == END:
                count = round(scheduled(kind, step) * len(places)) - (0 if recovery else len(places) - len(alive))
                cut = lowest([value(p) for p in (places if recovery else alive)], max(0, count))
                level = cut if recovery or cut is not None else level
        else:  # gamma anew at each step, from where the level is, or from the lowest theta that is left
            count = round(TARGET * len(places)) - (0 if recovery else len(places) - len(alive))
            goal = lowest([value(p) for p in (places if recovery else alive)], max(0, count))
            now = level if recovery else min(value(p) for p in alive)
            if goal is not None and (goal > now or not recovery):
                cut = level = goal if step >= END else now + (goal - now) / (END - step + 1)
        if not recovery and cut is not None:
            alive -= {p for p in alive if value(p) <= cut}
        if kind == "penalty":
            stop = 1 - len(kept()) / len(places) > TARGET
        yield thetas, level, kept(), stop


# ---------------------------------------------------------------- the package


def fast(kind, rule, surrogate, recovery, thetas, alpha):
    """The same by the package: masked layers, AdaPrune or Scores, SparsityControl."""
    net = Net()
    names = ["layer.0.weight", "layer.1.weight"]
    parameters = attach(net, {n: t.clone() for n, t in zip(names, thetas, strict=True)}, recovery=recovery)
    level = threshold_of(net)
    group = {"params": list(parameters.values()), "masked": True, "threshold": level}
    options = {"lr": alpha, "rule": rule, "temperature": T_S, "penalty": GAMMA if kind == "penalty" else 0.0}
    if surrogate == "sigmoid":
        optimiser = AdaPrune([group], **options)
    else:
        optimiser = Scores([{**group, "surrogate": surrogate}], **options)
    control = SparsityControl(kind, TARGET, END, recovery=recovery)
    if not any(theta.any() for theta in thetas):
        control.update(0, parameters.values(), level)  # as methods do whose scores start anywhere: 0 is not pruned
    for step, (x, y) in enumerate(batches(), 1):
        optimiser.zero_grad()
        ((net(x) - y) ** 2).mean().backward()
        given = [theta.grad.clone() for theta in parameters.values()]
        optimiser.step()
        assert all(torch.equal(t.grad, g) for t, g in zip(parameters.values(), given, strict=True))  # read, not written
        stop = control.update(step, parameters.values(), level)
        found = [theta.detach().clone() for theta in parameters.values()]
        yield found, float(level), control.kept(found, level), control.sparsity(found, level), stop, net


def places_of(masks):
    return {(m, *place) for m, mask in enumerate(masks) for place in mask.nonzero().tolist()}


def computed(net):
    """The places that the masked layers really use: where an input's effect on the output is not 0."""
    found = []
    for layer in net.layer:
        inputs = torch.eye(layer.in_features, dtype=torch.float64)
        found.append((layer(inputs) - layer.bias).t().detach() != 0)
    return places_of(found)


@pytest.mark.parametrize("recovery", [True, False])
@pytest.mark.parametrize(("kind", "surrogate", "rule"), list(product(CONTROLS, SLOPES, RULES)))
def test_100_steps_agree_with_plain_loops(kind, surrogate, rule, recovery):
    slow = reference(kind, rule, surrogate, recovery, start(), rate(rule, surrogate))
    quick = fast(kind, rule, surrogate, recovery, start(), rate(rule, surrogate))
    before, returned, left, moved, steps = None, set(), set(), 0.0, 0
    for steps, (ours, theirs) in enumerate(zip(quick, slow, strict=False), 1):  # noqa: B007
        (thetas, level, masks, sparsity, stop, net), (expected, wanted, kept, halt) = ours, theirs
        assert places_of(masks) == kept == computed(net), steps
        assert (stop, sparsity) == (halt, pytest.approx(1 - len(kept) / 54)), steps
        assert level == (-math.inf if wanted is None else pytest.approx(wanted, rel=1e-9, abs=1e-12)), steps
        for m, (one, other) in enumerate(zip(thetas, expected, strict=True)):
            living = torch.tensor(
                [[recovery or (m, i, j) in kept for j in range(one.shape[1])] for i in range(len(one))]
            )
            torch.testing.assert_close(one[living], other[living], rtol=1e-8, atol=1e-11)
            assert (one[~living] == -math.inf).all()
        if before is not None:
            returned, left = returned | kept - before[0], left | before[0] - kept
            moved = max(float((one - two)[two > -math.inf].abs().nan_to_num(0, 0, 0).max())
                        for one, two in zip(thetas, before[1], strict=True))  # fmt: skip
            assert moved > 0, f"nothing has moved at step {steps}"
        before = kept, thetas
        if stop:
            break
        if kind != "penalty" and (steps == END or (steps > END and not recovery)):
            assert sparsity == pytest.approx(32 / 54, abs=1e-9 if kind == "cubic" or not recovery else 3 / 54), steps
            assert sparsity > 31.5 / 54  # feedback lets theta sink under its threshold: never less, at times more
    assert left and bool(returned) is recovery
    assert (stop and 20 < steps < STEPS) if kind == "penalty" else steps == STEPS


# ---------------------------------------------------------------- without recovery


@pytest.mark.parametrize("surrogate", SLOPES)
@pytest.mark.parametrize("rule", RULES)
def test_without_recovery_sparsity_follows_the_same_schedule(rule, surrogate):
    """The cubic's looks are at the same steps and as exact, whether or not what they prune may come back."""
    paths = [[s[3] for s in fast("cubic", rule, surrogate, r, start(), rate(rule, surrogate))] for r in (True, False)]
    for step in range(3, END + 1, 3):
        wanted = round(scheduled("cubic", step) * 54) / 54
        assert paths[0][step - 1] == pytest.approx(wanted) == paths[1][step - 1], step
    assert paths[1] == sorted(paths[1]) and paths[1][END:] == [pytest.approx(32 / 54)] * (STEPS - END)


@pytest.mark.parametrize("recovery", [True, False])
@pytest.mark.parametrize(("kind", "value"), [("cubic", 0.0), ("cubic", 0.01), ("feedback", 0.01)])
@pytest.mark.parametrize(("rule", "surrogate"), list(product(RULES, SLOPES)))
def test_a_start_of_equal_theta_is_learned_from_and_reaches_the_target(rule, surrogate, kind, value, recovery):
    """Scores at 0, or the paper's constant start: each theta moves at the first step, and those left do to the end."""
    walked = list(fast(kind, rule, surrogate, recovery, start(value), rate(rule, surrogate)))
    assert all((theta != value).all() for theta in walked[0][0])
    assert walked[END - 1][3] == pytest.approx(32 / 54)
    for (before, *_), (after, *_) in zip(walked, walked[1:], strict=False):
        for one, two in zip(before, after, strict=True):
            assert (one != two)[one > -math.inf].any()
    assert recovery or walked[-1][3] == pytest.approx(32 / 54)


def test_what_was_pruned_for_good_stays_so_where_theta_rises():
    """By hand: 3 of 6 are to go within three steps, 0.5 (1 - 8/27) 6 = 2.1 of them at the first look."""
    theta = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    level = torch.zeros((), dtype=torch.float64)
    control = SparsityControl("cubic", 0.5, end=3, interval=1, recovery=False)
    control.update(1, [theta], level)
    assert theta.tolist() == [-math.inf, -math.inf, 3.0, 4.0, 5.0, 6.0] and float(level) == 2.0
    theta += torch.tensor([100.0, 100.0, 50.0, 0.0, 0.0, 0.0])  # no number brings the first two back
    control.update(3, [theta], level)  # and the third has gone past all others: now the fourth is the lowest
    assert control.kept([theta], level)[0].tolist() == [False, False, True, False, True, True]
    assert control.sparsity([theta], level) == 0.5 and float(level) == 4.0
    control.update(6, [theta], level)  # nothing is left to be pruned: the slope keeps its centre
    assert float(level) == 4.0 and control.sparsity([theta], level) == 0.5


@pytest.mark.parametrize(("kind", "end"), [("feedback", 4), ("cubic", 4)])
def test_a_matrix_may_lose_all_it_has(kind, end):
    """The lowest 2 of 6 are one whole matrix: the control goes on with what is left in the other."""
    thetas = [torch.tensor([0.1, 0.2], dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)]
    level = torch.zeros((), dtype=torch.float64)
    control = SparsityControl(kind, 0.5, end=end, recovery=False)
    for step in range(1, end + 3):
        control.update(step, thetas, level)
    assert (thetas[0] == -math.inf).all() and (thetas[1] > -math.inf).tolist() == [False, True, True, True]


def test_feedback_without_recovery_arrives_though_theta_falls_away_under_it():
    """All theta sink below where the threshold has been: what is left still goes, lowest first, on time."""
    theta = torch.linspace(1, 2, 100, dtype=torch.float64)
    level, shares = torch.zeros((), dtype=torch.float64), []
    control = SparsityControl("feedback", 0.5, end=50, recovery=False)
    for step in range(1, 53):
        theta -= 0.1
        control.update(step, [theta], level)
        shares.append(control.sparsity([theta], level))
    assert shares == sorted(shares) and shares[48] < 0.5 and shares[49:] == [0.5] * 3
    assert (theta > -math.inf).tolist() == [False] * 50 + [True] * 50
    assert shares[24] == pytest.approx(0.25, abs=0.02)  # evenly: theta are evenly spaced


@pytest.mark.parametrize(("kind", "each"), [("feedback", False), ("cubic", False), ("cubic", True)])
def test_without_recovery_no_sample_and_no_tie_prunes_more_than_was_asked(kind, each, monkeypatch):
    """What went too far could not come back, and the exact cut at the end would take up what is gone."""
    monkeypatch.setattr(schedules, "_SAMPLE", 100)
    monkeypatch.setattr(schedules.quantile_threshold, "__defaults__", (100, schedules.TIES))
    generator = torch.Generator().manual_seed(0)
    thetas = [torch.randn(size, 60, generator=generator).mul(50).round().div(50) for size in (60, 90)]  # many are equal
    allocate = (lambda density: [density] * 2) if each else None
    level = torch.zeros(2 if allocate else (), dtype=torch.float64)
    control = SparsityControl(kind, TARGET, END, recovery=False, allocate=allocate)
    shares = []
    for step in range(1, END + 3):
        for theta in thetas:
            theta += 0.02 * torch.randint(-1, 2, theta.shape, generator=generator)
        control.update(step, thetas, level)
        shares.append(control.sparsity(thetas, level))
        if kind == "cubic":
            assert shares[-1] <= scheduled("cubic", step) + 1e-3, step
    assert TARGET - 0.03 < shares[-1] <= TARGET + 1e-9 and shares == sorted(shares)
