"""Counts what a mask keeps: in scope, under both common denominators, by component and by layer."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from adaprune.masks.layers import maskable

EMBED = "embed"
_COMPONENTS = {  # the paper's component -> its names in the supported families
    "query": r"\b(query|q_lin|q|q_proj|query_proj)$",
    "key": r"\b(key|k_lin|k|k_proj|key_proj)$",
    "value": r"\b(value|v_lin|v|v_proj|value_proj)$",
    "attention_output": r"(attention\.output\.dense|out_lin|(attn|SelfAttention)\.o|out_proj|o_proj|attention\.dense)$",
    "ffn_in": r"(intermediate\.dense|lin1|fc1|ffn|\.wi)$",
    "ffn_out": r"(output\.dense|lin2|fc2|ffn_output|\.wo)$",
}
COMPONENTS = (EMBED, *_COMPONENTS, "other")


def component_of(name: str) -> str:
    """The paper's component of a weight: embed, query, key, value, attention_output, ffn_in, ffn_out, other.

    >>> component_of("encoder.layer.3.attention.self.query.weight")
    'query'
    """
    name = name.removesuffix(".weight")
    if "embed" in name or name == "shared":  # T5's table
        return EMBED
    return next((part for part, pattern in _COMPONENTS.items() if re.search(pattern, name)), "other")


def layer_of(name: str) -> int | None:
    """The number of the Transformer layer that a weight belongs to; None for the embeddings."""
    numbers = re.search(r"\.(\d+)\.", name)
    return int(numbers.group(1)) if numbers else None


def count_kept(masks: Mapping[str, Tensor]) -> dict[str, int | float]:
    """sparsity, kept and total of several masks together; sparsity is 0 if there are none."""
    total = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    return {"sparsity": (total - kept) / total if total else 0.0, "kept": kept, "total": total}


def check_keeps(encoder: nn.Module, scope: str, sparsity: float, units: bool = False) -> None:
    """ValueError if ``sparsity`` leaves none of the weights in ``scope`` or, of ``units``, no head or no FFN neuron."""
    modules = maskable(encoder, scope)
    parts = [component_of(name) for name in modules]
    heads = encoder.config.num_attention_heads * parts.count("attention_output")
    neurons = sum(module.in_features for module, part in zip(modules.values(), parts, strict=True) if part == "ffn_out")
    weights = sum(module.weight.numel() for module in modules.values())
    for what, total in {"attention heads": heads, "FFN neurons": neurons}.items() if units else [("weights", weights)]:
        if total and round((1 - sparsity) * total) == 0:
            most = f"{1 - 1 / total:.10g}"
            raise ValueError(f"sparsity {sparsity} keeps none of the {total} {what} in scope: at most {most} keeps one")


def summary(encoder: nn.Module, masks: Mapping[str, Tensor], seen: Mapping[str, Tensor] | None = None) -> dict:
    """The counts of ``masks`` as a record holds them: in scope, under both denominators, by component and by layer.

    ``encoder`` counts the linear layers of all Transformer layers; ``all_weights`` adds the word embeddings (the
    paper's count). Weights out of scope count as kept. ``seen`` says which rows of an embedding table occur in
    training; these and the other rows are then also counted separately, as ``seen_rows`` and ``unseen_rows``.
    """

    def under(scope: str) -> dict[str, int | float]:
        dense = {name: module.weight.numel() for name, module in maskable(encoder, scope).items()}
        total = sum(dense.values())
        removed = sum(mask.numel() - int(mask.sum()) for name, mask in masks.items() if name in dense)
        return {"sparsity": removed / total, "kept": total - removed, "total": total}

    def grouped(key) -> dict[str, dict]:
        groups: dict[str, dict[str, Tensor]] = {}
        for name, mask in masks.items():
            groups.setdefault(str(key(name)), {})[name] = mask
        return {group: count_kept(part) for group, part in groups.items()}

    layers = grouped(layer_of)
    layers.pop("None", None)
    parts = {}
    for table in (seen or {}).keys() & masks:
        for label, rows in {"seen_rows": seen[table], "unseen_rows": ~seen[table]}.items():
            parts[label] = {"rows": int(rows.sum()), **count_kept({table: masks[table][rows]})}
    return {
        **count_kept(masks),
        "encoder": under("encoder"),
        "all_weights": under("encoder+embeddings"),
        "per_component": grouped(component_of),
        "per_layer": layers,
        **parts,
    }
