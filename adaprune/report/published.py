"""The paper's numbers and claims, and what the records say of each: tables of 02_compare and 08_claims.

A claim that compares scores names two kinds of runs, the sign that their difference should have, and its least size;
`contrasts` pairs and judges them. Claims about masks and cost are looked up in each run.
"""

import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from adaprune.methods import METHODS
from adaprune.report import contrasts

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
        points: of `comparison.curves`; if a method was run in several ways, that with the most runs counts.

    Returns:
        ``task``, ``method``, ``sparsity`` (missing without a mask), ``paper``, ``ours``, ``difference`` (ours less the
        paper's), ``seeds``, ``model``, ``rows`` (0: all).
    """
    published = paper_results().rename(columns={"score": "paper"}).dropna(subset="paper")
    bare = [name for name, method in METHODS.items() if not method.mask]  # the paper has them at sparsity 0
    published["sparsity"] = published["sparsity"].where(~published["method"].isin(bare))
    more = -points["way"].str.len()  # of ways with as many runs, the one with fewer settings of its own counts
    ours = points.assign(more=more).sort_values(["seeds", "more"], kind="stable")
    ours = ours.rename(columns={"mean": "ours", "max_train_examples": "rows"})
    ours = ours.drop_duplicates(["model", "rows", "task", "method", "sparsity"], keep="last")
    found = published.merge(ours, on=["task", "method", "sparsity"])
    found["difference"] = found["ours"] - found["paper"]
    columns = ["task", "method", "sparsity", "paper", "ours", "difference", "seeds", "model", "rows"]
    return found[columns].sort_values(columns[:3], ignore_index=True)


def paper_ablations() -> pd.DataFrame:
    """The published ablations (Tables 3 and 4): ablation, task, metric, sparsity, score, delta (to no ablation)."""
    return pd.read_csv(_FOLDER / "ablations.csv", comment="#")


class Compared(NamedTuple):
    """A claim that the difference in score of two kinds of runs has a sign and is larger than a margin."""

    claim: str
    place: str
    ours: dict[str, Any]
    theirs: dict[str, Any]
    sign: int = 1
    margin: float = 0.0


AGAIN = {"ablation": "head"}
PRINTED = {"recipe": "paper", "scope": "encoder+embeddings", "epochs": 0.0, "batch_size": 0}  # nothing changed
FAIR = {"pooled_by": "own"}  # on the [CLS] of a checkpoint that was made for means, frozen features score near 0.3
IMP_99 = {"sparsity": 0.99, "epochs": 3.0}, {"method": "imp", "sparsity": 0.99, "epochs": 1.0}  # per round, 22 rounds
BEATS_IMP = "It is better than iterative magnitude pruning"
FALLEN = "At 0.99 {} magnitude pruning has fallen to chance"
BEATS_GMP = "It is better than gradual magnitude pruning"
AS_PUBLISHED = "published but for the step, the start's spread and the growing penalty"
CANCELLED = "(the step cancels most of what t_s changes)"
ONE_NUMBER = "measured, not judged: the paper has one number, of another model"
COLUMNS = ["claim", "in the paper", "settings", "our records", "verdict", "records"]
SHOWN = 3  # runs of a folder that a row links


def compared(collapse: float = 0.1) -> list[Compared]:
    """The claims that compare scores; ``collapse``: a score that falls by more counts as lost."""
    return [
        Compared(
            "At 0.5 it is better than feature extraction (in the paper on STS-B and MNLI, not on SST-2)",
            "Fig. 2", {"sparsity": 0.5} | FAIR, {"method": "features", "head": "mlp"} | FAIR,
        ),
        Compared(BEATS_IMP, "Fig. 2", {}, {"method": "imp"}),
        Compared(BEATS_GMP, "Fig. 2", {}, {"method": "gmp"}),
        Compared("It is better than a random mask", "Fig. 2", {}, {"method": "random"}),
        Compared("At 0.2 it stays below fine-tuning", "Fig. 2", {"sparsity": 0.2}, {"method": "finetune"}, -1),
        Compared(
            "STS-B scores higher at 0.5 than at 0.2",
            "Fig. 2", {"task": "stsb", "sparsity": 0.5}, {"task": "stsb", "sparsity": 0.2},
        ),
        Compared(
            "The place of a connection counts: a mask shuffled within its matrices is worse",
            "Table 3", {"ablation": "shuffle"}, AGAIN, -1,
        ),
        Compared(
            "The weights count: times N(1, 0.01), head trained anew, the score is lost",
            "Table 3", AGAIN | {"noise": 0.01}, AGAIN, -1, collapse,
        ),
        Compared("Recovery helps: without it the score is lower", "Table 4", {"recovery": False}, {}, -1),
        Compared(
            "Recovery helps, with the sparsity reached at the end of training",
            "Table 4", {"recovery": False, "reach": 1.0}, {"reach": 1.0}, -1,
        ),
        Compared("The published settings beat a random mask", "text", PRINTED, PRINTED | {"method": "random"}),
        Compared(f"t_s = 1 is better than 0.1 {CANCELLED}", "text", {}, {"temperature": 0.1}),
        Compared(f"t_s = 1 is better than 0.01 {CANCELLED}", "text", {}, {"temperature": 0.01}),
    ]  # fmt: skip


def claims(records: pd.DataFrame, results_dir: str | Path, collapse: float = 0.1) -> pd.DataFrame:
    """One row per claim: ``claim``, ``in the paper``, ``settings``, ``our records``, ``verdict``, ``records`` (files).

    Args:
        records: of `gains.with_rows`.
        results_dir: the folder that they were read from.
        collapse: a score that falls by more than this counts as lost.
    """
    asked, chance = compared(collapse), contrasts.chance_of(records)
    pairs = {of.claim: contrasts.contrast(records, of.ours, of.theirs) for of in asked}
    pairs[BEATS_IMP] = pd.concat([pairs[BEATS_IMP], contrasts.contrast(records, *IMP_99)])  # whose epochs differ
    said = contrasts.verdicts([(pairs[of.claim], of.sign, of.margin) for of in asked], chance)
    rows = [
        (
            of.claim, of.place, AS_PUBLISHED if of.ours.get("recipe") == "paper" else "ours",
            contrasts.evidence(pairs[of.claim], chance),
            verdict + contrasts.below_probe(pairs[of.claim], chance, records),
            [*pairs[of.claim]["record"], *pairs[of.claim]["record_theirs"]],
        )
        for of, verdict in zip(asked, said, strict=True)
    ]  # fmt: skip
    for rival, of in (("iterative", BEATS_IMP), ("gradual", BEATS_GMP)):
        rows.append(_fallen(FALLEN.format(rival), pairs[of].query("sparsity == 0.99"), chance))
    rows += _of_single_runs(records, pairs[BEATS_IMP], Path(results_dir))
    return pd.DataFrame(rows, columns=COLUMNS)


def _fallen(claim: str, pairs: pd.DataFrame, chance: dict[str, float]) -> tuple:
    """The row of `claims` on a rival whose mean should be at chance in every cell of several pairs."""
    found = contrasts.cells(pairs, chance).query("pairs > 1")
    found["chance"] = found["task"].map(lambda task: chance.get(task, -math.inf)).astype(float)
    above = found[found["score_theirs"] > found["chance"]]
    said = contrasts.judged([False] * len(above) + [True] * (len(found) - len(above)))
    verdict = f"{said}: not so for {contrasts.places(above)}" if len(above) else said
    numbers = [
        f"{contrasts.setting(of)}: {of['score_theirs']:.3f}, at chance up to {of['chance']:.3f} ({of['pairs']} runs)"
        for of in found.to_dict("records")
    ]
    return claim, "Fig. 2", "ours", "; ".join(numbers) or "-", verdict, pairs["record_theirs"].tolist()


def _of_single_runs(records: pd.DataFrame, with_imp: pd.DataFrame, results_dir: Path) -> list[tuple]:
    """The claims about masks and cost, rows of `claims`; ``with_imp``: pairs of adaprune and IMP."""
    every = records[(records["method"] == "adaprune") & (records["noise"] == 0)]
    exact = ((every["mask_sparsity"] - every["sparsity"]).abs() < 1e-3).tolist()
    shorter = (with_imp["train_seconds"] < with_imp["train_seconds_theirs"]).tolist()
    levels = ", ".join(f"{level:g}" for level in sorted(set(with_imp["sparsity"])))
    wide = every[(every["scope"] == "encoder+embeddings") & (every["sparsity"] >= 0.9)]
    counts = contrasts.mask_counts(wide, results_dir).pivot_table(index="record", columns="group", values="removed")
    counts = counts.join(wide.set_index("record")["sparsity"]) if "seen" in counts else counts[:0]
    # Unseen words have no gradient: a claim about learning is one about the rows of seen words.
    shares, more_go = [], []
    for level, of in counts.groupby("sparsity") if len(counts) else []:
        seen, unseen = of["seen"] - of["encoder"], of["unseen"] - of["encoder"]
        out = "; left out, one run" if len(of) < 2 else ""
        shares.append(
            f"at {level:g} removed, less the encoder's share: of seen words {seen.mean():+.3f}, of unseen "
            f"{unseen.mean():+.3f} ({len(of)} run{'s' * (len(of) > 1)}{out})"
        )
        more_go += [] if out else (seen > 0).tolist()
    embeddings = "; ".join(shares) or "-"
    returned, of_mnli = _came_back(every, results_dir)
    back = [contrasts.setting(run) for run in of_mnli.to_dict("records")[:1]]
    back = f"{''.join(back)}: {', '.join(f'{share:.3f}' for share in returned)} of what is kept"
    intact = every["weights_intact"].tolist()
    told = [
        ("No pre-trained weight is changed", "text", f"{sum(intact)} of {len(intact)} runs", intact, every),
        ("Any sparsity can be asked for", "text", f"{sum(exact)} of {len(exact)} within 0.001", exact, every),
        ("One shot takes less time than IMP", "text", f"{sum(shorter)} of {len(shorter)} pairs, at {levels or '-'}",
         shorter, with_imp),
        ("At high sparsity more goes in the embeddings", "Fig. 3", embeddings, more_go, wide),
        ("12.3 % of a 0.99-sparse MNLI mask came back", "text", back if returned else "-", returned, of_mnli),
        ("Near-optimality", "Theorem 1", "its constant is about 4e7 at these temperatures", [], wide[:0]),
        ("t_l = 1e5 is the best of those tried", "text", "the mask here is the exact step", [], wide[:0]),
    ]  # fmt: skip
    rows = []
    for claim, place, numbers, holds, runs in told:
        verdict = ONE_NUMBER if holds is returned and returned else contrasts.judged(holds)
        files = [*runs["record"], *runs.get("record_theirs", [])] if len(holds) else []
        rows.append((claim, place, "ours", numbers, verdict, files))
    return rows


def _came_back(every: pd.DataFrame, results_dir: Path) -> tuple[list[float], pd.DataFrame]:
    """The share of the kept connections of MNLI's masks at 0.99 that had been pruned before, of 04_topology; the runs.

    04_topology measures it on snapshots, which are not committed, and leaves the numbers beside the records.
    """
    runs = every[(every["task"] == "mnli") & (every["sparsity"] == 0.99)]
    shares, measured = [], []
    for run in runs.to_dict("records"):
        stored = (results_dir / run["record"]).parent / "recovery.csv"
        steps = pd.read_csv(stored) if stored.is_file() else pd.DataFrame({"run": [], "share": []})
        steps = steps[steps["run"] == f"mnli 0.99 seed {run['seed']}"]
        if len(steps):
            shares.append(float(steps["share"].iloc[-1]))
            measured.append(run["record"])
    return shares, runs[runs["record"].isin(measured)]


def claims_in_markdown(found: pd.DataFrame, results_dir: str | Path, beside: str | Path) -> str:
    """`claims` in Markdown; each row links its folders of records, and of each the first runs; cells can be unfolded.

    Args:
        found: of `claims`.
        results_dir: the folder that the records were read from.
        beside: the folder that the text will stand in, which links start from.

    Raises:
        FileNotFoundError: a run that a row names is not there.
    """
    lines = ["| | claim | verdict | in the paper | settings | our records | runs |", "| --- " * 7 + "|"]
    for number, (claim, place, settings, told, verdict, records) in enumerate(
        found[COLUMNS].itertuples(index=False), 1
    ):
        by_folder: dict[Path, list[Path]] = {}
        for record in sorted({Path(results_dir, name) for name in records}):
            if not record.is_file():
                raise FileNotFoundError(record)
            by_folder.setdefault(record.parent, []).append(record)
        links = [_links(folder, files, beside) for folder, files in by_folder.items()]
        verdict = re.sub("^.*?(?= in the mean for | for |: |$)", r"**\g<0>**", verdict, count=1)
        cells = re.split(r"; (?![^()]*\))", told)  # not inside brackets
        if len(cells) > 1:
            told = f"<details><summary>{len(cells)} cells</summary>{'<br>'.join(cells)}</details>"
        lines.append(f"| {number} | {claim} | {verdict} | {place} | {settings} | {told} | {'; '.join(links) or '-'} |")
    return "\n".join(lines)


def _links(folder: Path, files: list[Path], beside: str | Path) -> str:
    """A folder's records that a claim rests on: how many, a link to the folder, links to the first."""
    first = [f"[{number}]({os.path.relpath(file, beside)})" for number, file in enumerate(files[:SHOWN], 1)]
    more = f" and {len(files) - SHOWN} more" * (len(files) > SHOWN)
    return f"[{folder.name}]({os.path.relpath(folder, beside)}): {', '.join(first)}{more}"
