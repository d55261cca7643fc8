"""Many tasks on one base model: its weights are in memory once, plus the mask's bits and the head of each task.

A masked layer computes with w0 * m of the task of the call, so a batch can mix tasks, and threads can serve different
tasks at the same time. The masked matrices of the tasks served last are kept (see `served_layers`): calls for those
cost as much as with `apply_mask`. A switch to another task takes one pass over the weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from adaprune.data import expanded
from adaprune.deploy.mask import Mask, base_of, fitting_head
from adaprune.deploy.mask_file import load_mask
from adaprune.deploy.runtime import RUNTIMES, check_kernel
from adaprune.deploy.runtime.served_layers import Kept, ServedEmbedding, ServedLinear, Task
from adaprune.deploy.sharing import (
    INDEX,
    NAME,
    check_files,
    folder_of,
    mask_file,
    push,
    read_as,
    save_tasks,
    serve_in_pipelines,
    tasks_in,
)
from adaprune.deploy.zoo_files import is_zoo_name, zoo_names
from adaprune.masks import maskable
from adaprune.training import Encoder, load_encoder


class MaskedEncoder(nn.Module):
    """A frozen base model that serves many tasks; each adds its packed mask and its head.

    The logits equal those of `apply_mask` with the same runtime on a separate base, to the last bit.
    ``transformers.pipeline("text-classification", model=served)`` serves the active task, and cuts texts as it was
    trained; the first task added is active, as in peft. Once the tasks are added, it can be moved to another device or
    dtype, with weights, heads and masks. Tasks are added and saved in float32.

    Args:
        base: the base model; it is frozen, and its weights stay as they are (a change through ``.data`` is not noticed
            where matrices are kept).
        keep: the number of tasks, those served last, whose masked matrices are kept. Each takes as much memory as the
            base's matrices (340 MB for BERT-base) or, with ``sparse``, 8 bytes per weight that its mask keeps. With 0
            the weights exist only once, and each forward pass masks them again.
        runtime: ``dense``, ``sparse`` or ``auto`` (see `set_runtime`); switching to a task that is not kept then takes
            longer, and with ``auto`` adding one, whose matrices are timed.

    Raises:
        TypeError: ``base`` is not from `load_encoder`.
        ValueError: an invalid ``keep`` or ``runtime``, or a base on a device that the sparse runtime does not support.
    """

    input_modalities = ("text",)  # pipelines print these two attributes of a model
    can_generate = staticmethod(lambda: False)

    def __init__(self, base: Encoder, keep: int = 1, runtime: str = "dense"):
        super().__init__()
        if not isinstance(base, Encoder):
            raise TypeError(f"base must be what load_encoder returns, got {type(base).__name__}")
        if type(keep) is not int or keep < 0:
            raise ValueError(f"keep is a number of tasks, 0 and more, got {keep!r}")
        if runtime not in RUNTIMES or (runtime != "dense" and not keep):
            raise ValueError(
                f"runtime is 'dense', or with keep >= 1 'sparse' or 'auto', got {runtime!r} with keep={keep}"
            )
        if runtime != "dense":
            check_kernel(next(base.model.parameters()))
        self._kept = Kept(keep, runtime)
        self.encoder, self.tokenizer, self.base = base.model.requires_grad_(False).eval(), base.tokenizer, base
        self.active_task: str | None = None
        self.deleted: set[str] = set()  # of all tasks that were ever here, so that a save may remove their files
        self._tasks = nn.ModuleDict()
        for name, module in maskable(self.encoder, "encoder+embeddings").items():
            module.__class__ = ServedLinear if isinstance(module, nn.Linear) else ServedEmbedding
            module.mask_name = name
        serve_in_pipelines()
        self.train(False)

    @classmethod
    def from_pretrained(
        cls, name: str, revision: str | None = None, base: str | None = None, keep: int = 1, runtime: str = "dense"
    ) -> MaskedEncoder:
        """The base model ``name``, or what ``save_pretrained`` or ``push_to_hub`` stored, with its tasks.

        For a base model in a local folder, cards have only the last part of the path: ``base`` says where it is.
        ``keep`` and ``runtime`` are as for the class.

        Raises:
            OSError, ValueError: it cannot be loaded, or masks name no base model, or different ones.
        """
        folder = folder_of(name, revision)
        if folder is None:
            if is_zoo_name(name) and name in zoo_names():
                raise ValueError(f"{name!r} is a mask of the zoo: load its base, then add_task({name!r})")
            return cls(load_encoder(name, revision), keep, runtime)
        tasks = {task: load_mask(folder / f"{task}.safetensors") for task in tasks_in(folder)}
        first, mask = next(iter(tasks.items()))
        try:
            place = (base, None) if base else base_of(mask.card, folder / f"{first}.safetensors")
        except ValueError as error:
            raise ValueError(f"{name}: {error}; load the base model, and add_task one by one") from None
        try:
            served = cls(load_encoder(*place), keep, runtime)
        except OSError as error:
            raise OSError(f"the base model of {name}: {error} Where it is a folder, give base=PATH.") from error
        for task, mask in tasks.items():
            served.add_task(task, mask)
        return served

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks, in the order in which they were added."""
        return [name.removeprefix("task ").replace(",", ".") for name in self._tasks]

    @property
    def config(self):
        """The base model's configuration, with the active task's labels."""
        return self.encoder.config if self.active_task is None else self.task(self.active_task).config

    @property
    def columns(self) -> tuple[str, ...]:
        """What the active task reads: text, (text_pair); () if no task is active, or its card does not say."""
        return read_as(self.task(self.active_task).card)[0] if self.active_task else ()

    @property
    def max_length(self) -> int:
        """The number of tokens after which a pipeline cuts the texts of the active task, as in training."""
        card = self.task(self.active_task).card if self.active_task else {}
        return min(read_as(card)[1], self.tokenizer.model_max_length)

    device = property(lambda self: next(self.encoder.parameters()).device)
    dtype = property(lambda self: next(self.encoder.parameters()).dtype)

    def add_task(self, name: str, source: str | Path | Mask | None = None, revision: str | None = None) -> None:
        """Adds a task called ``name``: the zoo's mask of that name, or ``source``.

        ``source`` is a mask file's path, a name from the `zoo`, a loaded mask, or a folder or hub repository of one
        `Adapted` or of several tasks, from which the one called ``name`` is taken.

        Raises:
            ValueError: the name is taken or invalid, or the mask is damaged or made for another base (names the
                tensor); nothing has then been added.
            OSError: no such file or repository.
        """
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise ValueError(f"a task's name has letters a to z, digits, - _ and ., at most 100, got {name!r:.110}")
        if f"{name}.json".lower() == INDEX:  # some file systems know no capitals
            raise ValueError(f"task {name!r} would have its card in {INDEX}, the index of tasks: choose another name")
        if same := [task for task in self.tasks if task.lower() == name.lower()]:
            raise ValueError(
                f"task {same[0]!r} is there already: delete_task({same[0]!r}) first, or choose another name"
            )
        source = name if source is None else source
        mask = source if isinstance(source, Mask) else load_mask(mask_file(name, source, revision))
        check_files(self.base, mask.card)
        read_as(mask.card)  # refuses what no run could have written
        try:
            head = fitting_head(self.encoder, mask)
        except ValueError as error:  # about the base alone, it names no mask
            raise ValueError(f"task {name!r}: {error}") from None
        task = Task(mask, head, self.encoder.config).to(self.device)
        if self._kept.runtime == "auto":
            task.measure(maskable(self.encoder))
        self._tasks[_key(name)] = task
        self.active_task = self.active_task or name

    def set_task(self, name: str) -> None:
        """Makes ``name`` the task of calls that do not name one; ValueError for an unknown task."""
        self.task(name)
        self.active_task = name

    def delete_task(self, name: str) -> None:
        """Removes a task; if it was the active one, no task is active."""
        task = self.task(name)
        task.deleted = True
        self._kept.forget(task)
        self.deleted.add(name)
        del self._tasks[_key(name)]
        self.active_task = None if self.active_task == name else self.active_task

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, tasks: Sequence[str] | None = None, **inputs: Tensor
    ) -> SequenceClassifierOutput:
        """Logits of the active task, shape (batch, outputs), or of ``tasks``, with one name per row.

        With mixed tasks the shape is (batch, largest number of outputs), with -inf in the columns that a row's task
        does not have, so that softmax and argmax are right. Each task's rows go through the encoder together. If a
        batch has more tasks than can be kept, the kept ones stay, and the others are computed densely.

        Raises:
            ValueError: no task is active, a task is unknown, or there is not one task per row.
        """
        inputs["input_ids"] = input_ids
        if tasks is None:
            if self.active_task is None:
                raise ValueError(f"no task is active: set_task one of {', '.join(self.tasks) or 'those you add_task'}")
            return SequenceClassifierOutput(logits=self._logits(self.task(self.active_task), inputs, True))
        if isinstance(tasks, str) or not hasattr(tasks, "__len__") or len(tasks) != len(input_ids):
            raise ValueError(f"tasks must be a list of {len(input_ids)} names, one for each row, got {tasks!r}")
        found = {name: self.task(name) for name in tasks}
        width = max((task.config.num_labels for task in found.values()), default=0)
        logits = torch.full((len(tasks), width), -torch.inf, dtype=self.dtype, device=self.device)
        for name, task in found.items():
            rows = torch.tensor([row for row, of in enumerate(tasks) if of == name], device=self.device)
            per_row = {k for k, v in inputs.items() if isinstance(v, Tensor) and v.ndim and len(v) == len(tasks)}
            part = {k: v[rows] if k in per_row else v for k, v in inputs.items()}  # others are for all rows
            answers = self._logits(task, part, len(found) <= self._kept.limit)
            logits[rows, : answers.shape[1]] = answers.to(logits.dtype)
        return SequenceClassifierOutput(logits=logits)

    def _logits(self, task: Task, inputs: dict, keep: bool) -> Tensor:
        with self._kept.serving(task, keep):
            states = self.encoder(**inputs, output_hidden_states=True, return_dict=True).hidden_states
            dtype = task.head.mix.dtype  # another than the states' if only the encoder was converted
            return task.head(tuple(state.to(dtype) for state in states[1:]), inputs.get("attention_mask"))

    def _apply(self, fn, recurse=True):
        self._kept.forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args):
        self._kept.forget()
        super()._load_from_state_dict(*args)

    def task(self, name: str) -> Task:
        if name not in self.tasks:
            raise ValueError(
                f"unknown task {name!r}: the tasks are {', '.join(self.tasks) or 'none yet, add_task one'}"
            )
        return self._tasks[_key(name)]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes every task's mask file, an index and a model card into ``folder``; the base model is only named.

        Other files are not touched: a README.md that is not from this package is kept, with a warning. Files of an
        earlier save are removed if their task was removed from this model by ``delete_task``.

        Raises:
            ValueError: no task, or a base in half precision.
            FileExistsError: the folder has tasks, or files with a task's name, that this model does not know.
        """
        save_tasks(self, expanded(folder))

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Uploads what ``save_pretrained`` writes to a hub repository, which is made if needed; returns its address."""
        return push(self.save_pretrained, repo_id, private, token)


def _key(name: str) -> str:
    """The module name of a task: torch does not allow dots there, and task names have no commas."""
    return f"task {name.replace('.', ',')}"
