"""Small random encoders of every supported family, and a batch for them."""

import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
)

SHAPE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
COMMON = {**SHAPE, "intermediate_size": 48, "max_position_embeddings": 40}
DISTIL = {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40}

MADE = {
    "bert": lambda: BertModel(BertConfig(**COMMON)),
    "roberta": lambda: RobertaModel(RobertaConfig(**COMMON)),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(**DISTIL)),
    "electra": lambda: ElectraModel(ElectraConfig(**COMMON, embedding_size=16)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**COMMON)),
    "albert": lambda: AlbertModel(AlbertConfig(**COMMON, embedding_size=16)),
}
FAMILIES = tuple(MADE)
FIVE = FAMILIES[:5]  # those that keep one set of weights a layer


def encoder(family: str = "bert", seed: int = 0) -> nn.Module:
    """A 2-layer, 32-wide random encoder in evaluation mode; the default initialisation is too small to tell masks
    apart, so every matrix is made five times larger."""
    torch.manual_seed(seed)
    model = MADE[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
    return model


def batch(seed: int = 0, rows: int = 3, tokens: int = 7) -> dict[str, Tensor]:
    """Token ids 5 ... 49 without padding, and an attention mask that leaves out the last token of the last row."""
    ids = torch.randint(5, 50, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    attention = torch.ones_like(ids)
    attention[-1, -1] = 0
    return {"input_ids": ids, "attention_mask": attention}
