"""The tasks: data sets with their splits, and the official metrics.

`load_task` gives every run of a task the same splits, whatever the run's seed: `train`, `selection` (held out
from train, to choose epochs and hyper-parameters) and `validation` (the dev split, which is only reported).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adaprune.data.datafiles import SPLIT_SEED, hold_out, read_own, select
from adaprune.data.labels import unlike
from adaprune.data.metrics import metrics_of_own, score
from adaprune.data.movie_reviews import CLEAR_RATING, fetch_movie_reviews
from adaprune.data.places import expanded
from adaprune.data.tables import SUFFIXES, Rows, read_parquet

if TYPE_CHECKING:  # both take seconds to load, and only training needs them
    import datasets
    from transformers import PreTrainedTokenizerBase

HUB_ID = "nyu-mll/glue"
VALIDATION_FRACTION = 0.1  # for tasks without a validation split
SELECTION_FRACTION = 0.1


class GlueTask(NamedTuple):
    """The specifics of one GLUE task, in the hub's column and label names."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]  # by class number; empty = regression
    metrics: tuple[str, ...]  # the official ones; the first is the primary


# MRPC and QQP have two official metrics. Accuracy is the primary of both: a constant "yes" already has an F1
# of 0.81 on MRPC's dev split, which hides a collapsed mask. STS-B's is Spearman, which the paper reports.
GLUE = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
    "sst2": GlueTask(("sentence",), ("negative", "positive"), ("accuracy",)),
    "mrpc": GlueTask(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "stsb": GlueTask(("sentence1", "sentence2"), (), ("spearman", "pearson")),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": GlueTask(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",)),
    "qnli": GlueTask(("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",)),
    "rte": GlueTask(("sentence1", "sentence2"), ("entailment", "not_entailment"), ("accuracy",)),
    "wnli": GlueTask(("sentence1", "sentence2"), ("not_entailment", "entailment"), ("accuracy",)),
}
KNOWN_TASKS = (*GLUE, "movie_reviews", "movie_ratings")


@dataclass(frozen=True)
class TaskData:
    """A task ready for use.

    `splits` has `train`, `selection`, `validation` (and `validation_mismatched` for MNLI, if available),
    each with the columns text, text_pair (only for tasks on pairs) and label (int64 class numbers, or float32).
    `labels` are the class names by number, empty for a regression, whose `num_labels` is 1. `fingerprint` is
    the sha256 over every row of every split, and over the class names.
    """

    name: str
    labels: list[str]
    num_labels: int
    primary: str
    metric_names: tuple[str, ...]
    splits: dict[str, datasets.Dataset]
    fingerprint: str

    def metrics(self, predictions, labels, split: str = "validation") -> dict[str, float]:
        """The task's metrics on raw logits.

        F1 is that of class 1. A correlation with a constant, on either side, is undefined and given as 0.0.

        Args:
            predictions: logits (n, num_labels); for a regression values (n,) or (n, 1). Array or tensor.
            labels: class numbers or values (n,), n >= 1.
            split: for `validation_mismatched`, the metrics' names end in `_mismatched`.

        Raises:
            ValueError: shapes that do not fit, or predictions that are not finite.
        """
        values = score(self.metric_names, predictions, labels, self.num_labels)
        ending = "_mismatched" if split == "validation_mismatched" else ""
        return {name + ending: value for name, value in values.items()}


def load_task(task: str, data_dir: str | os.PathLike = "", max_train_examples: int = 0) -> TaskData:
    """The task's splits and metrics.

    Args:
        task: one of `KNOWN_TASKS`, or the path of the user's own file or folder (see `datafiles.read_own`).
        data_dir: for GLUE, the folder with `<task>/train.parquet` and so on; empty = the hub.
        max_train_examples: use only this many rows of train, before anything is held out; 0 = all. They are the first
            ones. If your own file is sorted by label, even nearly, or its first rows lack a class, they are drawn from
            all rows, with a warning. The draw does not depend on the run's seed.

    Raises:
        OSError: a file is missing, which is named, or data cannot be downloaded.
        ValueError: an unknown task, or invalid data; names the place and the remedy.
    """
    if max_train_examples < 0 or max_train_examples == 1:
        raise ValueError(f"max_train_examples must be 0 (all) or at least 2, got {max_train_examples}")
    rows, labels, metric_names = _read_task(str(task), data_dir)
    train = _first(rows["train"], max_train_examples, task)
    train, selection = hold_out(train, SELECTION_FRACTION, train["label"] if labels else None)
    _refuse_lacking(train["label"], labels, task)
    rows = {**rows, "train": train, "selection": selection}
    splits = {split: _to_dataset(columns, bool(labels)) for split, columns in rows.items()}
    return TaskData(
        name=str(task),
        labels=labels,
        num_labels=len(labels) or 1,
        primary=metric_names[0],
        metric_names=metric_names,
        splits=splits,
        fingerprint=_fingerprint(labels, splits),
    )


def is_users(task: str, data_dir: str | os.PathLike = "") -> bool:
    """Whether `load_task` reads files of the user's, which can change (the movie sentences cannot), and no network."""
    return bool(data_dir) if task in GLUE else task not in KNOWN_TASKS and expanded(task).exists()


def _first(train: Rows, count: int, task: str) -> Rows:
    """The first ``count`` rows (0 = all), or as many drawn from all if the first ones of a user's file mislead."""
    labels, rows = train["label"], len(train["label"])
    if not 0 < count < rows:
        return train
    first = {column: values[:count] for column, values in train.items()}
    if task in KNOWN_TASKS:
        return first
    classes = not isinstance(labels[0], float)
    changes = sum(one != other for one, other in pairwise(labels))
    is_sorted = labels in (sorted(labels), sorted(labels, reverse=True)) or (classes and changes < len(set(labels)))
    if is_sorted:
        why = "are sorted by label"
    elif classes and set(first["label"]) != set(labels):
        why = f"lack a class among the first {count}"
    elif unlike(labels[:count], labels[count:]):
        why = f"are not in random order (labels of the first {count} are unlike those of the rest)"
    else:
        return first
    drawn = set(np.random.RandomState(SPLIT_SEED).permutation(rows)[:count].tolist())
    warnings.warn(f"{task}: the training rows {why}: {count} of the {rows} are drawn at random instead", stacklevel=3)
    return select(train, [row in drawn for row in range(rows)])


def _refuse_lacking(used: list, labels: list[str], task: str) -> None:
    """ValueError if the training rows in use have only one label, or lack one of the task's classes."""
    present = set(used)
    if len(present) < 2:
        raise ValueError(
            f"{task}: the {len(used)} training rows in use all have one label; "
            "raise max_train_examples (0 = all), or give more rows or shuffle them"
        )
    if lacking := [label for number, label in enumerate(labels) if number not in present]:
        raise ValueError(
            f"{task}: the {len(used)} training rows in use have none of class {', '.join(lacking[:5])}; "
            "raise max_train_examples (0 = all), or give more rows of it"
        )


def tokenize(dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> datasets.Dataset:
    """The split as input_ids, attention_mask, token_type_ids if the tokenizer has them, labels and length.

    Texts are cut at `max_length` tokens in total (for pairs, the longer text first). Nothing is padded here; batches
    are padded later. The result is kept in memory, without a cache file.
    """
    import datasets

    texts = [name for name in ("text", "text_pair") if name in dataset.column_names]

    def encode(batch: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(*(batch[name] for name in texts), truncation=True, max_length=max_length)
        return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]]}

    has_bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()  # bars for small splits would bury the training bar
    try:
        return dataset.rename_column("label", "labels").map(
            encode,
            batched=True,
            remove_columns=texts,
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint=f"{dataset._fingerprint}-{max_length}",  # else the tokenizer gets hashed
        )
    finally:
        if has_bars:
            datasets.enable_progress_bars()


def _read_task(task: str, data_dir: str | os.PathLike) -> tuple[dict[str, Rows], list[str], tuple[str, ...]]:
    """The rows of each split but `selection`, the class names and the metrics, the primary first."""
    if task in GLUE:
        return _read_glue(task, data_dir), list(GLUE[task].labels), GLUE[task].metrics
    if task in KNOWN_TASKS:
        return _read_movies(task)
    check_name(task)
    train, validation, labels = read_own(expanded(task))
    if validation is None:
        train, validation = hold_out(train, VALIDATION_FRACTION, train["label"] if labels else None)
    return {"train": train, "validation": validation}, labels, metrics_of_own(bool(labels))


def check_name(task: str) -> None:
    """ValueError if ``task`` is no known name, no file or folder that is there, and does not look like a path."""
    path = expanded(task)
    if task not in KNOWN_TASKS and not path.exists() and not path.suffix and path.name == task:
        near = difflib.get_close_matches(task.lower(), KNOWN_TASKS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"unknown task {task!r}{hint}; choose one of {', '.join(KNOWN_TASKS)}, or give the path of a "
            f"{', '.join(SUFFIXES)} file or of a folder with train.* and validation.*"
        )


def _read_glue(task: str, data_dir: str | os.PathLike) -> dict[str, Rows]:
    """The rows of a GLUE task's labelled splits, from `data_dir` or else from the hub."""
    names, folder = {"train": "train", "validation": "validation"}, expanded(data_dir or ".") / task
    if task == "mnli":
        names = {"train": "train", "validation": "validation_matched"}
        mismatched = "validation_mismatched"
        if not data_dir or (folder / f"{mismatched}.parquet").is_file():
            names[mismatched] = mismatched
    columns = (*GLUE[task].columns, "label")
    if data_dir:
        files = {split: folder / f"{name}.parquet" for split, name in names.items()}
        tables = {split: read_parquet(file, columns) for split, file in files.items()}
        places = {split: str(file) for split, file in files.items()}
    else:
        import datasets

        try:
            hub = datasets.load_dataset(HUB_ID, task)
        except Exception as error:  # the remedy is the same for every error of the hub's client
            raise OSError(
                f"cannot load {task} from the hub's {HUB_ID} ({error}); go online, or pass data_dir, a "
                f"folder with {', '.join(f'{task}/{name}.parquet' for name in names.values())}"
            ) from error
        tables = {split: hub[name].select_columns(list(columns)).to_dict() for split, name in names.items()}
        places = {split: f"{HUB_ID} {task}/{name}" for split, name in names.items()}
    return {split: _checked_glue(table, task, places[split]) for split, table in tables.items()}


def _checked_glue(table: Rows, task: str, place: str) -> Rows:
    """The table in our column names, after checking its texts and label codes."""
    source = (*GLUE[task].columns, "label")
    kind, codes = (int, range(len(GLUE[task].labels))) if GLUE[task].labels else (float, None)
    for row, values in enumerate(zip(*(table[name] for name in source), strict=True), 1):
        *texts, label = values
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{place}: row {row}: a text is null or not a string; get the file anew")
        if type(label) is not kind or not (label in codes if codes else np.isfinite(label)):
            wanted = f"one of {', '.join(map(str, codes))}" if codes else "a finite float"
            raise ValueError(f"{place}: row {row}: label {label!r}, expected {wanted}; is this a test split?")
    if not table["label"]:
        raise ValueError(f"{place}: holds no rows; get the file anew")
    names = (*("text", "text_pair")[: len(source) - 1], "label")
    return {ours: table[theirs] for ours, theirs in zip(names, source, strict=True)}


def _read_movies(task: str) -> tuple[dict[str, Rows], list[str], tuple[str, ...]]:
    """The movie sentences, shuffled (the source is sorted by class); both tasks use the same validation sentences."""
    table = read_parquet(fetch_movie_reviews(), ("text", "rating"))
    order = np.random.RandomState(SPLIT_SEED).permutation(len(table["text"]))
    rows = {"text": [table["text"][i] for i in order], "label": [table["rating"][i] for i in order]}
    signs = [(rating >= CLEAR_RATING) - (rating <= -CLEAR_RATING) for rating in rows["label"]]
    splits = dict(zip(("train", "validation"), hold_out(rows, VALIDATION_FRACTION, signs), strict=True))
    if task == "movie_ratings":
        return splits, [], metrics_of_own(classes=False)
    for split, rows in splits.items():
        clear = select(rows, [abs(rating) >= CLEAR_RATING for rating in rows["label"]])
        splits[split] = {"text": clear["text"], "label": [int(rating > 0) for rating in clear["label"]]}
    return splits, ["negative", "positive"], ("accuracy",)


def _to_dataset(rows: Rows, has_classes: bool) -> datasets.Dataset:
    import datasets

    features = {name: datasets.Value("string") for name in rows if name != "label"}
    features["label"] = datasets.Value("int64" if has_classes else "float32")
    return datasets.Dataset.from_dict({name: rows[name] for name in features}, datasets.Features(features))


def _fingerprint(labels: list[str], splits: dict[str, datasets.Dataset]) -> str:
    digest = hashlib.sha256(json.dumps(labels).encode())
    for split in sorted(splits):
        digest.update(json.dumps([split, splits[split].to_dict()], sort_keys=True).encode())
    return digest.hexdigest()
