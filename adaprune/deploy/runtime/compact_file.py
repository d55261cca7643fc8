"""A compact model in a single, complete safetensors file: loading needs no base model, mask or pickle.

The tensors are those of the model's ``state_dict``, and under ``buffer.<name>`` the constants its embeddings make for
themselves. Metadata ``adaprune_compact`` is JSON: ``format`` (1), ``config`` (the family's, with the labels), ``head``
{kind, pooling, outputs}, ``tokenizer`` (a name or None), and for each of ``layers`` ``heads`` [[number in the original
layer, query/key units, value units], ...], ``scale`` of the scores and ``neurons``; and ``sha256`` of all that and the
tensors, which the first files lack.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from adaprune.data import expanded
from adaprune.deploy.runtime.compact_layers import (
    FAMILIES,
    Attention,
    CompactEncoder,
    CompactLayer,
    FeedForward,
    Head,
    Original,
    originals,
)
from adaprune.deploy.runtime.sparse import DTYPES, check_dense
from adaprune.runs import write_bytes
from adaprune.training import AdaptationHead, AdaptedModel, tensor_hash

FORMAT = 1
_KEY, _BUFFER = "adaprune_compact", "buffer."
# Paths and code have no business in a file, nor have choices of how to compute: a compact model has its own.
_UNSAID = ("transformers_version", "auto_map", "architectures", "quantization_config", "attn_implementation",
           "experts_implementation", "dtype", "torch_dtype")  # fmt: skip
_HOSTILE = (
    hub_errors.StrictDataclassError, SafetensorError, ArithmeticError, AttributeError, ImportError, LookupError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip


def save_compact(path: str | Path, model: AdaptedModel, tokenizer: str | None = None) -> Path:
    """Writes what `compact` returned to ``path``, completely or not at all, and returns the path.

    Args:
        path: ``<name>.safetensors``; its folder is made.
        model: the compact model, before `set_runtime` made it sparse.
        tokenizer: the name of its tokenizer, as for `load_encoder`; by default the name it was loaded with, if any.

    Raises:
        ValueError: another file suffix, a model that is not compact or already sparse, or one that `load_compact` would
            refuse, as one with NaN.
        FileExistsError: a file of that name that holds something else, such as the base's weights.
        OSError: the folder cannot be written.
    """
    path = expanded(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the name of a compact model ends in .safetensors")
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, CompactEncoder):
        raise ValueError(f"save_compact takes what compact returns, got {type(encoder or model).__name__}")
    check_dense(encoder)
    head = model.head
    kind = "linear" if head.hidden is None else "mlp"
    said = {
        "format": FORMAT,
        "config": _said(encoder.config.to_dict()),
        "head": {"kind": kind, "pooling": head.pooling, "outputs": head.output.out_features},
        "tokenizer": tokenizer or getattr(model, "tokenizer_name", None),
        "layers": [
            {
                "heads": [list(head) for head in layer.attention.heads],
                "scale": layer.attention.scale,
                "neurons": layer.feed_forward.fc1.out_features,
            }
            for layer in encoder.layers
        ],
    }
    tensors = {**model.state_dict(), **{_BUFFER + name: t for name, t in _constants(encoder).items()}}
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    _check_numbers(tensors)
    said = json.loads(json.dumps(said, allow_nan=False))  # as it will be read
    content = save(tensors, metadata={_KEY: json.dumps({**said, "sha256": _seal(said, tensors)})})
    if path.exists() and _KEY.encode() not in path.read_bytes():
        raise FileExistsError(f"{path} holds no compact model, yet would be replaced: move it, or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
    return path


def load_compact(path: str | Path) -> AdaptedModel:
    """The compact model in a file of `save_compact`, on the CPU, frozen and in evaluation mode.

    Its ``config`` has the labels, its ``tokenizer_name`` the tokenizer's name (None if none was given).

    Raises:
        ValueError: a damaged or foreign file, named.
        OSError: no such file.
    """
    path = expanded(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads(file.metadata()[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        if said["format"] != FORMAT:
            raise ValueError(f"its format is {said['format']!r}")
        if (seal := said.pop("sha256", None)) is not None and seal != _seal(said, tensors):
            raise ValueError("its sha256 is not that of its tensors and their description")
        if not isinstance(tokenizer := said.get("tokenizer"), str | None):
            raise ValueError(f"the name of its tokenizer is {tokenizer!r:.40}")
        _check_numbers(tensors)
        model = _model(said)
        constants = {n.removeprefix(_BUFFER): tensors.pop(n) for n in [*tensors] if n.startswith(_BUFFER)}
        own = {name: (constant.shape, constant.dtype) for name, constant in _constants(model.encoder).items()}
        if {name: (constant.shape, constant.dtype) for name, constant in constants.items()} != own:
            raise ValueError("its constants are not those of its family")
        for name, constant in constants.items():
            parent, _, last = name.rpartition(".")
            setattr(model.encoder.get_submodule(parent), last, constant)
        model.load_state_dict(tensors, assign=True)
    except _HOSTILE as error:
        raise ValueError(f"{path} is not a whole compact model of format {FORMAT}: {error!s:.500}") from None
    model.tokenizer_name = tokenizer
    model.encoder.requires_grad_(False)
    return model.eval()


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that a file says, and that is believed of one."""
    return {name: value for name, value in config.items() if name not in _UNSAID and not name.startswith("_")}


def _seal(said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """sha256 of a description and of the tensors' names, shapes, dtypes and numbers."""
    hashes = {name: tensor_hash(tensor) for name, tensor in tensors.items()}
    return hashlib.sha256(json.dumps([said, hashes], sort_keys=True).encode()).hexdigest()


def _check_numbers(tensors: Mapping[str, Tensor]) -> None:
    """ValueError if the numbers are not finite and of one dtype; constants have their own."""
    numbers = {name: tensor for name, tensor in tensors.items() if not name.startswith(_BUFFER)}
    dtypes = {tensor.dtype for tensor in numbers.values()}
    if len(dtypes) != 1 or not dtypes <= {*DTYPES}:
        raise ValueError(f"its tensors are of {', '.join(sorted(map(str, dtypes))) or 'no dtype'}, not of one float")
    if wrong := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{wrong[0]} holds NaN or infinity")


def _model(said: dict[str, Any]) -> AdaptedModel:
    """A model of the sizes described, without memory for its weights; ValueError where they do not go together."""
    if said["config"]["model_type"] not in FAMILIES:
        raise ValueError(f"its family is {said['config']['model_type']!r}")
    config = transformers.AutoConfig.for_model(**_said(said["config"]))
    if len(said["layers"]) != config.num_hidden_layers:
        raise ValueError(f"it describes {len(said['layers'])} layers of {config.num_hidden_layers}")
    pattern = copy.deepcopy(config)
    pattern.num_hidden_layers = 1
    with torch.device("meta"):
        base = transformers.AutoModel.from_config(pattern, attn_implementation="eager")
        head = AdaptationHead(config.num_hidden_layers, config.hidden_size, **said["head"])
    original = originals(base)[0]
    base.config = config
    return AdaptedModel(CompactEncoder(base, [_layer(one, original, config) for one in said["layers"]]), head)


def _layer(said: dict[str, Any], original: Original, config: transformers.PretrainedConfig) -> CompactLayer:
    width, neurons, most = config.hidden_size, said["neurons"], config.hidden_size // config.num_attention_heads
    heads = [Head(*head) for head in said["heads"]]
    numbers = [head.number for head in heads]
    if any(type(count) is not int or not 0 <= count <= most for head in heads for count in head[1:]):
        raise ValueError(f"a head has more units than {most}, or no count")
    if numbers != sorted(set(numbers)) or not {*numbers} <= {*range(config.num_attention_heads)}:
        raise ValueError(f"heads {numbers[:20]} are not some of {config.num_attention_heads}")
    if type(said["scale"]) is not float or not (0 < said["scale"] < math.inf):
        raise ValueError(f"the scale of the scores is {said['scale']!r:.40}")
    units, values = sum(2 * head.scores + head.values for head in heads), sum(head.values for head in heads)
    attention = Attention(heads, said["scale"], _empty(units, width), _empty(width, values))
    feed_forward = FeedForward(_empty(neurons, width), original.act, _empty(width, neurons))
    norms = [copy.deepcopy(norm) for norm in original.norms]
    return CompactLayer(attention, norms[0], feed_forward, norms[1])


def _empty(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    return torch.empty(outputs, inputs, device="meta"), torch.empty(outputs, device="meta")


def _constants(encoder: CompactEncoder) -> dict[str, Tensor]:
    """The buffers that the embeddings make for themselves, as positions 0, 1, 2 ..., by name."""
    stored = encoder.state_dict().keys()
    found: dict[str, Tensor] = {}
    for prefix, module in (("embeddings", encoder.embeddings), ("positions", encoder.positions or nn.Identity())):
        found |= {f"{prefix}.{name}": buffer for name, buffer in module.named_buffers()}
    return {name: buffer for name, buffer in found.items() if name not in stored}
