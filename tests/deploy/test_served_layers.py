"""Kept matrices: the same logits to the last bit, made once, in the memory of the task served longest ago."""

import copy
import threading

import pytest
import torch

from adaprune import MaskedEncoder, apply_mask, load_mask
from adaprune.deploy.runtime import served_layers
from adaprune.deploy.runtime.served_layers import ServedLinear, Task
from adaprune.deploy.runtime.sparse import ChosenLinear, PlacedLinear, SparseLinear
from adaprune.masks import maskable
from adaprune.training import Encoder
from tests import tiny
from tests.deploy.test_serving import make_mask

NAMES = ("a", "b", "c")


@pytest.fixture
def masks(tmp_path):
    """Three tasks' masks, one with the word embeddings in scope and one that keeps a matrix whole."""
    scopes = {"b": "encoder+embeddings"}
    made = {
        name: load_mask(make_mask(tmp_path, tiny.encoder(), name, ["x", "y"], seed, scopes.get(name, "encoder")))
        for seed, name in enumerate(NAMES)
    }
    next(iter(made["c"].masks.values()))[:] = True
    return made


def served(masks, **how) -> MaskedEncoder:
    model = MaskedEncoder(Encoder(tiny.encoder(), None, "tiny", "none"), **how)
    for name, mask in masks.items():
        model.add_task(name, mask)
    return model


def logits(model, name, batch=None):
    model.set_task(name)
    return model(**(batch or tiny.batch())).logits


@pytest.fixture
def made(monkeypatch):
    """A list of every mask that is unpacked."""
    found, unpack = [], Task.kept
    monkeypatch.setattr(Task, "kept", lambda task, name, like: found.append(name) or unpack(task, name, like))
    return found


def pointers(model) -> dict[str, dict[str, int]]:
    """Task -> matrix -> where its kept numbers lie, the task served last at the end."""
    names = {model.task(name): name for name in model.tasks}
    found = model._kept._servings
    return {names[task]: {n: w.data_ptr() for n, (w, *_) in found[task].weights.items()} for task in model._kept.tasks}


@pytest.mark.parametrize("keep", [0, 1, 2, 5])
@pytest.mark.parametrize("runtime", ["dense", "sparse"])
def test_logits_are_those_of_apply_mask_with_that_runtime(masks, keep, runtime):
    if runtime == "sparse" and not keep:
        return
    model = served(masks, keep=keep, runtime=runtime)
    alone = {name: apply_mask(tiny.encoder(), mask, runtime) for name, mask in masks.items()}
    base = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        for name in "abcacbbabca":
            with mode():
                assert torch.equal(logits(model, name), alone[name](**tiny.batch()).logits)
            assert len(model._kept.tasks) <= keep
        tasks = ["c", "a", "b"]
        with mode():
            rows = [
                alone[name](**{k: v[[row]] for k, v in tiny.batch().items()}).logits for row, name in enumerate(tasks)
            ]
            mixed, expected = model(**tiny.batch(), tasks=tasks).logits, torch.cat(rows)
        if runtime == "dense" or keep >= len(tasks):
            assert torch.equal(mixed, expected)
        torch.testing.assert_close(mixed, expected, atol=1e-4, rtol=0)
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.encoder.state_dict().items())


def test_a_switch_among_kept_tasks_writes_nothing(masks, made):
    model = served(masks, keep=2)
    logits(model, "a"), logits(model, "b")
    matrices = len(maskable(model.encoder))
    assert len(made) == 2 * matrices
    for name in "aababb":
        logits(model, name)
    assert len(made) == 2 * matrices
    logits(model, "c")  # in place of a, which was served longest ago
    assert len(made) == 3 * matrices and [*pointers(model)] == ["b", "c"]
    logits(model, "b")
    assert len(made) == 3 * matrices
    logits(model, "a")
    assert len(made) == 4 * matrices and [*pointers(model)] == ["b", "a"]


def test_the_memory_of_the_one_served_longest_ago_is_used_again(masks):
    model = served(masks, keep=2)
    logits(model, "a"), logits(model, "b")
    of_a = pointers(model)["a"]
    logits(model, "c")
    assert pointers(model)["c"] == of_a


def test_a_batch_of_more_tasks_than_are_kept_leaves_those_that_are(masks, made):
    model = served(masks, keep=2)
    logits(model, "a"), logits(model, "b")
    before, used = pointers(model), len(made)
    model(**tiny.batch(), tasks=["a", "b", "c"])
    matrices = len(maskable(model.encoder))
    assert pointers(model) == before and len(made) == used + matrices  # c was made, and forgotten
    model(**tiny.batch(), tasks=["a", "c", "c"])
    assert {*pointers(model)} == {"a", "c"}


def test_threads_serve_more_tasks_than_are_kept(masks):
    """Each thread switches all the time; a matrix that one is using is not written over by another."""
    for runtime in ("dense", "sparse"):
        model, wrong = served(masks, keep=1, runtime=runtime), []
        batch = tiny.batch(rows=8, tokens=20)
        alone = {n: apply_mask(tiny.encoder(), mask, runtime)(**batch).logits for n, mask in masks.items()}

        def serve(first, model=model, alone=alone, wrong=wrong, batch=batch):
            for turn in range(30):
                name = NAMES[(first + turn * (first + 1)) % 3]
                found = model(**batch, tasks=[name] * 8).logits
                if not torch.equal(found, alone[name]):
                    wrong.append((first, turn, name))

        threads = [threading.Thread(target=serve, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert all(serving.users == 0 for serving in model._kept._servings.values())


def test_a_task_taken_out_or_put_in_again_is_made_anew(masks):
    model = served(masks, keep=3)
    first = logits(model, "a")
    model.delete_task("a")
    assert not model._kept.tasks
    model.add_task("a", masks["b"])
    assert torch.equal(logits(model, "a"), logits(model, "b")) and not torch.equal(logits(model, "a"), first)


def test_another_dtype_or_a_copy_begins_with_nothing(masks):
    model = served(masks, keep=2)
    before = logits(model, "a")
    other = copy.deepcopy(model)
    assert not other._kept.tasks and other._kept.limit == 2 and other._kept is not model._kept
    assert torch.equal(logits(other, "a"), before)
    model.double()
    assert not model._kept.tasks
    torch.testing.assert_close(logits(model, "a").float(), before, atol=1e-5, rtol=1e-5)


def test_what_load_state_dict_brings_is_served(masks):
    model = served(masks, keep=2)
    other = MaskedEncoder(Encoder(tiny.encoder(), None, "tiny", "none"))
    other.add_task("a", masks["c"])
    other.add_task("b", masks["b"])
    other.add_task("c", masks["a"])
    before = logits(model, "a")
    model.load_state_dict(other.state_dict())
    assert torch.equal(logits(model, "a"), logits(other, "a")) and not torch.equal(logits(model, "a"), before)


@pytest.mark.parametrize("runtime", ["dense", "sparse"])
def test_what_happens_to_the_inner_encoder_is_served(masks, runtime):
    """Numbers that are copied, replaced or edited in place, and a dtype there and back at the same address."""

    def fresh(state):
        other = served(masks, runtime=runtime)
        other.encoder.load_state_dict(state)
        return other

    def edit(encoder):
        with torch.no_grad():
            for module in maskable(encoder).values():
                module.weight.mul_(3)

    def biases(encoder):
        with torch.no_grad():
            for module in maskable(encoder).values():
                module.bias.add_(1)

    other = {n: t * 2 if t.is_floating_point() else t for n, t in tiny.encoder(seed=5).state_dict().items()}
    model = served(masks, keep=2, runtime=runtime)
    for change in (
        lambda encoder: encoder.load_state_dict(other),
        edit,
        biases,
        lambda encoder: encoder.load_state_dict(tiny.encoder(seed=6).state_dict(), assign=True),
        lambda encoder: encoder.bfloat16().float(),
    ):
        before = logits(model, "a"), logits(model, "c")
        change(model.encoder)
        same = fresh(model.encoder.state_dict())
        for name, old in zip("ac", before, strict=True):
            assert torch.equal(logits(model, name), logits(same, name)) and not torch.equal(logits(model, name), old)
    model.encoder.bfloat16()
    for name in "acb":  # b in memory of another dtype
        torch.testing.assert_close(logits(model, name), logits(same, name), atol=0.2, rtol=0.1)


def test_more_tasks_at_once_than_are_kept_do_not_stay(masks):
    model, all_in = served(masks, keep=1), threading.Barrier(3)

    def serve(name):
        with model._kept.serving(model.task(name)):
            all_in.wait()
            model(**tiny.batch(), tasks=[name] * 3)

    threads = [threading.Thread(target=serve, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(model._kept.tasks) == 1


def test_a_task_deleted_while_a_thread_turns_to_it_is_not_kept(masks):
    model = served(masks, keep=2)
    task = model.task("a")  # looked up before
    model.delete_task("a")
    with model._kept.serving(task):
        model.encoder(**tiny.batch())
        assert not model._kept.tasks
    assert not model._kept.tasks


def test_sparse_matrices_are_kept_at_8_bytes_a_weight(masks):
    model = served(masks, keep=1, runtime="sparse")
    logits(model, "c")
    (serving,) = model._kept._servings.values()
    kinds = [type(matrix) for matrix, *_ in serving.weights.values()]
    assert kinds.count(SparseLinear) == len(kinds) - 1  # and the whole matrix as it is
    for name, (matrix, *_) in serving.weights.items():
        if isinstance(matrix, SparseLinear):
            assert len(matrix.values) == int(masks["c"].masks[name].sum())


def test_auto_takes_for_each_matrix_what_was_faster(masks, monkeypatch):
    """Whatever was: the answers are those of the masked model, and no switch times anything again."""
    timed = []

    def wins_of(pairs):
        timed.append(len(pairs))
        kinds = ((True,) * 4, (False,) * 4, (True, False, False, False))
        return {name: kinds[number % 3] for number, name in enumerate(pairs)}

    monkeypatch.setattr(served_layers, "wins_of", wins_of)
    model = served(masks, keep=2, runtime="auto")
    alone = {name: apply_mask(tiny.encoder(), mask) for name, mask in masks.items()}
    for name in "abccbacab":
        torch.testing.assert_close(logits(model, name), alone[name](**tiny.batch()).logits, atol=1e-5, rtol=0)
    assert len(timed) == 3 and timed[0] == timed[1] == timed[2] + 1  # one of c's is whole
    kinds = {type(matrix) for matrix, *_ in next(iter(model._kept._servings.values())).weights.values()}
    assert kinds == {SparseLinear, PlacedLinear, ChosenLinear}


def test_auto_by_the_clock(masks):
    model = served(masks, keep=1, runtime="auto")
    for name in "ab":
        alone = apply_mask(tiny.encoder(), masks[name])
        torch.testing.assert_close(logits(model, name), alone(**tiny.batch()).logits, atol=1e-5, rtol=0)


def test_two_can_serve_one_base(masks):
    base = Encoder(tiny.encoder(), None, "tiny", "none")
    for runtime in ("dense", "sparse", "dense"):
        model = MaskedEncoder(base, runtime=runtime)
        model.add_task("a", masks["a"])
        assert torch.equal(logits(model, "a"), apply_mask(tiny.encoder(), masks["a"], runtime)(**tiny.batch()).logits)


def test_what_cannot_be_is_refused():
    def made(**how):
        return MaskedEncoder(Encoder(tiny.encoder(), None, "tiny", "none"), **how)

    for keep in (-1, 1.0, True, None):
        with pytest.raises(ValueError, match="keep is a number of tasks, 0 and more, got"):
            made(keep=keep)
    with pytest.raises(ValueError, match="runtime is 'dense', or with keep >= 1 'sparse' or 'auto', got 'fast' with k"):
        made(runtime="fast")
    for runtime in ("sparse", "auto"):
        with pytest.raises(ValueError, match=f"got '{runtime}' with keep=0"):
            made(keep=0, runtime=runtime)
    encoder = tiny.encoder().to("meta")
    with pytest.raises(ValueError, match="computes on a CPU"):
        MaskedEncoder(Encoder(encoder, None, "tiny", "none"), runtime="sparse")
    assert not any(isinstance(module, ServedLinear) for module in encoder.modules())
