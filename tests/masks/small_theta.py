"""A small theta, gradients for it, and an optimiser that walks it: what the tests of AdaPrune share."""

import torch

from adaprune.masks.optim import AdaPrune

RULES = ("adam", "sgd", "adafactor")
RATE = {"adam": 1e-3, "sgd": 0.05, "adafactor": 1e-3}  # both move theta by its own size within 100 steps


def zero():
    return torch.zeros((), dtype=torch.float64)


def start(size=(8, 5), dtype=torch.float64, seed=0):
    """theta_0 ~ N(0.01, 0.01): some start pruned, and a hundred steps carry many across 0."""
    return 0.01 * (1 + torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(seed)))


def gradients(steps=100, size=(8, 5), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, dtype=torch.float64, generator=generator) / 50 for _ in range(steps)]


def masked_optimiser(theta, **options):
    return AdaPrune([{"params": [theta], "masked": True, "threshold": zero()}], **options)


def threshold(optimiser):
    return float(optimiser.param_groups[0]["threshold"])


def walk(optimiser, parameter, grads):
    """Yields after each step the parameter and the threshold."""
    for grad in grads:
        parameter.grad = grad.clone()
        optimiser.step()
        yield parameter.detach().clone(), threshold(optimiser)


def row_gradients(steps=25):
    """Sparse gradients of a (10, 3) table, with repeated rows; row 9 never occurs."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        rows = torch.randint(0, 9, (1, 6), generator=generator)
        values = torch.randn(6, 3, dtype=torch.float64, generator=generator) / 50
        yield torch.sparse_coo_tensor(rows, values, (10, 3), check_invariants=False)


def averages(optimiser, parameter):
    return [(name, value) for name, value in optimiser.state[parameter].items() if torch.is_tensor(value)]
