"""The published numbers, as tables that ours stand beside."""

from pathlib import Path

import pandas as pd

_FOLDER = Path(__file__).parent / "paper"


def paper_results() -> pd.DataFrame:
    """The published scores (Fig. 2, supplement Table 2): task, metric, method, sparsity, score, std, runs."""
    figures = pd.read_csv(_FOLDER / "results.csv", comment="#")
    ours = {"feature_extraction": "features", "random_mask": "random", "mp": "gmp"}
    return figures.assign(method=figures["method"].replace(ours))


def paper_ablations() -> pd.DataFrame:
    """The published ablations (Tables 3 and 4): ablation, task, metric, sparsity, score, delta (to no ablation)."""
    return pd.read_csv(_FOLDER / "ablations.csv", comment="#")
