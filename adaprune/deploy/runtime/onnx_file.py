"""An adapted model as an ONNX file, for runtimes that are not torch."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from adaprune.data import expanded
from adaprune.deploy.runtime.compact import compact
from adaprune.deploy.runtime.compact_layers import CompactEncoder
from adaprune.deploy.runtime.sparse import check_dense
from adaprune.training import AdaptedModel

_LABELS = "id2label"  # the key of the labels in the file's metadata, by which it is known again
LARGEST = 2**31 - 2**24  # bytes of weights that fit into one file beside the graph


class _Logits(nn.Module):
    """The model as a function of tensors alone."""

    def __init__(self, model: AdaptedModel, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


@torch.no_grad()
def export(model: AdaptedModel, path: str | Path) -> Path:
    """Writes ``model``, compacted first if needed, to the ONNX file ``path``; returns the path.

    Inputs, int64 of any (rows, tokens): ``input_ids``, ``attention_mask`` (0 = padding) and, if the family uses it to
    separate two texts, ``token_type_ids``. Output: ``logits`` (rows, outputs), in the model's dtype. The labels are
    JSON in the file's metadata ``id2label``. Removed weights that `compact` cannot take out are zeros in dense
    matrices.

    Args:
        model: what `apply_mask`, `compact` or `load_compact` returned.
        path: ``<name>.onnx``; its folder is made, an older file of ``export`` replaced.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is not installed.
        ValueError: another name of the file, a model that `compact` refuses or that is sparse, or one over 2 GB.
        OSError: the file cannot be written, or is somebody else's.
    """
    path = expanded(path)
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: the name of an ONNX file ends in .onnx")
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise ModuleNotFoundError(f"export needs {' and '.join(missing)}: pip install onnx onnxscript")
    if path.exists() and _LABELS.encode() not in path.read_bytes():
        raise FileExistsError(f"{path} is not from export, yet would be replaced: move it, or choose another name")
    if isinstance(getattr(model, "encoder", None), CompactEncoder):
        check_dense(model.encoder)
    else:
        model = compact(model)
    if sum(p.numel() * p.itemsize for p in model.parameters()) > LARGEST:
        raise ValueError(
            "the model has over 2 GB, more than an ONNX file holds: convert it with .to(torch.float16) first"
        )
    names = ("input_ids", "attention_mask")
    if "token_type_ids" in model.encoder.takes and getattr(model.config, "type_vocab_size", 0) > 1:
        names += ("token_type_ids",)
    # a tensor for each: of one given twice the exporter makes one input
    example = tuple(torch.ones(2, 8, dtype=torch.int64, device=model.device) for _ in names)
    shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            _Logits(model, names).eval(), example, dynamo=True, verbose=False, input_names=names,
            output_names=["logits"], dynamic_shapes=[(shape,) * len(names)],
        )  # fmt: skip
    program.model.metadata_props[_LABELS] = json.dumps(model.config.id2label)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # whole or not at all
        program.save(Path(folder) / path.name, external_data=False)
        os.replace(Path(folder) / path.name, path)
    return path
