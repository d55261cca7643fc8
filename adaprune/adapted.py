"""A task that is ready to use: the masked base model, its head and its tokenizer. `fit` returns this."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from adaprune.data import expanded
from adaprune.data.datafiles import says_nothing
from adaprune.data.labels import refuse_surrogates
from adaprune.data.metrics import CORRELATIONS, metrics_of_own, score
from adaprune.deploy import (
    Mask,
    apply_mask,
    base_of,
    check_base,
    check_files,
    compact,
    export,
    find_mask,
    front_matter,
    load_mask,
    push,
    read_as,
    serve_in_pipelines,
    set_runtime,
    whole_file,
)
from adaprune.given import is_pair, number_of, rows_to_judge, texts_of
from adaprune.methods import of_pairs
from adaprune.runs import write_bytes
from adaprune.training import AdaptedModel, Encoder, bar, load_encoder, pooled

FILES = {"mask.safetensors": b'"adaprune"', "card.json": b'"file_sha256"', "README.md": b"library_name: adaprune"}


class Adapted(nn.Module):
    """A model adapted to a task: texts in, labels out.

    ``transformers.pipeline("text-classification", model=adapted)`` works without further steps. ``card`` is the mask's
    card; ``mask_path`` the file it was read from; ``record`` the run's record, or None if it was not trained here.

    Args:
        mask: from `load_mask`.
        base: the model that the mask was made for, which is changed: its masked weights become 0.
        mask_path: where the mask was read from.
        record: the record of the run that made it.
        said: the findings of `fit`, for the README of `save_pretrained`.
    """

    input_modalities = ("text",)  # pipelines print these two attributes of a model
    can_generate = staticmethod(lambda: False)

    def __init__(self, mask: Mask, base: Encoder, mask_path: Path, record: dict | None = None, said: str = ""):
        super().__init__()
        for given, kind, maker in ((mask, Mask, "load_mask"), (base, Encoder, "load_encoder")):
            if not isinstance(given, kind):
                raise TypeError(f"Adapted needs what {maker} returns, got {type(given).__name__}")
        self.tokenizer, self.base, self.card = base.tokenizer, base, mask.card
        self.mask_path, self.record, self.said = Path(mask_path), record, said
        self.labels: list[str] = mask.card["labels"]
        self.columns, length = read_as(mask.card)
        self.max_length = min(length, base.tokenizer.model_max_length)
        if (head := of_pairs(mask.head, base.model.config.hidden_size, mask.card.get("pooling", "cls"))) is not None:
            check_base(base.model, mask)  # a probe's mask keeps everything, so nothing is applied
            self.model = AdaptedModel(base.model, head).eval()
        else:
            self.model = apply_mask(base.model, mask)
        check_files(base, mask.card)
        self.pairs_apart = head is not None
        AdaptedModel.name_labels(self.config, self.labels)
        serve_in_pipelines()

    config = property(lambda self: self.model.config)
    device = property(lambda self: next(self.parameters()).device)
    dtype = property(lambda self: next(self.parameters()).dtype)

    @classmethod
    def from_pretrained(cls, name: str | Path, base: str | None = None, revision: str | None = None) -> Adapted:
        """Loads what `save_pretrained` or `push_to_hub` stored, onto the base model that its card names.

        Args:
            name: the folder, a mask file, a name from the `zoo`, or a hub repository.
            base: where the base model is, instead of the card's name: a name or folder. It must be exactly the same
                model. For a base in a local folder, cards have only the last part of the path.
            revision: the revision of the hub repository.

        Raises:
            FileNotFoundError: no such folder, file or repository.
            ValueError: a damaged file, another base model, or a card that names none.
            OSError: the base model cannot be reached.
        """
        path = find_mask(name, revision)
        mask = load_mask(path)
        try:
            encoder = load_encoder(*((base, None) if base else base_of(mask.card, path)))
        except OSError as error:
            raise OSError(f"the base model of {name}: {error} Where it is a folder, give base=PATH.") from error
        return cls(mask, encoder, path)

    @torch.no_grad()
    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """Logits of tokenised texts, shape (batch, outputs).

        Raises:
            ValueError: a probe of pairs, which reads each text separately: use `predict`.
        """
        if self.pairs_apart:
            raise ValueError("a probe of text pairs reads each text on its own: use predict([(text, text_pair), ...])")
        return self.model(**inputs)

    @torch.no_grad()
    def predict(self, texts: str | Iterable, return_scores: bool = False, batch_size: int = 64) -> Any:
        """The label of each text or, for a regression, its value.

        Args:
            texts: texts, or pairs of texts if the task reads pairs; a frame or `datasets.Dataset` with the columns
                text, (text_pair). A single text gives a single answer.
            return_scores: also return the probabilities by label for each text.
            batch_size: number of texts in a batch, at least 1.

        Returns:
            A list of labels or values; with ``return_scores``, that list and a list of ``{label: probability}``.

        Raises:
            ValueError: something that is not a text, an empty text, or a pair if the task reads single texts, or the
                reverse.
            TypeError: something that holds no texts.
        """
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        alone = isinstance(texts, str) or (isinstance(texts, tuple) and is_pair(texts) and len(self.columns) == 2)
        rows = self._checked([texts] if alone else texts_of(texts))
        logits = self._logits(rows, batch_size)
        if self.labels:
            answers = [self.labels[number] for number in logits.argmax(1).tolist()]
            scores = [dict(zip(self.labels, row, strict=True)) for row in logits.softmax(1).tolist()]
        else:
            answers = logits[:, 0].tolist()
            scores = [{"score": value} for value in answers]
        if alone:
            answers, scores = answers[0], scores[0]
        return (answers, scores) if return_scores else answers

    def evaluate(self, data: Any, labels: Sequence | None = None, data_dir: str = "") -> dict[str, float]:
        """The task's metrics on any data that `fit` accepts; for a folder or a named task, on its validation split.

        Raises:
            ValueError: a label that the model does not know, or invalid data.
            FileNotFoundError: no such file.
        """
        file = expanded(data) if isinstance(data, (str, Path)) else None
        if file and file.is_file() and file.name == Path(self.card.get("task", "")).name:
            warnings.warn(
                f"{data} has the name of the file that this model was fitted to: on rows that it has learned, scores "
                "are too good (its card has those on dev rows)",
                stacklevel=2,
            )
        rows = rows_to_judge(data, labels, data_dir, self.labels)
        place = f"{data}: " if isinstance(data, (str, Path)) and labels is None else ""
        truth = [number_of(label, self.labels, row, place) for row, label in enumerate(rows["label"], 1)]
        names = ("text", "text_pair") if "text_pair" in rows else ("text",)
        texts = list(zip(*(rows[name] for name in names), strict=True)) if len(names) == 2 else rows["text"]
        known = self._scores() or metrics_of_own(bool(self.labels))
        metrics = tuple(name for name in known if not name.endswith("_mismatched"))
        if len(set(truth)) < 2 and CORRELATIONS.intersection(metrics):
            one = rows["label"][0]
            warnings.warn(
                f"{place}all labels are {one!r}: a correlation with them is undefined, said as 0", stacklevel=2
            )
        return score(metrics, self._logits(self._checked(texts)), np.array(truth), len(self.labels) or 1)

    def compact(self, runtime: str = "dense") -> Adapted:
        """Removes the heads, units and neurons that the mask leaves on no path; returns this model, now smaller.

        Answers stay the same, up to the order of sums. `save_pretrained` still writes the mask.

        Args:
            runtime: how the rest is computed: ``dense``, ``sparse``, or ``auto``, the faster of the two for each matrix
                on this machine (see `runtime.set_runtime`).

        Raises:
            ValueError: already compact, a model family that `runtime.compact` does not support, or another runtime.
        """
        self.model = set_runtime(compact(self.model), runtime)
        self.base = replace(self.base, model=self.model.encoder)  # frees the dense weights
        return self

    def export(self, path: str | Path) -> Path:
        """Writes the compacted model as an ONNX file; inputs and errors are those of `runtime.export`."""
        if self.pairs_apart:
            raise ValueError("a probe of text pairs reads each text on its own, which is no single ONNX graph")
        return export(self.model, path)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes mask.safetensors, card.json and README.md into ``folder``; the base model is only named.

        Raises:
            FileExistsError: a file with one of these names is not adaprune's. Nothing has then been written.
            ValueError: the mask file from which this was loaded has changed since.
            OSError: the folder cannot be written, or that mask file is no longer there.
        """
        folder = check_folder(folder)
        (content, card), text = whole_file(self.mask_path, self.base.id, self.card), self._readme().encode()
        card = {**card, "file_sha256": hashlib.sha256(content).hexdigest()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "card.json").unlink(missing_ok=True)  # so that a card is never next to another mask
            write_bytes(folder / "mask.safetensors", content)
            write_bytes(folder / "card.json", json.dumps(card, indent=1).encode() + b"\n")
            write_bytes(folder / "README.md", text)
        except OSError as error:
            raise OSError(f"cannot write {folder} ({error.strerror or error}): make room or choose another") from error

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Uploads what `save_pretrained` writes to a hub repository, which is made if needed; returns its address."""
        return push(self.save_pretrained, repo_id, private, token)

    def _checked(self, rows: list) -> list[tuple[str, ...]]:
        """Each row as a tuple of texts."""
        wanted = len(self.columns) or (2 if rows and is_pair(rows[0]) else 1)
        for number, row in enumerate(rows, 1):
            if not (is_pair(row) if wanted == 2 else isinstance(row, str)):
                kind = "a pair of texts (text, text_pair)" if wanted == 2 else "a text"
                raise ValueError(f"row {number}: this task reads {kind}, got {str(row)[:80]!r} ({type(row).__name__})")
        rows = [tuple(row) if wanted == 2 else (row,) for row in rows]
        for number, row in enumerate(rows, 1):
            refuse_surrogates("".join(row), f"row {number}: ")
            if any(map(says_nothing, row)):
                raise ValueError(f"row {number}: the text is empty; write one or leave it out")
        return rows

    @torch.no_grad()
    def _logits(self, rows: list[tuple[str, ...]], batch_size: int = 64) -> Tensor:
        """(rows, outputs) on the CPU; batches contain texts of similar length."""
        logits = torch.zeros(len(rows), self.model.head.output.out_features)
        order = sorted(range(len(rows)), key=lambda row: sum(map(len, rows[row])))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        read = self._read_apart if self.pairs_apart else self._read
        for batch in bar(batches, desc="predicting", unit="batch", leave=False, disable=len(batches) < 10):
            logits[batch] = read([rows[row] for row in batch]).float().cpu()
        return logits

    def _read(self, rows: list[tuple[str, ...]]) -> Tensor:
        return self.model(**self._tokens(*zip(*rows, strict=True))).logits

    def _read_apart(self, rows: list[tuple[str, ...]]) -> Tensor:
        vectors = []
        for texts in zip(*rows, strict=True):
            inputs = self._tokens(texts)
            last = self.model.encoder(**inputs, return_dict=True).last_hidden_state
            vectors.append(pooled((last,), inputs["attention_mask"], self.model.head.pooling)[..., 0])
        u, v = vectors
        return self.model.head.output(torch.cat([u, v, (u - v).abs(), u * v], dim=1))

    def _tokens(self, *texts: tuple[str, ...]) -> dict[str, Tensor]:
        columns = [list(column) for column in texts]
        return self.tokenizer(
            *columns, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        ).to(self.device)

    def _scores(self) -> dict[str, float]:
        """The card's scores by metric; a card that `save_mask` wrote from other code may have none."""
        return self.card.get("metrics", {}).get("validation", {})

    def _readme(self) -> str:
        call = 'adapted.predict([("a text", "its pair")])' if len(self.columns) == 2 else 'adapted.predict(["a text"])'
        labels = ", ".join(self.labels) or "none, it gives a number"
        scores = "".join(f"| {name} | {value:.4f} |\n" for name, value in self._scores().items())
        scores = scores and f"| on dev rows | |\n|---|---|\n{scores}\n"
        return (
            f"---\n{front_matter(self.base)}\n---\n\n# A mask for {Path(self.card.get('task', 'a task')).name}\n\n"
            "A binary mask and a head over an untouched base model.\n\n"
            f'```python\nimport adaprune\n\nadapted = adaprune.Adapted.from_pretrained("this folder")\n{call}\n```\n\n'
            f"Labels: {labels}. Method {self.card.get('method')}, sparsity {self.card.get('sparsity')}, "
            f"texts cut at {self.max_length} tokens.\n\n{scores}{self.said}\n"
        )


def check_folder(folder: str | Path) -> Path:
    """The folder, if `Adapted.save_pretrained` would not replace a foreign file; FileExistsError otherwise."""
    folder = expanded(folder)
    for name, mark in FILES.items():
        path = folder / name
        if path.is_dir() or (path.exists() and mark not in path.read_bytes()):
            raise FileExistsError(f"{path} is not adaprune's, yet would be replaced: move it, or choose another folder")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: choose a folder")
    return folder
