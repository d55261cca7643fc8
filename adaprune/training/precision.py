"""What ``precision`` means on this machine, and bfloat16 on processors without instructions for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode

NO_HALF = ("deberta",)  # its masked attention scores are float32's smallest number, which half types do not reach
PRODUCTS = {getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm")}


def half_of(precision: str) -> str:
    """The type that products are computed in: ``precision`` itself; with "auto", what the device supports."""
    if precision != "auto":
        return precision
    return "fp32" if not torch.cuda.is_available() else "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def precision_for(asked: str, family: str) -> str:
    """The precision of a run on a model of ``family``, its config's ``model_type``: "fp32" for "auto" in `NO_HALF`.

    Raises:
        ValueError: half precision is asked for, and the family cannot compute in it.
    """
    if family not in NO_HALF or half_of(asked) == "fp32":
        return asked
    if asked != "auto":
        raise ValueError(
            f"precision={asked!r} does not work with {family} models in transformers: use precision='fp32'"
        )
    return "fp32"


def lacks_bf16() -> bool:
    """Whether bfloat16 products would run on a CPU without instructions for them, as far as torch can tell."""
    mkldnn = torch.backends.mkldnn.is_available()
    return not torch.cuda.is_available() and mkldnn and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def products_of(precision: str) -> AbstractContextManager:
    """The context in which to train and predict with ``precision``; it changes something only where `lacks_bf16`."""
    return _ProductsInFloat32() if precision == "bf16" and lacks_bf16() else nullcontext()


class _ProductsInFloat32(TorchDispatchMode):
    """Computes products of bfloat16 matrices in float32, and rounds the result.

    That is what instructions for bfloat16 do: the product of two such numbers is exact in float32, in which the sum is
    kept; only the order of the sum differs. torch's own loop for processors without them is ten times slower.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS and args[-1].dtype == torch.bfloat16 and args[-1].device.type == "cpu":
            return function(*(matrix.float() for matrix in args), **(kwargs or {})).bfloat16()
        return function(*args, **(kwargs or {}))
