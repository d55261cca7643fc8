"""The small base and masks of the files in samples/, from whole numbers alone, so that they are the same for ever.

format_1.safetensors and format_2.safetensors were written by the last commits that wrote no later format,
format_3.safetensors by the first that wrote flips, with

    save_mask(path, masks(number), head(), CARD, Base())
"""

from pathlib import Path

import torch
from torch import nn

FOLDER = Path(__file__).with_name("samples")
SHAPE, DENSITIES = (60, 80), (0.5, 0.22, 0.03, 0.97)
CARD = {"task": "sample", "labels": ["no", "yes", "maybe é"], "metrics": {"f1": 0.5}, "sparsity": 0.55}


def numbers(shape: tuple[int, ...], factor: int, prime: int) -> torch.Tensor:
    """i^3 factor mod prime, over prime: numbers in [0, 1) in no visible order, each the nearest float32."""
    found = torch.arange(1, torch.Size(shape).numel() + 1).pow(3).remainder(prime).mul(factor).remainder(prime)
    return (found.double() / prime).float().view(shape)


class Base(nn.Module):
    """Enough of an encoder: four linear layers in numbered layers, and a table."""

    @torch.no_grad()
    def __init__(self):
        super().__init__()
        self.layer = nn.ModuleList(nn.Linear(SHAPE[1], SHAPE[0], bias=False) for _ in DENSITIES)
        self.table = nn.Embedding(3, 2)
        for number, weight in enumerate(self.parameters()):
            weight.copy_(numbers(weight.shape, 7919 + number, 10007) - 0.5)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table


def masks(number: int) -> dict[str, torch.Tensor]:
    """A mask for each layer, nearly empty to nearly full; for format 3 the largest half of the weights, but for flips.

    Of the weights from 0.2 to 0.3 half are flipped, of the others one in a thousand; a row of each is whole.
    """
    drawn = enumerate(DENSITIES)
    if number < 3:
        return {f"layer.{layer}.weight": numbers(SHAPE, 31 + layer, 9973) < density for layer, density in drawn}
    found = {}
    for layer, weight in enumerate(module.weight.detach() for module in Base().layer):
        near = (weight.abs() > 0.2) & (weight.abs() < 0.3)
        chance = torch.where(near, 0.5, 0.001)
        found[f"layer.{layer}.weight"] = (weight.abs() > 0.25) ^ (numbers(SHAPE, 31 + layer, 9973) < chance)
        found[f"layer.{layer}.weight"][layer] = True
    return found


def head() -> dict[str, torch.Tensor]:
    shapes = {"mix": (2,), "hidden.weight": (5, 5), "hidden.bias": (5,), "output.weight": (3, 5), "output.bias": (3,)}
    return {name: numbers(shape, 17, 101) - 0.5 for name, shape in shapes.items()}
