"""The models that `benchmarks.inference` times, each made the same way at every call: dense, rivals, ours."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from adaprune.deploy.runtime import compact, export, set_runtime
from adaprune.masks import keep_top, keep_units, maskable, masks_of_units, sum_over_units
from adaprune.training import AdaptedModel, load_encoder

INT8 = ("int8, torch", "int8, onnxruntime")
OURS = ("sparse", "auto", "compact", "compact, sparse")
UNITS, UNITS_ONNX, UNITS_AT = "units", "units, onnxruntime", 0.5
TOLERANCE = 1e-4  # of logits
SHAPES = {  # a random BERT's config; None means the real MiniLM
    "minilm": None,
    "bert-base": {},
    "tiny": dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48),
}


class Batch(NamedTuple):
    """Rows of tokens, and how many forward passes one turn has."""

    rows: int
    tokens: int
    times: int


def dense(shape: str) -> AdaptedModel:
    """The model of a shape with a fresh head for two classes, frozen; equal calls, equal weights."""
    torch.manual_seed(0)
    config = SHAPES[shape]
    encoder = load_encoder("minilm").model if config is None else BertModel(BertConfig(**config), False).eval()
    encoder.requires_grad_(False).set_attn_implementation("sdpa")
    return AdaptedModel.for_task(encoder, outputs=2).eval()


@torch.no_grad()
def pruned(shape: str, sparsity: float, kind: str) -> AdaptedModel:
    """The model of a shape with its masks applied: ``magnitude``, ``random``, or ``units`` by their norms."""
    model, generator = dense(shape), torch.Generator().manual_seed(1)
    weights = {name: module.weight for name, module in maskable(model.encoder).items()}
    scores = {
        name: weight.abs() if kind == "magnitude" else torch.rand(weight.shape, generator=generator)
        for name, weight in weights.items()
    }
    if kind == UNITS:
        norms = sum_over_units({n: w.square() for n, w in weights.items()}, model.config.num_attention_heads)
        masks = masks_of_units(keep_units(norms, 1 - sparsity), weights)
    else:
        masks = keep_top(scores, 1 - sparsity)
    for name, mask in masks.items():
        weights[name].mul_(mask)
    return model


def ours(masked: AdaptedModel) -> dict[str, AdaptedModel]:
    """Ours by way, of one masked model, their logits checked; one embedding table for all.

    Raises:
        AssertionError: logits that are not those of the masked dense model.
    """
    small = compact(masked)
    made = {
        "sparse": set_runtime(copy.deepcopy(masked), "sparse"),
        "auto": set_runtime(copy.deepcopy(masked), "auto"),
        "compact": small,
        "compact, sparse": set_runtime(copy.deepcopy(small), "sparse"),
    }
    inputs = batch_of(Batch(3, 9, 1), masked)
    inputs["attention_mask"][1, 5:] = 0
    for way, model in made.items():
        model.encoder.embeddings = masked.encoder.embeddings
        with torch.inference_mode():
            gap = float((model(**inputs).logits - masked(**inputs).logits).abs().max())
        assert gap <= TOLERANCE, f"{way}: logits differ by {gap}"
    return made


def units(shape: str, threads: int, folder: Path, onnx: bool) -> dict[str, object]:
    """The compact model of a mask of whole units at ``UNITS_AT``, in torch and where asked for in onnxruntime."""
    small = compact(pruned(shape, UNITS_AT, UNITS))
    made: dict[str, object] = {UNITS: small}
    if onnx:
        made[UNITS_ONNX] = session(export(small, folder / f"{shape}-units.onnx"), threads)
    return made


def rivals(shape: str, threads: int, folder: Path, onnx: bool) -> dict[str, object]:
    """What a user would pick instead by way: models, and sessions of onnxruntime where it is asked for."""
    made: dict[str, object] = {"dense bfloat16": dense(shape).to(torch.bfloat16)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this moves to another package
        made[INT8[0]] = torch.ao.quantization.quantize_dynamic(dense(shape), {nn.Linear}, torch.qint8)
        if onnx:
            made |= onnx_sessions(shape, threads, folder)
    return made


def has_onnx() -> bool:
    """Whether all that is needed for onnxruntime is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime", "onnxscript"))


def onnx_sessions(shape: str, threads: int, folder: Path) -> dict[str, object]:
    """The model in onnxruntime, in float32 and in int8; the file is written once for each shape."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole, small = folder / f"{shape}.onnx", folder / f"{shape}-int8.onnx"
    if not whole.exists():
        quantize_dynamic(export(dense(shape), whole), small, weight_type=QuantType.QInt8)
    return {"float32, onnxruntime": session(whole, threads), INT8[1]: session(small, threads)}


def session(file: Path, threads: int) -> object:
    """onnxruntime's model of a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # idle threads that spin take the cores from whoever's turn it is
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def batch_of(batch: Batch, model: AdaptedModel) -> dict[str, Tensor]:
    """Random tokens without padding."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, model.config.vocab_size, (batch.rows, batch.tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
