"""What a run says of each dev row: exact round trips, damaged and foreign files, and what adapt() writes."""

import io
import pickle
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

import adaprune
from adaprune.data.metrics import score
from adaprune.data.resampling import RESAMPLES, resampled
from adaprune.data.tasks import load_task
from adaprune.runs import answers as module
from adaprune.runs.answers import read_answers, write_answers
from adaprune.runs.paths import paths_of, record_path
from adaprune.runs.run import Run


def task_of(labels, classes, metric="accuracy"):
    """As much of a task as answers need."""
    return SimpleNamespace(
        splits={"train": None, "validation": {"label": labels}, "validation_mismatched": {"label": labels[:1]}},
        labels=[f"class{n}" for n in range(classes)] if classes > 1 else [],
        num_labels=classes,
        primary=metric,
        metrics=lambda said, true: {"other": -1.0, **score((metric,), said, true, classes)},
    )


@pytest.fixture
def written(tmp_path):
    """A file of 40 rows in three classes, its logits and labels."""
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(40, 3)), generator.integers(3, size=40)
    path = tmp_path / "out" / "answers" / "run.npz"
    write_answers(path, logits, task_of(labels, 3))
    return path, logits, labels


# ---------------------------------------------------------------- round trips


def test_classes_are_read_as_they_were_said(written):
    path, logits, labels = written
    answers, samples = read_answers(path)
    assert answers.dtype == np.uint8 and answers.tolist() == [int(row.argmax()) for row in logits]
    assert samples.dtype == np.float32 and samples.shape == (RESAMPLES,)
    by_hand = resampled(lambda s, t: float((s.argmax(1) == t).mean()), logits, labels)
    np.testing.assert_array_equal(samples, by_hand)
    assert [file.name for file in path.parent.iterdir()] == ["run.npz"]  # and nothing half-written


@pytest.mark.parametrize(("classes", "kind"), [(2, np.uint8), (256, np.uint8), (257, np.uint16), (1000, np.uint16)])
def test_the_last_of_many_classes_is_not_folded(tmp_path, classes, kind):
    logits = np.zeros((classes, classes), dtype=np.float32)
    np.fill_diagonal(logits, 1.0)
    write_answers(tmp_path / "a.npz", logits, task_of(np.arange(classes), classes))
    answers, samples = read_answers(tmp_path / "a.npz")
    assert answers.dtype == kind and answers.tolist() == list(range(classes)) and (samples == 1).all()


@pytest.mark.parametrize("shape", [(30,), (30, 1)])
def test_values_of_a_regression_are_read_as_float32(tmp_path, shape):
    values = np.random.default_rng(1).normal(size=shape)
    labels = values.reshape(-1) + np.random.default_rng(2).normal(size=30)
    write_answers(tmp_path / "a.npz", values, task_of(labels, 1, "pearson"))
    answers, samples = read_answers(tmp_path / "a.npz")
    assert answers.dtype == np.float32 and answers.shape == (30,)
    np.testing.assert_array_equal(answers, values.reshape(-1).astype(np.float32))
    by_hand = resampled(lambda s, t: np.corrcoef(s.reshape(-1), t)[0, 1], values, labels)
    np.testing.assert_allclose(samples, by_hand, rtol=1e-5)


def test_two_runs_on_the_same_rows_can_be_paired(tmp_path):
    """The samples of a run that is right on one row more are never below the other's."""
    labels = np.arange(50) % 2
    first = np.eye(2)[np.where(np.arange(50) < 30, labels, 1 - labels)]
    second = first.copy()
    second[40] = second[40][::-1]
    scores = []
    for name, logits in (("a", first), ("b", second)):
        write_answers(tmp_path / f"{name}.npz", logits, task_of(labels, 2))
        scores.append(read_answers(tmp_path / f"{name}.npz")[1])
    assert (scores[1] >= scores[0]).all() and 0 < (scores[1] > scores[0]).mean() < 1
    assert float((scores[1] - scores[0]).mean()) == pytest.approx(1 / 50, rel=0.2)


def test_the_labels_of_the_data_are_not_in_the_file(written, tmp_path):
    """Two members, of which the answers are the same whatever is true, and no class name, text or row of labels."""
    path, logits, labels = written
    with zipfile.ZipFile(path) as file:
        assert sorted(file.namelist()) == ["answers.npy", "resampled.npy"]
        content = b"".join(file.read(name) for name in file.namelist())
    assert b"class" not in content and labels.astype(np.uint8).tobytes() not in content
    assert labels.astype(np.int64).tobytes() not in content
    write_answers(tmp_path / "other.npz", logits, task_of((labels + 1) % 3, 3))
    (answers, samples), (same, others) = read_answers(path), read_answers(tmp_path / "other.npz")
    assert np.array_equal(answers, same) and not np.array_equal(samples, others)


def test_writing_again_replaces_and_a_failure_leaves_the_old_file(written, monkeypatch):
    path, logits, labels = written
    write_answers(path, -logits, task_of(labels, 3))
    before = path.read_bytes()
    assert read_answers(path)[0].tolist() == [int(row.argmin()) for row in logits]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_answers(path, logits, task_of(labels, 3))
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


# ---------------------------------------------------------------- damaged and foreign files


def refused(path):
    """The file is refused by a ValueError that names it and says what to do."""
    with pytest.raises(ValueError) as refusal:
        read_answers(path)
    assert str(path) in str(refusal.value)
    return True


def test_no_file_is_another_matter(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_answers(tmp_path / "none.npz")


def test_a_file_cut_off_anywhere_is_refused(written):
    path, whole = written[0], written[0].read_bytes()
    for size in [*range(0, 60), *range(60, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert refused(path), size


def test_one_flipped_bit_is_refused_or_changes_nothing(written):
    path, whole = written[0], written[0].read_bytes()
    answers, samples = read_answers(path)
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = read_answers(path)
        except ValueError as error:
            assert str(path) in str(error), place
            continue
        assert np.array_equal(found[0], answers) and np.array_equal(found[1], samples), place


class Boom:
    """Raises where it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def npy(array):
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


ANSWERS, SAMPLES = np.zeros(4, np.uint8), np.zeros(RESAMPLES, np.float32)
FOREIGN = {
    "empty": b"",
    "text": b"answers,resampled\n1,2\n",
    "a json": b'{"answers": [1]}',
    "a pickle": pickle.dumps({"answers": ANSWERS, "resampled": SAMPLES}),
    "a hostile pickle": pickle.dumps(Boom()),
    "one array": npy(SAMPLES),
    "one array of objects": npy(np.array([Boom()], dtype=object)),
    "pickled answers": npz(answers=np.array([Boom()] * 4, dtype=object), resampled=SAMPLES),
    "pickled samples": npz(answers=ANSWERS, resampled=np.array([Boom()] * RESAMPLES, dtype=object)),
    "another archive": npz(weights=SAMPLES),
    "no samples": npz(answers=ANSWERS),
    "no answers": npz(resampled=SAMPLES),
    "other numbers of samples": npz(answers=ANSWERS, resampled=SAMPLES[:-1]),
    "samples that are no scores": npz(answers=ANSWERS, resampled=SAMPLES.astype("S3")),
    "a sample that is no number": npz(answers=ANSWERS, resampled=np.full(RESAMPLES, np.nan, np.float32)),
    "logits": npz(answers=np.zeros((4, 2), np.float32), resampled=SAMPLES),
    "answers as text": npz(answers=np.array(["good"] * 4), resampled=SAMPLES),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused_by_name(tmp_path, kind):
    path = tmp_path / "foreign.npz"
    path.write_bytes(FOREIGN[kind])
    assert refused(path)


def test_an_archive_of_no_arrays_is_refused(tmp_path):
    path = tmp_path / "archive.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("answers.npy", "not an array")
        file.writestr("resampled", "neither")
    assert refused(path)


def test_a_folder_and_a_huge_file_are_not_read(tmp_path, monkeypatch, written):
    (tmp_path / "folder.npz").mkdir()
    assert refused(tmp_path / "folder.npz")
    monkeypatch.setattr(module, "LARGEST", 100)
    assert refused(written[0])


# ---------------------------------------------------------------- what runs write


@pytest.fixture
def ask(ten_sentences, tiny_model_dir, tmp_path, monkeypatch):
    """A small run, by short paths; ``task`` is "ten_sentences", "stars" (a regression) or "pairs" (of two texts)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny_model_dir)
    words = ["a fine film", "dull", "funny", "flat", "superb cast", "I yawned", "skip it", "warm"]
    for name, head, line in (
        ("stars", "text,label", lambda n: f"{words[n]},{0.3 * n - 1}"),
        ("pairs", "text,text_pair,label", lambda n: f"{words[n]},{words[n // 2]},{('no', 'perhaps', 'yes')[n % 3]}"),
    ):
        (tmp_path / name).mkdir()
        rows = [line(n) for n in range(8)]
        (tmp_path / name / "train.csv").write_text("\n".join([head, *rows, *rows, *rows]) + "\n")
        (tmp_path / name / "validation.csv").write_text("\n".join([head, *(f"the {row}" for row in rows[1:])]) + "\n")
    small = {"max_length": 16, "batch_size": 4, "epochs": 1, "results_dir": "out", "model": "tiny"}
    return lambda **fields: Run(**{"task": ten_sentences.name, **small, **fields})


@pytest.mark.parametrize(
    ("task", "method"),
    [("ten_sentences", "adaprune"), ("stars", "adaprune"), ("pairs", "adaprune"), ("ten_sentences", "finetune"),
     ("stars", "probe"), ("pairs", "probe"), ("pairs", "majority")],
)  # fmt: skip
def test_every_kind_of_task_leaves_answers_that_give_the_recorded_score(all_public, ask, task, method):
    run = ask(task=task, method=method)
    record = adaprune.adapt(run)
    answers, samples = read_answers(paths_of(record_path(run)).answers)
    data = load_task(run.task)
    labels = np.asarray(data.splits["validation"]["label"])
    assert len(answers) == len(labels) and samples.shape == (RESAMPLES,)
    logits = np.eye(data.num_labels)[answers] if data.labels else answers
    metrics, primary = record["metrics"]["validation"], data.primary
    assert data.metrics(logits, labels)[primary] == pytest.approx(metrics[primary], abs=1e-6)
    by_hand = resampled(lambda said, true: data.metrics(said, true)[primary], logits, labels)
    np.testing.assert_allclose(samples, by_hand, atol=1e-6)
    assert answers.dtype == (np.uint8 if data.labels else np.float32)


def test_of_a_file_of_ones_own_no_scores_on_samples_are_left(ask):
    """They are 300 equations in four labels."""
    run = ask()
    adaprune.adapt(run)
    answers, scores = read_answers(paths_of(record_path(run)).answers)
    assert (answers.shape, scores.shape) == ((4,), (0,))


def test_a_finished_run_is_not_answered_again(ask):
    run = ask()
    adaprune.adapt(run)
    path = paths_of(record_path(run)).answers
    before = path.stat().st_mtime_ns
    adaprune.adapt(run)
    assert path.stat().st_mtime_ns == before


def test_answers_are_no_records(ask):
    """`table` reads what lies in the results folder: the answers do not disturb it."""
    adaprune.adapt(ask())
    assert len(adaprune.table("out")) == 1
