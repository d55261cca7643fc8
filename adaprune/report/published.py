"""The published numbers, as tables that ours stand beside."""

from pathlib import Path

import pandas as pd

from adaprune.methods import METHODS

_FOLDER = Path(__file__).parent / "paper"


def paper_results() -> pd.DataFrame:
    """The published scores (Fig. 2, supplement Table 2): task, metric, method, sparsity, score, std, runs."""
    figures = pd.read_csv(_FOLDER / "results.csv", comment="#")
    ours = {"feature_extraction": "features", "random_mask": "random", "mp": "gmp"}
    return figures.assign(method=figures["method"].replace(ours))


def beside_paper(points: pd.DataFrame) -> pd.DataFrame:
    """Our means beside the published ones (supplement Table 2), wherever task, method and sparsity are the same.

    The paper's are BERT-base's on all training rows, so a difference is not only the method's.

    Args:
        points: of `comparison.curves`; of a method in several ways the one with the most runs.

    Returns:
        ``task``, ``method``, ``sparsity`` (missing without a mask), ``paper``, ``ours``, ``difference`` (ours less the
        paper's), ``seeds``, ``model``, ``rows`` (0: all).
    """
    published = paper_results().rename(columns={"score": "paper"}).dropna(subset="paper")
    bare = [name for name, method in METHODS.items() if not method.mask]  # the paper has them at sparsity 0
    published["sparsity"] = published["sparsity"].where(~published["method"].isin(bare))
    ours = points.sort_values("seeds", kind="stable").rename(columns={"mean": "ours", "max_train_examples": "rows"})
    ours = ours.drop_duplicates(["model", "rows", "task", "method", "sparsity"], keep="last")
    found = published.merge(ours, on=["task", "method", "sparsity"])
    found["difference"] = found["ours"] - found["paper"]
    columns = ["task", "method", "sparsity", "paper", "ours", "difference", "seeds", "model", "rows"]
    return found[columns].sort_values(columns[:3], ignore_index=True)


def paper_ablations() -> pd.DataFrame:
    """The published ablations (Tables 3 and 4): ablation, task, metric, sparsity, score, delta (to no ablation)."""
    return pd.read_csv(_FOLDER / "ablations.csv", comment="#")
