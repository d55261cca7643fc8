"""What a mask keeps, counted: in scope, under both denominators of the field, by component and by layer."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from adaprune.masks.layers import maskable

EMBED = "embed"
_COMPONENTS = {  # the paper's component -> how the supported families call it
    "query": r"(query|q_lin|\.q|q_proj)$",
    "key": r"(key|k_lin|\.k|k_proj)$",
    "value": r"(value|v_lin|\.v|v_proj)$",
    "attention_output": r"(attention\.output\.dense|out_lin|attn\.o|out_proj|o_proj|attention\.dense)$",
    "ffn_in": r"(intermediate\.dense|lin1|fc1|ffn)$",
    "ffn_out": r"(output\.dense|lin2|fc2|ffn_output)$",
}
COMPONENTS = (EMBED, *_COMPONENTS, "other")


def component_of(name: str) -> str:
    """The paper's component of a weight: embed, query, key, value, attention_output, ffn_in, ffn_out, other.

    >>> component_of("encoder.layer.3.attention.self.query.weight")
    'query'
    """
    name = name.removesuffix(".weight")
    if "embeddings" in name:
        return EMBED
    return next((part for part, pattern in _COMPONENTS.items() if re.search(pattern, name)), "other")


def layer_of(name: str) -> int | None:
    """The number of the Transformer layer a weight sits in; None for the embeddings."""
    numbers = re.search(r"\.(\d+)\.", name)
    return int(numbers.group(1)) if numbers else None


def count_kept(masks: Mapping[str, Tensor]) -> dict[str, int | float]:
    """sparsity, kept and total of some masks together; sparsity 0 where there are none."""
    total = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    return {"sparsity": (total - kept) / total if total else 0.0, "kept": kept, "total": total}


def summary(encoder: nn.Module, masks: Mapping[str, Tensor], seen: Mapping[str, Tensor] | None = None) -> dict:
    """The record's account of ``masks``: in scope, under both denominators, by component and by layer.

    ``encoder`` counts the linear layers of all Transformer layers, ``all_weights`` those and the word embeddings
    (the paper's count); what is out of scope is kept whole. ``seen`` tells of an embedding table which of its rows
    occur in training: those and the others are then counted apart, ``seen_rows`` and ``unseen_rows``.
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
