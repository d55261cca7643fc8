"""What needs no adapting: probe, zero_shot and majority, each by hand on vectors computed another way."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression, Ridge

import adaprune
from adaprune.data.tasks import load_task
from adaprune.deploy.mask_file import load_mask
from adaprune.methods.majority import majority
from adaprune.methods.probe import STRENGTHS, UNSEEN, features, probe
from adaprune.methods.zero_shot import zero_shot
from adaprune.runs.answers import read_answers
from adaprune.runs.paths import mask_path, paths_of, record_path
from adaprune.runs.recipes import plan_for
from adaprune.runs.records import read_record
from adaprune.runs.run import Run
from adaprune.training import prepare
from adaprune.training.encoders import load_encoder
from tests.small_data import SENTENCES

WORDS = sorted({w for w in "a fine film funny wise the cast is superb cried see twice dull flat long skip it".split()})
GOOD = {"fine", "funny", "superb", "wise"}


def texts_of(count, seed):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, size=generator.integers(2, 9))) for _ in range(count)]


def likeness(one, other):
    """The share of words that two texts have in common."""
    one, other = set(one.split()), set(other.split())
    return len(one & other) / len(one | other)


def rows_of(kind, count, seed):
    """Lines of a table: single texts, pairs of 2 or 3 classes (in "other2" the like ones are class 0), or values."""
    texts = texts_of(count, seed)
    if kind == "single":
        return ["text,label", *(f"{t},{'good' if GOOD & set(t.split()) else 'bad'}" for t in texts)]
    pairs = [
        (t, t if n % 2 else other) for n, (t, other) in enumerate(zip(texts, texts_of(count, seed + 1), strict=True))
    ]
    pairs = [(t, f"{other} it" if n % 3 else other) for n, (t, other) in enumerate(pairs)]
    values = [likeness(*pair) for pair in pairs]
    label = {
        "pairs2": lambda v: "like" if v > 0.6 else "alien",
        "other2": lambda v: "a like" if v > 0.6 else "b alien",
        "pairs3": lambda v: "abc"[(v > 0.3) + (v > 0.6)],
        "values": lambda v: f"{v:.4f}",
    }[kind]
    return ["text,text_pair,label", *(f"{t},{u},{label(v)}" for (t, u), v in zip(pairs, values, strict=True))]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model_dir):
    """A folder with the tasks and, by a short name, the model; its weights five times larger, to tell texts apart."""
    folder = tmp_path_factory.mktemp("baselines")
    encoder = load_encoder(str(tiny_model_dir))
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
    encoder.model.save_pretrained(folder / "tiny")
    encoder.tokenizer.save_pretrained(folder / "tiny")
    for number, kind in enumerate(("single", "pairs2", "other2", "pairs3", "values")):
        (folder / kind).mkdir()
        for split, count in (("train", 60), ("validation", 24)):
            seed = 10 * number + (split == "train")
            (folder / kind / f"{split}.csv").write_text("\n".join(rows_of(kind, count, seed)) + "\n")
    return folder


@pytest.fixture(autouse=True)
def at_place(place, monkeypatch):
    monkeypatch.chdir(place)


def ask(**fields):
    small = {"model": "tiny", "max_length": 16, "batch_size": 8, "epochs": 1, "results_dir": "out", "precision": "fp32"}
    return Run(**{**small, **fields})


def job_of(pooling="cls", **fields):
    run = ask(**{"method": "probe", **fields})
    plan = replace(plan_for(run), pooling=pooling)
    return prepare(run, plan, paths_of(record_path(run)), load_task(run.task), load_encoder(run.model))


def vectors(job, encoder, split, column, pooling):
    """Each text's vector of the last layer, one text at a time, by numpy: no batch, no padding, no package code."""
    found = []
    for text in job.task.splits[split][column]:
        ids = torch.tensor([job.sentences.tokenizer(text, truncation=True, max_length=16)["input_ids"]])
        with torch.no_grad():
            last = encoder(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0].numpy()
        found.append(last[0] if pooling == "cls" else last.mean(axis=0))
    return np.stack(found).astype(np.float64)


def features_by_hand(job, encoder, split, pooling):
    u = vectors(job, encoder, split, "text", pooling)
    if "text_pair" not in job.task.splits[split].column_names:
        return u
    v = vectors(job, encoder, split, "text_pair", pooling)
    return np.hstack([u, v, np.abs(u - v), u * v])


def probed(job, encoder, pooling="cls"):
    """Logits of a probe on the dev split, by scikit-learn's regressions alone; also the strength that was chosen."""
    rows = {split: features_by_hand(job, encoder, split, pooling) for split in ("train", "selection", "validation")}
    labels = {split: np.asarray(job.task.splits[split]["label"]) for split in rows}
    mean, spread = rows["train"].mean(0), rows["train"].std(0)
    rows = {split: (values - mean) / np.where(spread > 1e-12, spread, 1) for split, values in rows.items()}
    best = None
    for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        if job.task.labels:
            fitted = LogisticRegression(C=strength, max_iter=500).fit(rows["train"], labels["train"])
            score = (fitted.predict(rows["selection"]) == labels["selection"]).mean()
            said = fitted.predict_proba(rows["validation"])
        else:
            fitted = Ridge(alpha=1 / strength).fit(rows["train"], labels["train"])
            score = spearman(fitted.predict(rows["selection"]), labels["selection"])
            said = fitted.predict(rows["validation"])
        if best is None or score > best[0]:
            best = score, strength, said
    return best[2], best[1]


def spearman(said, true):
    """Pearson's r of ranks, by numpy."""
    return np.corrcoef(rankdata(said), rankdata(true))[0, 1]


def cosines(job, encoder, split, pooling="cls"):
    u, v = (vectors(job, encoder, split, column, pooling) for column in ("text", "text_pair"))
    return np.array([a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in zip(u, v, strict=True)])


def dense():
    return load_encoder("tiny").model


def masked(run):
    """The encoder with its weights multiplied by a run's mask, by hand."""
    encoder = dense()
    with torch.no_grad():
        for name, mask in load_mask(mask_path(run)).masks.items():
            encoder.get_parameter(name).mul_(mask)
    return encoder


# ---------------------------------------------------------------- probe


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("task", ["single", "pairs2", "pairs3", "values"])
def test_the_probe_is_scikit_learns_regression_on_the_same_vectors(task, pooling):
    job = job_of(task=task, pooling=pooling)
    outcome = probe(job)
    for split in ("train", "validation"):
        np.testing.assert_allclose(features(job, split), features_by_hand(job, dense(), split, pooling), atol=1e-5)
    logits, (expected, _) = outcome.answer("validation"), probed(job, dense(), pooling)
    if job.task.labels:
        assert logits.shape == (24, job.task.num_labels)
        np.testing.assert_allclose(np.exp(logits), expected, atol=2e-3)
    else:
        np.testing.assert_allclose(logits, expected[:, None], atol=2e-3)


def test_the_strength_is_chosen_without_a_look_at_the_dev_split():
    job = job_of(task="pairs3")
    dev = job.task.splits["validation"]
    flipped = dev.remove_columns("label").add_column("label", [(label + 1) % 3 for label in dev["label"]])
    other = replace(job.task, splits={**job.task.splits, "validation": flipped})
    one, two = (probe(j).answer("validation") for j in (job, replace(job, task=other)))
    np.testing.assert_array_equal(one, two)
    assert probed(job, dense())[1] in STRENGTHS


def test_a_class_that_training_lacks_is_never_said_and_all_stays_finite():
    job = job_of(task="pairs3")
    train = job.task.splits["train"]
    task = replace(job.task, splits={**job.task.splits, "train": train.filter(lambda row: row["label"] != 1)})
    logits = probe(replace(job, task=task)).answer("validation")
    assert logits.shape == (24, 3) and np.isfinite(logits).all()
    assert (logits[:, 1] == UNSEEN).all() and set(logits.argmax(1)) <= {0, 2}
    assert (logits[:, [0, 2]] > UNSEEN).all()
    np.testing.assert_allclose(np.exp(logits[:, [0, 2]]).sum(1), 1, rtol=1e-6)
    assert math.isfinite(job.task.metrics(logits, job.task.splits["validation"]["label"])["accuracy"])


def test_more_classes_than_rows():
    """Four training rows with three of the six classes."""
    job = job_of(task="pairs3")
    train = job.task.splits["train"].select(range(4)).remove_columns("label").add_column("label", [5, 0, 3, 5])
    task = replace(job.task, splits={**job.task.splits, "train": train}, labels=list("abcdef"), num_labels=6)
    logits = probe(replace(job, task=task)).answer("validation")
    assert logits.shape == (24, 6) and np.isfinite(logits).all() and set(logits.argmax(1)) <= {0, 3, 5}


@pytest.mark.parametrize("task", ["pairs3", "values"])
def test_vectors_that_are_all_alike_say_what_is_commonest(task):
    job = job_of(task=task)
    with torch.no_grad():
        for parameter in job.model.encoder.parameters():
            parameter.zero_()
    logits, labels = probe(job).answer("validation"), np.asarray(job.task.splits["train"]["label"])
    assert np.ptp(logits, axis=0).max() < 1e-9
    if task == "values":
        assert logits[0, 0] == pytest.approx(labels.mean(), rel=1e-5)
    else:
        np.testing.assert_allclose(np.exp(logits[0]), np.bincount(labels) / len(labels), atol=1e-3)


def test_a_probability_of_0_is_a_finite_logit():
    """Rows far out on a separable task: the log of a probability that has underflowed is cut at half UNSEEN."""
    job = job_of(task="single")
    outcome = probe(job)
    assert outcome.answer("train").min() >= UNSEEN / 2


# ---------------------------------------------------------------- zero_shot


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_zero_shot_values_are_the_cosines(pooling):
    job = job_of(task="values", method="zero_shot", pooling=pooling)
    outcome = zero_shot(job)
    for split in ("validation", "selection"):
        expected = cosines(job, dense(), split, pooling)
        np.testing.assert_allclose(outcome.answer(split), expected[:, None], atol=1e-5)
    assert outcome.updates == []


def test_zero_shot_spearman_of_the_record_is_that_of_the_cosines():
    run, job = ask(task="values", method="zero_shot"), job_of(task="values", method="zero_shot")
    record = adaprune.adapt(run)
    said = read_answers(paths_of(record_path(run)).answers)[0]  # like texts' cosines are 1 but for their last digits
    np.testing.assert_allclose(said, cosines(job, dense(), "validation"), atol=1e-5)
    expected = spearman(said, np.asarray(job.task.splits["validation"]["label"]))
    assert record["metrics"]["validation"]["spearman"] == pytest.approx(expected, abs=1e-6) and expected > 0.3
    assert record["cost"]["shipped_bytes"] == 0 and record["mask"] is None and record["weights_intact"]


@pytest.mark.parametrize(("task", "side"), [("pairs2", -1), ("other2", 1)])
def test_zero_shot_cut_is_the_best_of_99_quantiles_and_two_sides(task, side):
    """Classes are numbered by name: "alien" comes before "like", but "a like" before "b alien"."""
    job = job_of(task=task, method="zero_shot")
    outcome = zero_shot(job)
    train, labels = cosines(job, dense(), "train"), np.asarray(job.task.splits["train"]["label"])
    cut, chosen = outcome.updates[0].tolist()
    like = job.task.labels.index("like" if task == "pairs2" else "a like")
    assert chosen == (1 if like == 1 else -1) == -side
    best = max(
        max(((train > q) == labels).mean(), ((train < q) == labels).mean())
        for q in np.quantile(train, np.linspace(0.01, 0.99, 99))
    )
    ours = outcome.answer("train").argmax(1) == labels
    assert ours.mean() == pytest.approx(best, abs=1.01 / len(labels)) and best > 0.75  # a cut may lie on a row
    values = cosines(job, dense(), "validation")
    said = outcome.answer("validation")
    np.testing.assert_allclose(said, chosen * np.stack([cut - values, values - cut], axis=1), atol=1e-5)
    clear = np.abs(values - cut) > 1e-5
    assert np.array_equal(said.argmax(1)[clear], ((values > cut) == (chosen == 1)).astype(int)[clear])


def test_zero_shot_sees_no_label_but_those_of_training():
    job = job_of(task="pairs2", method="zero_shot")
    splits = dict(job.task.splits)
    for split in ("selection", "validation"):
        flipped = [1 - label for label in splits[split]["label"]]
        splits[split] = splits[split].remove_columns("label").add_column("label", flipped)
    other = zero_shot(replace(job, task=replace(job.task, splits=splits)))
    np.testing.assert_array_equal(zero_shot(job).answer("validation"), other.answer("validation"))


def test_cosines_of_zero_vectors_are_0_not_a_failure():
    job = job_of(task="values", method="zero_shot")
    with torch.no_grad():
        for parameter in job.model.encoder.parameters():
            parameter.zero_()
    assert not zero_shot(job).answer("validation").any()


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("single", r"zero_shot compares two texts, but single has one: use method='probe'"),
        ("pairs3", r"zero_shot separates two classes, but pairs3 has 3: use method='probe'"),
    ],
)
def test_zero_shot_refuses_what_it_cannot_answer(task, said):
    run = ask(task=task, method="zero_shot")
    with pytest.raises(ValueError, match=said):
        adaprune.adapt(run)
    assert not record_path(run).exists()


# ---------------------------------------------------------------- majority


@pytest.mark.parametrize("task", ["single", "pairs3", "values"])
def test_majority_says_one_thing_whatever_the_text(task):
    job = job_of(task=task, method="majority")
    logits, labels = majority(job).answer("validation"), list(job.task.splits["train"]["label"])
    assert np.ptp(logits, axis=0).max() == 0 and len(logits) == 24
    if task == "values":
        assert logits[0, 0] == pytest.approx(sum(labels) / len(labels))
    else:
        assert logits[0].argmax() == max(set(labels), key=labels.count)
        assert logits[0].tolist() == [labels.count(n) / len(labels) for n in range(job.task.num_labels)]


def test_the_record_of_majority_has_the_share_of_the_commonest_class():
    record, task = adaprune.adapt(ask(task="pairs3", method="majority")), load_task("pairs3")
    train, dev = (list(task.splits[split]["label"]) for split in ("train", "validation"))
    commonest = max(set(train), key=train.count)
    assert record["metrics"]["validation"]["accuracy"] == pytest.approx(dev.count(commonest) / len(dev))
    assert (record["cost"]["shipped_bytes"], record["cost"]["steps"], record["mask"]) == (0, 0, None)


def test_a_constant_has_no_correlation():
    metrics = adaprune.adapt(ask(task="values", method="majority"))["metrics"]["validation"]
    assert metrics == {"spearman": 0.0, "pearson": 0.0}


# ---------------------------------------------------------------- records


@pytest.mark.parametrize(
    ("task", "method", "numbers"),
    [
        ("single", "probe", 16 + 1),  # width 16: one vector and one intercept tell two classes apart
        ("pairs2", "probe", 4 * 16 + 1),
        ("pairs3", "probe", 3 * (4 * 16 + 1)),
        ("values", "probe", 4 * 16 + 1),
        ("pairs2", "zero_shot", 2),  # a cut and a side
        ("values", "zero_shot", 0),
        ("single", "majority", 0),
    ],
)
def test_what_ships_is_what_was_learned_and_nothing_else(task, method, numbers):
    run = ask(task=task, method=method)
    record = adaprune.adapt(run)
    assert record["cost"]["shipped_bytes"] == 4 * numbers
    assert record["weights_intact"] is True and record["mask"] is None and record["curve"] == []
    assert not mask_path(run).exists() and not Path("out/masks").joinpath(f"{run.name}.json").exists()


@pytest.mark.parametrize("method", ["probe", "zero_shot", "majority"])
@pytest.mark.parametrize("fields", [{"learning_rate": 0.1}, {"head_learning_rate": 0.1}, {"reach": 0.5}], ids=str)
def test_settings_that_they_do_not_read_are_refused(method, fields):
    with pytest.raises(ValueError, match="would change nothing in method"):
        adaprune.adapt(ask(task="pairs2", method=method, **fields))


# ---------------------------------------------------------------- on a finished mask


@pytest.fixture(scope="module")
def sources(place, tiny_model_dir):
    """A finished mask at 0.9 on each task, far enough from dense to tell."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for task in ("pairs3", "values"):
            made[task] = ask(task=task, method="random", sparsity=0.9, results_dir="masked")
            adaprune.adapt(made[task])
    return made


def test_a_probe_of_a_mask_reads_the_masked_encoder(sources):
    source = sources["pairs3"]
    before = {path: path.read_bytes() for path in Path("masked/masks").iterdir()}
    run = source.model_copy(update={"ablation": "probe"})
    record = adaprune.adapt(run)
    job = job_of(task="pairs3")
    expected, _ = probed(job, masked(source))
    np.testing.assert_array_equal(read_answers(paths_of(record_path(run)).answers)[0], expected.argmax(1))
    plain = adaprune.adapt(ask(task="pairs3", method="probe"))
    assert not np.allclose(expected, probed(job, dense())[0], atol=0.02)
    assert record["metrics"] != plain["metrics"]
    assert record["weights_intact"] is True
    assert record["mask"] == read_record(record_path(source))["mask"]
    assert {path: path.read_bytes() for path in Path("masked/masks").iterdir()} == before  # and no file is added
    assert record["curve"] == [] and record["cost"]["steps"] == 0


def test_zero_shot_of_a_mask_reads_the_masked_encoder(sources):
    source = sources["values"]
    before = sorted(Path("masked/masks").iterdir())
    run = source.model_copy(update={"ablation": "zero_shot"})
    record, job = adaprune.adapt(run), job_of(task="values")
    expected, whole = cosines(job, masked(source), "validation"), cosines(job, dense(), "validation")
    said = read_answers(paths_of(record_path(run)).answers)[0]
    np.testing.assert_allclose(said, expected, atol=1e-5)
    assert np.abs(expected - whole).max() > 1e-3
    truth = np.asarray(job.task.splits["validation"]["label"])
    assert record["metrics"]["validation"]["spearman"] == pytest.approx(spearman(said, truth), abs=1e-6)
    assert record["weights_intact"] is True and sorted(Path("masked/masks").iterdir()) == before


def test_without_a_mask_the_ablation_is_the_method_itself():
    """features has no mask: probing it is probing the dense encoder."""
    records = [
        adaprune.adapt(ask(task="pairs3", **f))
        for f in ({"method": "features", "ablation": "probe"}, {"method": "probe"})
    ]
    assert records[0]["metrics"] == records[1]["metrics"] and records[0]["mask"] is None


def test_noise_moves_what_a_probe_reads(sources):
    run = sources["values"].model_copy(update={"ablation": "zero_shot", "noise": 0.5})
    record = adaprune.adapt(run)
    still = adaprune.adapt(run.model_copy(update={"noise": 0.0}))
    assert record["weights_intact"] is False and record["metrics"] != still["metrics"]


@pytest.mark.parametrize("ablation", ["probe", "zero_shot"])
def test_nothing_to_start_from_is_refused(ablation):
    with pytest.raises(ValueError, match="is missing: adapt the run without ablation first"):
        adaprune.adapt(ask(task="values", method="random", sparsity=0.31, ablation=ablation))
    with pytest.raises(ValueError, match=f"ablation='{ablation}' needs a mask of the checkpoint's own weights"):
        adaprune.adapt(ask(task="values", method="finetune", ablation=ablation))


@pytest.mark.parametrize("task", ["pairs3"])
def test_zero_shot_of_a_mask_refuses_three_classes(sources, task):
    with pytest.raises(ValueError, match="zero_shot separates two classes"):
        adaprune.adapt(sources[task].model_copy(update={"ablation": "zero_shot"}))


def test_the_words_are_the_models():
    known = " ".join(SENTENCES.values()).lower()
    assert all(word in known for word in WORDS)
