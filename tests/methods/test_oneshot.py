"""wanda, snip and magnitude: scores by hand, cuts by another route, and runs from end to end."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils import prune

import adaprune
from adaprune.data.tasks import load_task
from adaprune.deploy.mask_file import load_mask
from adaprune.masks.layers import maskable
from adaprune.methods import oneshot
from adaprune.methods.oneshot import CALIBRATION, calibration, cut, cut_outputs
from adaprune.runs.paths import mask_path, paths_of, record_path
from adaprune.runs.recipes import plan_for
from adaprune.runs.run import Run
from adaprune.training import prepare
from adaprune.training.encoders import load_encoder
from adaprune.training.job import Job


def job_of(run):
    paths = paths_of(record_path(run))
    return prepare(run, plan_for(run), paths, load_task(run.task), load_encoder(run.model))


def magnitudes(job):
    modules = maskable(job.model.encoder, job.run.scope)
    return {name: module.weight.detach().abs() for name, module in modules.items()}


# ---------------------------------------------------------------- by hand, on a 2 x 3 matrix

NAME = "layer.0.weight"
WEIGHT = torch.tensor([[1.0, -3.0, 4.0], [-0.5, 0.1, 1.5]])
# One sentence of two words, and padding that must not count.
BATCH = {
    "x": torch.tensor([[[3.0, 0.0, 1.0], [4.0, 2.0, 0.0], [9.0, 9.0, 9.0]]]),
    "attention_mask": torch.tensor([[1, 1, 0]]),
}


class Small(torch.nn.Module):
    """One matrix in a numbered layer; the loss is the sum of its outputs over words."""

    encoder = property(lambda self: self)

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.ModuleList([torch.nn.Linear(3, 2, bias=False)])
        self.layer[0].weight.data = WEIGHT.clone()
        self.words = torch.nn.Embedding(2, 3)

    def get_input_embeddings(self):
        return self.words

    def forward(self, x, attention_mask):
        return SimpleNamespace(loss=self.layer[0](x)[attention_mask.bool()].sum())


@pytest.fixture
def small_job(monkeypatch):
    monkeypatch.setattr(oneshot, "calibration", lambda job: [(BATCH, 1.0)])
    run = Run(method="magnitude")
    return Job(run, Small(), task=None, sentences=None, settings=None, plan=plan_for(run), paths=None)


def test_wanda_by_hand(small_job):
    """Inputs' norms are 5, 2, 1, scores 5, 6, 4 and 2.5, 0.2, 1.5; of six connections three stay, two and one."""
    (norm,) = oneshot.input_norms(small_job, {NAME: small_job.model.layer[0]}).values()
    assert norm.tolist() == [5.0, 2.0, 1.0]
    scores = oneshot.activations(small_job)
    torch.testing.assert_close(scores[NAME], torch.tensor([[5.0, 6.0, 4.0], [2.5, 0.2, 1.5]]))
    assert cut_outputs(small_job, scores)[NAME].tolist() == [[True, True, False], [True, False, False]]
    assert cut(small_job, scores)[NAME].tolist() == [[True, True, True], [False, False, False]]


def test_snip_by_hand(small_job):
    """dL/dw_ij = sum of x_j over words = 7, 2, 1."""
    scores = oneshot.sensitivities(small_job)
    torch.testing.assert_close(scores[NAME], torch.tensor([[7.0, 6.0, 4.0], [3.5, 0.2, 1.5]]))
    assert cut(small_job, scores, 1 / 3)[NAME].tolist() == [[True, True, False], [False, False, False]]


def test_snip_is_the_weight_times_its_gradient(ask):
    """Against plain autograd over all nine sentences at once, embeddings too."""
    job = job_of(ask(method="snip", scope="encoder+embeddings"))
    plain = copy.deepcopy(job.model).eval().requires_grad_(True)
    train = job.sentences.splits["train"]
    plain(**job.sentences.collate([train[i] for i in range(len(train))])).loss.backward()
    found = oneshot.sensitivities(job)
    for name, module in maskable(plain.encoder, "encoder+embeddings").items():
        torch.testing.assert_close(
            found[name], (module.weight * module.weight.grad).abs().detach(), rtol=1e-3, atol=1e-7
        )


def test_wandas_norm_of_a_word_is_the_root_of_its_count(ask):
    job = job_of(ask(method="wanda", scope="encoder+embeddings"))
    found = oneshot.input_norms(job, maskable(job.model.encoder, "encoder+embeddings"))
    counted = torch.zeros(job.model.encoder.config.vocab_size)
    for ids in job.sentences.splits["train"]["input_ids"]:
        for word in ids:
            counted[word] += 1
    torch.testing.assert_close(found["embeddings.word_embeddings.weight"], counted.sqrt())


# ---------------------------------------------------------------- cuts


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.97, 0.999])
def test_each_output_keeps_its_share_and_all_exactly_k(ask, sparsity):
    job = replace(job_of(ask(method="wanda", sparsity=sparsity, scope="encoder+embeddings")), seen={})
    scores = magnitudes(job)
    masks = cut_outputs(job, scores)
    total = sum(score.numel() for score in scores.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(job.density * total)
    for name, mask in masks.items():
        score = scores[name]
        if "word_embeddings" in name:
            mask, score = mask.t(), score.t()
        share = job.density * mask.shape[1]
        for kept, values in zip(mask, score, strict=True):
            assert abs(int(kept.sum()) - share) < 1
            if kept.any() and not kept.all():
                assert values[kept].min() >= values[~kept].max()


def test_equal_scores_of_an_output_are_kept_by_position():
    job = SimpleNamespace(run=Run(), density=0.5, seen={})
    kept = cut_outputs(job, {"layer.0.weight": torch.ones(2, 4)})["layer.0.weight"]
    assert kept.tolist() == [[True, True, False, False]] * 2


def test_unseen_words_are_kept_by_wanda(ask):
    job = job_of(ask(method="wanda", sparsity=0.3, scope="encoder+embeddings"))
    (name,) = job.seen
    assert cut_outputs(job, magnitudes(job))[name][~job.seen[name]].all() and not job.seen[name].all()


@pytest.mark.parametrize("allocation", ["", "equal"])
def test_magnitude_agrees_with_torch_pruning(ask, allocation):
    job = job_of(ask(method="magnitude", sparsity=0.75, allocation=allocation))
    modules, masks = maskable(copy.deepcopy(job.model.encoder), "encoder"), cut(job, magnitudes(job))
    if allocation:
        for module in modules.values():
            prune.l1_unstructured(module, "weight", amount=0.75)
    else:
        pairs = [(module, "weight") for module in modules.values()]
        prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=0.75)
    for name, module in modules.items():
        assert torch.equal(masks[name], module.weight_mask.bool())


def test_an_allocation_that_magnitude_does_not_have_is_refused(ask):
    with pytest.raises(ValueError, match="allocation of magnitude"):
        adaprune.adapt(ask(method="magnitude", allocation="scores"))


def test_calibration_sentences_are_drawn_by_the_seed_and_weigh_alike(ask, monkeypatch):
    job = job_of(ask(method="wanda"))
    batches = list(calibration(job))
    assert CALIBRATION == 1024 and sum(len(batch["labels"]) for batch, _ in batches) == 9
    assert sum(share for _, share in batches) == pytest.approx(1)
    assert batches[-1][1] == pytest.approx(1 / 9)
    again = list(calibration(job_of(ask(method="wanda"))))
    other = list(calibration(job_of(ask(method="wanda", seed=1))))

    def first(found):
        return found[0][0]["input_ids"]

    assert torch.equal(first(again), first(batches))
    assert first(other).shape != first(batches).shape or not torch.equal(first(other), first(batches))


# ---------------------------------------------------------------- from end to end


@pytest.mark.parametrize("method", ["wanda", "snip", "magnitude"])
def test_a_run_keeps_exactly_k_and_the_weights(ask, method):
    run = ask(
        method=method, sparsity=1 / 3, scope="encoder+embeddings", allocation="equal" if method == "magnitude" else ""
    )
    record = adaprune.adapt(run)
    assert record["weights_intact"]
    assert record["mask"]["kept"] == round(2 / 3 * record["mask"]["total"])
    stored = load_mask(mask_path(run))
    assert stored.kept == record["mask"]["kept"]
    # nine sentences in batches of four: three steps an epoch, and snip's head is trained once before
    assert record["cost"]["steps"] == (6 if method == "snip" else 3)
    assert record["curve"][-1]["step"] == record["cost"]["steps"]
