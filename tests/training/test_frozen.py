"""A head trained on vectors read once is the head trained through the whole model; and what those vectors are."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from adaprune.data.tasks import load_task
from adaprune.masks.layers import detach, maskable, set_masks
from adaprune.runs.paths import paths_of, record_path
from adaprune.runs.recipes import plan_for
from adaprune.runs.run import Run
from adaprune.training import fit, predict, prepare
from adaprune.training import trainer as module
from adaprune.training.encoders import load_encoder, tensor_hashes
from adaprune.training.frozen import fit_head, read
from adaprune.training.job import Sentences
from adaprune.training.teachers import copies_in, with_teacher

STARS = ("a fine film", "dull and long", "funny", "flat", "the cast is superb and I laughed and I cried", "skip it")


@pytest.fixture
def job_of(ten_sentences, tiny_model_dir, tmp_path, monkeypatch):
    """The job of a small run in fp32, in a results folder of its own; ``task="stars"`` is a regression."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny_model_dir)
    (tmp_path / "stars").mkdir()
    for split, times, end in (("train", 2, "film"), ("validation", 1, "cast")):
        rows = "".join(f"{text},{0.5 * n - 1}\n" for n, text in enumerate(STARS))
        (tmp_path / "stars" / f"{split}.csv").write_text("text,label\n" + (rows * times).replace(",", f" {end},"))
    small = {"model": "tiny", "max_length": 16, "batch_size": 2, "epochs": 3, "method": "features",
             "head_learning_rate": 2e-2, "precision": "fp32"}  # fmt: skip

    def make(folder="out", pooling="mean", **fields):
        run = Run(**{"task": ten_sentences.name, **small, "results_dir": folder, **fields})
        paths = paths_of(record_path(run))
        plan = replace(plan_for(run), pooling=pooling)
        return prepare(run, plan, paths, load_task(run.task), load_encoder(run.model))

    return make


def through_the_whole_model(job):
    """The same training without cached vectors: every sentence goes through the encoder at every epoch."""
    job.model.encoder.requires_grad_(False)
    optimiser = torch.optim.AdamW(job.model.head.parameters(), lr=job.plan.head_learning_rate, weight_decay=0.01)
    return fit(job.model, job.sentences, optimiser, job.settings)


def taught(job):
    """The job with a teacher of another opinion about each training row and each copy of it."""
    rows = len(job.task.splits["train"])
    opinion = torch.randn(rows * (1 + copies_in(rows)), job.task.num_labels, generator=torch.Generator().manual_seed(5))
    return with_teacher(replace(job, plan=replace(job.plan, copies=True)), opinion)


def random_masks(encoder, seed=0):
    generator = torch.Generator().manual_seed(seed)
    modules = maskable(encoder, "encoder+embeddings").items()
    return {name: torch.rand(module.weight.shape, generator=generator) < 0.5 for name, module in modules}


def assert_same_head(one, other, atol=2e-5):
    found, expected = one.model.head.state_dict(), other.model.head.state_dict()
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name].cpu(), expected[name].cpu(), rtol=1e-4, atol=atol, msg=name)


def losses(done):
    return {point["step"]: point["loss"] for point in done.curve if "loss" in point}


# ---------------------------------------------------------------- one head by two routes


@pytest.mark.parametrize("is_pupil", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(("task", "head", "masked"), [("", "mlp", True), ("", "linear", False), ("stars", "mlp", True)])
def test_the_head_is_that_of_the_whole_model(job_of, task, head, masked, pooling, is_pupil):
    jobs = []
    for folder in ("quick", "slow"):
        job = job_of(folder, pooling=pooling, head=head, **({"task": task} if task else {}))
        if masked:
            set_masks(job.model.encoder, random_masks(job.model.encoder))
        jobs.append(taught(job) if is_pupil else job)
    quick, slow = jobs
    assert_same_head(quick, slow, atol=0)
    fresh = {name: tensor.clone() for name, tensor in quick.model.head.state_dict().items()}
    one, other = fit_head(quick), through_the_whole_model(slow)
    assert_same_head(quick, slow)
    moved = [float((tensor - fresh[name]).abs().max()) for name, tensor in quick.model.head.state_dict().items()]
    assert min(moved) > 1e-3  # and training did something to every part of it
    assert one.steps == other.steps > 0 and one.examples == other.examples
    assert losses(one) == pytest.approx(losses(other), abs=2e-5) and losses(one)
    for split in ("validation", "selection"):
        logits = [predict(job.model, job.sentences, split, job.settings) for job in jobs]
        np.testing.assert_allclose(*logits, atol=2e-4)


def test_a_teacher_and_the_pooling_both_matter(job_of):
    """Else equal heads would prove nothing."""
    plain, other, pupil = job_of("a"), job_of("b", pooling="cls"), job_of("c")
    for job in (plain, other, taught(pupil)):
        fit_head(job)
    weights = [job.model.head.output.weight for job in (plain, other, pupil)]
    assert (weights[0] - weights[1]).abs().max() > 1e-3 and (weights[0] - weights[2]).abs().max() > 1e-3


@pytest.mark.parametrize(("kill", "on"), [(3, 3), (8, 7)])
def test_after_an_interruption_it_goes_on_to_the_same_head(job_of, monkeypatch, kill, on):
    """Nine rows in batches of two, checkpoints at every second step: killed at the third, or in the second epoch."""
    whole = job_of("whole", checkpoint_steps=2)
    fit_head(whole)

    taken, real = [], module._EachStep.on_step_end

    def step(self, args, state, control, **more):
        taken.append(state.global_step)
        if len(taken) == kill:
            raise KeyboardInterrupt
        return real(self, args, state, control, **more)

    monkeypatch.setattr(module._EachStep, "on_step_end", step)
    broken = job_of("broken", checkpoint_steps=2)
    with pytest.raises(KeyboardInterrupt):
        fit_head(broken)
    again = job_of("broken", checkpoint_steps=2)
    done = fit_head(again)
    assert taken == [*range(1, kill + 1), *range(on, 16)]  # not from the start again
    assert_same_head(again, whole, atol=1e-6)
    slow = job_of("slow")
    through_the_whole_model(slow)
    assert_same_head(again, slow)
    assert done.steps == 15


@pytest.mark.parametrize("epochs", [1, 4])
def test_each_sentence_goes_through_the_encoder_once(job_of, epochs):
    job, rows = job_of(epochs=epochs), []
    job.model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    before = tensor_hashes(job.model.encoder)
    done = fit_head(job)
    assert sum(rows) == 9 + 1 == sum(len(job.sentences.splits[name]) for name in ("train", "selection"))
    assert done.steps == 5 * epochs
    assert tensor_hashes(job.model.encoder) == before  # and leaves it as it was
    assert not any(
        parameter.requires_grad or parameter.grad is not None for parameter in job.model.encoder.parameters()
    )


def test_reading_is_part_of_the_seconds(job_of, monkeypatch):
    job = job_of(epochs=1)
    clock = iter(range(0, 10**6, 1000))
    monkeypatch.setattr("adaprune.training.frozen.time.monotonic", lambda: float(next(clock)))
    assert fit_head(job).seconds >= 1000


# ---------------------------------------------------------------- what is read


def one_by_one(job, encoder, split, pooling):
    """Each row's vectors without any padding, (rows, width, layers): a sentence alone, a mean by numpy."""
    found = []
    for row in job.sentences.splits[split]:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            states = encoder(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        layers = [state[0].numpy() for state in states.hidden_states[1:]]
        found.append(np.stack([x[0] if pooling == "cls" else x.mean(axis=0) for x in layers], axis=-1))
    return np.stack(found)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_rows_come_in_their_own_order_and_padding_changes_none(job_of, pooling):
    """Rows of 3 to 13 tokens are read together; each is what it is alone."""
    job = job_of()
    texts = [
        "skip it",
        "I laughed and I cried and I laughed and I yawned",
        "dull",
        "a fine film",
        "dull",
        "it",
        "see it twice",
    ]
    rows = job.sentences.tokenizer(texts)["input_ids"]
    assert [len(ids) for ids in rows] != sorted(len(ids) for ids in rows) and len({len(ids) for ids in rows}) >= 4
    data = (
        job.sentences.splits["train"].select(range(7)).remove_columns(["input_ids", "attention_mask", "token_type_ids"])
    )
    data = data.add_column("input_ids", rows).add_column("attention_mask", [[1] * len(ids) for ids in rows])
    sentences = Sentences({"some": data}, job.sentences.tokenizer, job.sentences.metrics, job.sentences.primary)
    job = replace(job, sentences=sentences)
    found = read(job.model.encoder, pooling, sentences, "some", job.settings)
    expected = one_by_one(job, job.model.encoder, "some", pooling)
    assert found.shape == (7, 16, 2) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    distances = np.abs(found[:, None] - expected[None]).max(axis=(2, 3))
    assert [{i for i in range(7) if distances[n, i] < 1e-4} for n in (0, 1, 2, 4)] == [{0}, {1}, {2, 4}, {2, 4}]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_of_the_last_layer_alone_it_is_the_last_of_all(job_of, pooling):
    job = job_of()
    every = read(job.model.encoder, pooling, job.sentences, "train", job.settings)
    last = read(job.model.encoder, pooling, job.sentences, "train", job.settings, last=True)
    assert last.shape == (9, 16)
    np.testing.assert_allclose(last, every[..., -1], atol=1e-6)
    assert np.abs(last - every[..., 0]).max() > 0.01


def test_the_poolings_differ(job_of):
    job = job_of()
    cls, mean = (read(job.model.encoder, pooling, job.sentences, "train", job.settings) for pooling in ("cls", "mean"))
    assert np.abs(cls - mean).max() > 0.01


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vectors_are_those_under_the_mask(job_of, pooling):
    """Against a plain encoder whose weights were multiplied by the mask by hand; and the dense one afterwards."""
    job, plain = job_of(), job_of().model.encoder
    masks = random_masks(job.model.encoder)
    dense = read(job.model.encoder, pooling, job.sentences, "train", job.settings)
    set_masks(job.model.encoder, masks)
    found = read(job.model.encoder, pooling, job.sentences, "train", job.settings)
    with torch.no_grad():
        for name, mask in masks.items():
            plain.get_parameter(name).mul_(mask)
    np.testing.assert_allclose(found, one_by_one(job, plain, "train", pooling), atol=1e-5)
    assert np.abs(found - dense).max() > 0.01
    again = read(detach(job.model.encoder), pooling, job.sentences, "train", job.settings)
    np.testing.assert_array_equal(again, dense)


def test_reading_is_without_dropout_and_leaves_nothing_to_train(job_of):
    job = job_of(recipe="paper")  # which leaves the checkpoint's dropout on
    rates = {m.p for m in job.model.encoder.modules() if isinstance(m, torch.nn.Dropout)}
    assert max(rates) > 0
    job.model.encoder.requires_grad_(True).train()
    one, two = (read(job.model.encoder, "mean", job.sentences, "train", job.settings) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert not job.model.encoder.training and not any(p.requires_grad for p in job.model.encoder.parameters())


def test_a_teachers_logits_beside_the_rows_do_not_reach_the_encoder(job_of):
    job = job_of()
    plain = read(job.model.encoder, "mean", job.sentences, "train", job.settings)
    pupil = taught(job)
    assert "teacher_logits" in pupil.sentences.splits["train"].column_names
    np.testing.assert_array_equal(read(job.model.encoder, "mean", pupil.sentences, "train", job.settings), plain)


def test_half_precision_reads_nearly_the_same_in_float32(job_of):
    exact, half = job_of(), job_of("half", precision="bf16")
    vectors = [read(job.model.encoder, "mean", job.sentences, "train", job.settings) for job in (exact, half)]
    assert vectors[1].dtype == np.float32 and 0 < np.abs(vectors[0] - vectors[1]).max() < 0.1
    done = fit_head(half)
    assert all(math.isfinite(value) for value in losses(done).values())
