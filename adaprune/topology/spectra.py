"""Degrees and spectra of a mask's matrices, boolean arrays (outputs, inputs), and those of random ones."""

import math

import numpy as np
from scipy.linalg import eigh

LEAST_DEGREE = 3  # mean degree from which the Ramanujan criterion is meaningful


def degrees(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In-degree of each output (outputs,) and out-degree of each input (inputs,) of a matrix."""
    return array.sum(axis=1), array.sum(axis=0)


def singular_values(array: np.ndarray, k: int = 2) -> np.ndarray:
    """The k largest singular values of a mask as a 0-1 matrix, largest first, from the smaller Gram matrix."""
    a = array.astype(np.float32)
    gram = a @ a.T if len(a) <= a.shape[1] else a.T @ a  # whole numbers below 2^24, so exact
    return _roots(gram, k)


def composed(first: np.ndarray, second: np.ndarray, k: int = 2) -> np.ndarray:
    """The k largest singular values of first^T second, largest first; both are (units of a head, width).

    With (Q_h, K_h), the entries of the product count the paths through the head from an input of the query to one of
    the key; with (O_h^T, V_h), the paths from the head's input to its output. The (width, width) product is never
    formed:

        sigma(A^T B)^2 = eig(L^T (B B^T) L),   A A^T = L L^T
    """
    a, b = first.astype(float), second.astype(float)
    values, vectors = np.linalg.eigh(a @ a.T)
    root = vectors * np.sqrt(values.clip(0))
    return _roots(root.T @ (b @ b.T) @ root, k)


def spectrum(array: np.ndarray) -> dict[str, float]:
    """Top singular values of a mask, with the Ramanujan bound and the value of a random graph with as many edges.

        gap = mu_1 - mu_2;   ramanujan = sqrt(d_out - 1) + sqrt(d_in - 1) - mu_2,   d: mean degrees
        alone = 2 sqrt(mu_1 - 1) - mu_2;   mu2_random = sqrt(p (1 - p)) (sqrt(m) + sqrt(n))

    Isolated nodes are dropped first, which leaves m outputs, n inputs and density p. If ``ramanujan`` is positive, the
    graph is a better expander than the bound requires. mu2_random is the edge of the bulk of an m x n Bernoulli(p)
    matrix (Bai and Yin 1988); masks with mu_2 above it have structure. It is NaN for p = 1, where nothing is random and
    mu_2 is 0 up to rounding. Both criteria (Hoang et al., ICLR 2023) are NaN below a mean degree of 3.
    """
    mu1, mu2 = (*singular_values(array), 0.0)[:2]
    into, out = degrees(array)
    m, n, kept = np.count_nonzero(into), np.count_nonzero(out), int(into.sum())
    if not kept:
        return dict.fromkeys(("mu1", "mu2", "gap", "ramanujan", "alone", "mu2_random"), math.nan)
    p, enough = kept / (m * n), min(kept / m, kept / n) >= LEAST_DEGREE
    bound = math.sqrt(kept / m - 1) + math.sqrt(kept / n - 1) - mu2 if enough else math.nan
    alone = 2 * math.sqrt(mu1 - 1) - mu2 if enough else math.nan
    random = math.sqrt(p * (1 - p)) * (math.sqrt(m) + math.sqrt(n)) if p < 1 else math.nan
    return {"mu1": mu1, "mu2": mu2, "gap": mu1 - mu2, "ramanujan": bound, "alone": alone, "mu2_random": random}


def _roots(gram: np.ndarray, k: int) -> np.ndarray:
    size = len(gram)
    values = eigh(gram.astype(float), eigvals_only=True, subset_by_index=[max(0, size - k), size - 1])
    return np.sqrt(values[::-1].clip(0))
