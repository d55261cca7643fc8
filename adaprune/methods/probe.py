"""probe: a regression on frozen sentence vectors, which shows what the checkpoint knows without adaptation."""

import time
import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from adaprune.data import tokenize
from adaprune.runs import Method
from adaprune.training import AdaptationHead, Fit, Job, Outcome, bar, read

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression; the ridge's alpha is 1 / C
UNSEEN = -1e4  # the logit of a class that no training row has


def probe(job: Job) -> Outcome:
    """Fits a logistic (or ridge) regression on the vectors of the frozen encoder, under its mask if it has one.

        features: u of one text;   u, v, |u - v|, u v of two texts, each read separately

    where u is the checkpoint's own sentence vector (its pooling of the last layer), standardised. The strength of the
    penalty is chosen on the selection split. Uses scikit-learn; the head is not used.
    """
    start = time.monotonic()
    rows = {split: features(job, split) for split in job.task.splits}
    labels = {split: np.asarray(job.task.splits[split]["label"]) for split in job.task.splits}
    fitted = _best(job, rows, labels)
    weights = [
        torch.from_numpy(np.atleast_1d(part).astype(np.float32)) for part in (fitted[-1].coef_, fitted[-1].intercept_)
    ]
    done = Fit(seconds=time.monotonic() - start, examples=len(labels["train"]) * len(STRENGTHS))
    return Outcome(done, updates=weights, answer=lambda split: _logits(fitted, rows[split], job))


def probe_head(job: Job) -> AdaptationHead:
    """The probe of ``job`` as a linear head on the last layer, so that it can ship like any other.

        V = W / sigma,   c = b - W (mu / sigma)      with mean mu and spread sigma of the standardisation

    The head's mixture is 1 for the last layer and 0 for the others. A probe of pairs reads 4 width numbers (see
    `probe`), which no encoder returns at once: `of_pairs` recognises such heads.
    """
    rows = {split: features(job, split) for split in ("train", "selection")}
    labels = {split: np.asarray(job.task.splits[split]["label"]) for split in rows}
    scale, regression = _best(job, rows, labels)
    weight, bias = np.atleast_2d(regression.coef_), np.atleast_1d(regression.intercept_)
    classes = getattr(regression, "classes_", np.array([0]))
    if len(classes) == 2:  # scikit-learn keeps one row: the log odds of the second class
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    weight = weight / scale.scale_
    bias = bias - weight @ scale.mean_
    layers = job.model.config.num_hidden_layers
    head = AdaptationHead(layers, weight.shape[1], job.task.num_labels, "linear", job.model.head.pooling)
    with torch.no_grad():
        head.mix.copy_(torch.tensor([UNSEEN] * (layers - 1) + [0.0]))  # exp(UNSEEN) is 0
        head.output.weight.zero_()
        head.output.bias.fill_(UNSEEN)
        head.output.weight[classes] = torch.from_numpy(weight).float()
        head.output.bias[classes] = torch.from_numpy(bias).float()
    return head


def of_pairs(tensors: Mapping[str, Tensor], width: int, pooling: str) -> AdaptationHead | None:
    """The head with these tensors if it is a probe that reads pairs (4 ``width`` numbers), else None."""
    if tensors["output.weight"].shape[1] != 4 * width or "hidden.weight" in tensors:
        return None
    head = AdaptationHead(len(tensors["mix"]), 4 * width, len(tensors["output.weight"]), "linear", pooling)
    head.load_state_dict(dict(tensors))
    return head


def _best(job: Job, rows: dict[str, np.ndarray], labels: dict[str, np.ndarray]):
    """The regression whose penalty is best on the selection split."""
    fitted, best = None, -np.inf
    for strength in bar(STRENGTHS, desc="probe", unit="strength", leave=False):
        tried = _fit(rows["train"], labels["train"], strength, bool(job.task.labels))
        found = job.task.metrics(_logits(tried, rows["selection"], job), labels["selection"])[job.task.primary]
        if fitted is None or found > best:
            fitted, best = tried, found
    return fitted


def features(job: Job, split: str) -> np.ndarray:
    """The features that a probe reads: (rows, width), or (rows, 4 width) for pairs."""
    vectors = text_vectors(job, split)
    if len(vectors) == 1:
        return vectors[0]
    u, v = vectors
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)


def text_vectors(job: Job, split: str) -> list[np.ndarray]:
    """The sentence vectors of a split's texts, (rows, width) per column; columns of texts are read separately."""
    found, data = [], job.task.splits[split]
    texts = [name for name in ("text", "text_pair") if name in data.column_names]
    for name in texts:
        column = data.select_columns([name, "label"]).rename_columns({name: "text"} if name != "text" else {})
        tokens = tokenize(column, job.sentences.tokenizer, job.run.max_length)
        sentences = replace(job.sentences, splits={split: tokens})
        found.append(read(job.model.encoder, job.model.head.pooling, sentences, split, job.settings, last=True))
    return found


def _fit(rows: np.ndarray, labels: np.ndarray, strength: float, classes: bool):
    """Standardisation and regression as one pipeline."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=strength, max_iter=500) if classes else Ridge(alpha=1 / strength)
    with warnings.catch_warnings():  # more digits would not change any answer
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(StandardScaler(), regression).fit(rows, labels)


def _logits(fitted, rows: np.ndarray, job: Job) -> np.ndarray:
    """(rows, outputs), even if training has only some of the classes."""
    if not job.task.labels:
        return fitted.predict(rows).reshape(-1, 1)
    logits = np.full((len(rows), job.task.num_labels), UNSEEN)
    logits[:, fitted.classes_] = fitted.predict_log_proba(rows).clip(UNSEEN / 2)
    return logits


PROBE = Method(
    probe, line="a regression on the frozen encoder's sentence vectors, the head unused", mask=False, reads=(),
    colour="#63558B", marker="|",
)  # fmt: skip
