"""Many tasks on one base model: its weights once in memory, and of each task the mask's bits and the head.

A masked layer computes w0 * m in the forward pass from the packed bits of the task that the call is for, and forgets
it. So a switch of task moves nothing, a batch can mix tasks, and threads can serve different tasks at once; the price
is one pass over the masked weights in each forward pass. To serve a single task, use `deploy.apply_mask`: no overhead.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download, snapshot_download
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import SequenceClassifierOutput

from adaprune.deploy.mask import Mask, base_of, fitting_head, given
from adaprune.deploy.mask_file import load_mask, save_mask
from adaprune.deploy.sharing import front_matter, push
from adaprune.deploy.zoo_files import is_zoo_name, zoo_file
from adaprune.masks import maskable
from adaprune.training import MINILM, Encoder, load_encoder

INDEX = "adaprune.json"  # {"tasks": [names]}; the mask of each task is <name>.safetensors beside it
_NAME = r"[A-Za-z0-9][\w.-]{0,99}"
_BITS_OF_A_BYTE = torch.tensor([[byte >> bit & 1 for bit in range(8)] for byte in range(256)], dtype=torch.float32)
_SERVED: ContextVar[_Task | None] = ContextVar("_SERVED", default=None)  # the task that this thread computes for


class _Task(nn.Module):
    """One task: all its masks as one vector of packed bits, and its head."""

    def __init__(self, mask: Mask, head: nn.Module, config):
        super().__init__()
        self.head, self.card, self.config = head.requires_grad_(False).eval(), mask.card, copy.deepcopy(config)
        labels = mask.card["labels"]
        self.config.id2label = dict(enumerate(labels)) or {0: "score"}
        self.config.label2id = {label: number for number, label in self.config.id2label.items()}
        self.config.problem_type = "single_label_classification" if labels else "regression"
        packed = {name: np.packbits(kept.numpy(), bitorder="little") for name, kept in mask.masks.items()}
        ends = np.cumsum([len(part) for part in packed.values()])
        self.places = {name: slice(end - len(packed[name]), end) for name, end in zip(packed, ends, strict=True)}
        self.register_buffer("bits", torch.from_numpy(np.concatenate([*packed.values()])))
        self.register_buffer("table", _BITS_OF_A_BYTE.clone())

    def kept(self, name: str, like: Tensor) -> Tensor:
        """The mask of one weight as new numbers 0 and 1, of the weight's shape; all 1 where it is not masked."""
        if name not in self.places:
            return torch.ones_like(like)
        rows = functional.embedding(self.bits[self.places[name]].int(), self.table)
        return rows.view(-1)[: like.numel()].view(like.shape)

    def masks(self) -> dict[str, Tensor]:
        """The masks as boolean tensors."""
        shapes = {name: said["shape"] for name, said in self.card["tensors"].items()}
        return {name: self.kept(name, torch.empty(shape, device="meta")).bool() for name, shape in shapes.items()}


class _ServedLinear(nn.Linear):
    """A linear layer that computes with the mask of the task that is being served."""

    def forward(self, x: Tensor) -> Tensor:
        task, weight = _SERVED.get(), self.weight
        if task is not None and self.mask_name in task.places:
            weight = task.kept(self.mask_name, weight).mul_(weight)
        return functional.linear(x, weight, self.bias)


class _ServedEmbedding(nn.Embedding):
    """The same for a table: only the rows looked up are masked."""

    def forward(self, ids: Tensor) -> Tensor:
        task, rows = _SERVED.get(), functional.embedding(ids, self.weight)
        if task is None or self.mask_name not in task.places:
            return rows
        entries = ids[..., None] * self.embedding_dim + torch.arange(self.embedding_dim, device=ids.device)
        kept = task.bits[task.places[self.mask_name]][entries >> 3] >> (entries & 7).to(torch.uint8) & 1
        return rows * kept


class MaskedEncoder(nn.Module):
    """A frozen base model that serves many tasks; each adds its packed mask and its head, the weights exist once.

    The logits are those of `apply_mask` on a base of its own, to the last bit. With ``served.tokenizer`` it is a model
    for ``transformers.pipeline("text-classification", ...)``, which then serves the active task. (The pipeline logs
    that the class is not on its list; the first task added is active, as in peft.) It can be moved to another device
    or dtype once the tasks are on: weights, heads and masks go together. Tasks are added, and saved, in float32.
    """

    def __init__(self, base: Encoder):
        super().__init__()
        self.encoder, self.tokenizer, self.base = base.model.requires_grad_(False).eval(), base.tokenizer, base
        self.active_task: str | None = None
        self._tasks = nn.ModuleDict()
        for name, module in maskable(self.encoder, "encoder+embeddings").items():
            module.__class__ = _ServedLinear if isinstance(module, nn.Linear) else _ServedEmbedding
            module.mask_name = name
        self.train(False)

    @classmethod
    def from_pretrained(cls, name: str, revision: str | None = None) -> MaskedEncoder:
        """The base model ``name``; or, with its tasks, what ``save_pretrained`` or ``push_to_hub`` stored.

        Raises:
            OSError, ValueError: it cannot be loaded; masks that name no base model, or another one.
        """
        folder = _folder(name, revision)
        if folder is None:
            return cls(load_encoder(name, revision))
        tasks = {task: load_mask(folder / f"{task}.safetensors") for task in _index(folder)}
        try:
            base = base_of(next(iter(tasks.values())).card)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; load the base model, and add_task one by one") from None
        served = cls(load_encoder(*base))
        for task, mask in tasks.items():
            served.add_task(task, mask)
        return served

    @property
    def tasks(self) -> list[str]:
        """The tasks' names, in the order they were added."""
        return [name.removeprefix("task ").replace(",", ".") for name in self._tasks]

    @property
    def config(self):
        """The base model's configuration, with the active task's labels."""
        return self.encoder.config if self.active_task is None else self.task(self.active_task).config

    device = property(lambda self: next(self.encoder.parameters()).device)
    dtype = property(lambda self: next(self.encoder.parameters()).dtype)

    def add_task(self, name: str, source: str | Path | Mask | None = None, revision: str | None = None) -> None:
        """Adds a task under ``name``: the zoo's mask of that name, or what ``source`` is.

        A ``source`` is a mask file's path, a folder or hub repository of tasks, a name of the `zoo`, or a loaded mask.
        Of several tasks in a folder or repository, the one called ``name`` is taken.

        Raises:
            ValueError: a name that is taken or unfit; a mask that is damaged or made for another base (the tensor is
                named); nothing has then been added.
            OSError: no such file or repository.
        """
        if not isinstance(name, str) or not re.fullmatch(_NAME, name):
            raise ValueError(f"a task's name has letters, digits, - _ and ., at most 100, got {name!r}")
        if f"{name}.json".lower() == INDEX:  # some file systems know no capitals
            raise ValueError(f"task {name!r} would have its card in {INDEX}, the index of tasks: choose another name")
        if name in self.tasks:
            raise ValueError(f"task {name!r} is there already: delete_task({name!r}) first, or choose another name")
        source = name if source is None else source
        mask = source if isinstance(source, Mask) else load_mask(_mask_file(name, source, revision))
        self._tasks[_key(name)] = _Task(mask, fitting_head(self.encoder, mask), self.encoder.config).to(self.device)
        self.active_task = self.active_task or name

    def set_task(self, name: str) -> None:
        """Makes ``name`` the task of calls that name none; ValueError for an unknown one."""
        self.task(name)
        self.active_task = name

    def delete_task(self, name: str) -> None:
        """Forgets a task; if it was the active one, none is."""
        self.task(name)
        del self._tasks[_key(name)]
        self.active_task = None if self.active_task == name else self.active_task

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, tasks: Sequence[str] | None = None, **inputs: Tensor
    ) -> SequenceClassifierOutput:
        """Logits of the active task, shape (batch, outputs); or of ``tasks``, one name for each row.

        Of mixed tasks: (batch, most outputs of a task), -inf in the columns that a row's task does not have, so that
        softmax and argmax mean what they should. Each task's rows go through the encoder together.

        Raises:
            ValueError: no task is active; an unknown task; not one task for each row.
        """
        inputs["input_ids"] = input_ids
        if tasks is None:
            if self.active_task is None:
                raise ValueError(f"no task is active: set_task one of {', '.join(self.tasks) or 'those you add_task'}")
            return SequenceClassifierOutput(logits=self._logits(self.task(self.active_task), inputs))
        if isinstance(tasks, str) or len(tasks) != len(input_ids):
            raise ValueError(f"tasks must be a list of {len(input_ids)} names, one for each row, got {tasks!r}")
        found = {name: self.task(name) for name in tasks}
        width = max((task.config.num_labels for task in found.values()), default=0)
        logits = torch.full((len(tasks), width), -torch.inf, dtype=self.dtype, device=self.device)
        for name, task in found.items():
            rows = torch.tensor([row for row, of in enumerate(tasks) if of == name], device=self.device)
            own = self._logits(task, {k: v[rows] if isinstance(v, Tensor) else v for k, v in inputs.items()})
            logits[rows, : own.shape[1]] = own.to(logits.dtype)
        return SequenceClassifierOutput(logits=logits)

    def _logits(self, task: _Task, inputs: dict) -> Tensor:
        before = _SERVED.set(task)
        try:
            states = self.encoder(**inputs, output_hidden_states=True, return_dict=True).hidden_states
            return task.head(states[1:], inputs.get("attention_mask"))
        finally:
            _SERVED.reset(before)

    def task(self, name: str) -> _Task:
        if name not in self.tasks:
            raise ValueError(
                f"unknown task {name!r}: the tasks are {', '.join(self.tasks) or 'none yet, add_task one'}"
            )
        return self._tasks[_key(name)]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes every task's mask file, an index and a model card into ``folder``; the base model is only named."""
        if not self.tasks:
            raise ValueError("there is no task to save: add_task one")
        folder = Path(folder)
        for name in self.tasks:
            task = self.task(name)
            path = folder / f"{name}.safetensors"
            save_mask(path, task.masks(), task.head.state_dict(), given(task.card), self.encoder)
        said = "\n".join(f"- {name}: {self.task(name).card.get('metrics', 'no metrics')}" for name in self.tasks)
        text = f"# Masks\n\nA binary mask and a head for each task, over an untouched base model.\n\n{said}\n"
        (folder / "README.md").write_text(f"---\n{front_matter(self.base)}\n---\n\n{text}", encoding="utf-8")
        (folder / INDEX).write_text(json.dumps({"tasks": self.tasks}) + "\n", encoding="utf-8")

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Uploads what ``save_pretrained`` writes to a hub repository, made if it is new; returns its address."""
        return push(self.save_pretrained, repo_id, private, token)


def _key(name: str) -> str:
    """The module of a task: torch allows no dots there, and no name has a comma."""
    return f"task {name.replace('.', ',')}"


def _folder(name: str | Path, revision: str | None) -> Path | None:
    """The folder of tasks called ``name``, fetched from the hub where it is no path; None for a base model."""
    if Path(name).is_dir() or name == MINILM:
        return Path(name) if Path(name, INDEX).is_file() else None
    try:
        hf_hub_download(str(name), INDEX, revision=revision)
    except (OSError, ValueError, hub_errors.EntryNotFoundError):
        return None
    return Path(snapshot_download(str(name), revision=revision, allow_patterns=["*.safetensors", "*.json"]))


def _index(folder: Path) -> list[str]:
    """The names of the tasks in a folder, none of which can lead out of it."""
    try:
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["tasks"]
        fit = isinstance(names, list) and names and all(re.fullmatch(_NAME, name) for name in names)
    except (ValueError, TypeError, LookupError, RecursionError):
        fit = False
    if not fit:
        raise ValueError(f"{folder / INDEX} is no list of tasks")
    return names


def _mask_file(name: str, source: str | Path, revision: str | None) -> Path:
    if str(source).endswith(".safetensors"):
        return Path(source)
    if is_zoo_name(source) and not Path(source).is_dir():
        return zoo_file(source)
    folder = _folder(source, revision)
    if folder is None:
        raise FileNotFoundError(f"{source} is neither a mask file nor a folder or repository with {INDEX}")
    names = _index(folder)
    if name not in names and len(names) > 1:
        raise ValueError(f"{source} has no task {name!r}: it has {', '.join(names)}")
    return folder / f"{name if name in names else names[0]}.safetensors"
