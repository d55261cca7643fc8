"""The README's numbers are those of committed records, and its links lead somewhere."""

import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest

from adaprune.methods import METHODS
from adaprune.report import contrasts
from adaprune.report.comparison import curves, retained, with_ways
from adaprune.runs.records import table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")
RECIPE = ("stsb", "mrpc", "rte", "sst2")
QUICK = (("stsb", 0.5), ("stsb", 0.9), ("mrpc", 0.5), ("mrpc", 0.9))

ABLATED = {
    "nothing": {},
    "head trained anew": {"ablation": "head"},
    "mask shuffled within its matrices": {"ablation": "shuffle"},
    "weights x N(1, 0.01)": {"ablation": "head", "noise": 0.01},
    "weights x N(1, 0.1)": {"ablation": "head", "noise": 0.1},
    "theta starts normal": {"initial_theta": "normal"},
    "theta starts uniform": {"initial_theta": "uniform"},
    "t_s = 0.1": {"temperature": 0.1},
    "t_s = 0.01": {"temperature": 0.01},
    "linear head": {"head": "linear"},
    "embeddings in scope": {"scope": "encoder+embeddings"},
    "embeddings in scope, unseen words too": {"scope": "encoder+embeddings", "prune_unseen": True},
}  # rows of the table of ablations -> fields of their runs


def rows(heading: str, columns: int) -> dict[str, list[str]]:
    """Name of a row of the table of results under a heading, with so many columns of numbers -> its cells."""
    part = re.split(r"\n##", README.split(f"{heading}\n")[1])[0]
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in part.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in cells if re.match(r"^[\d./ ]+$", row[-1]) and len(row) == columns + 1}


@pytest.mark.parametrize(
    ("heading", "folder"),
    [
        ("### Twelve epochs: the tuned recipe", "recipe_long"),
        ("### Three epochs, three seeds", "recipe"),
        ("### At base size", "base_size"),
    ],
)
def test_the_tables_of_the_recipe_say_what_the_records_say(heading, folder):
    records = table(ROOT / "results" / folder)
    runs = with_ways(records)
    shares = {(row.method, row.sparsity): row for row in retained(runs).fillna(0.0).itertuples()}
    sparsities = records["mask_sparsity"].round(6).fillna(0.0)
    by_row = {key: group for key, group in records.groupby([records["method"], sparsities])}
    names = {name: (*name.split(), "0") for name in rows(heading, len(RECIPE) + 3)}
    shown = {(names[name][0], float(names[name][1])): cells for name, cells in rows(heading, len(RECIPE) + 3).items()}
    assert set(shown) == set(by_row)
    for key, (*scores, mean, worst, seeds) in shown.items():
        of_task = by_row[key].groupby("task")["score"]
        expected = [of_task.mean().get(task, math.nan) for task in RECIPE]
        kept = shares.get(key)
        expected += [kept.mean, *[kept.low, kept.high] * (kept.seeds > 1), kept.worst] if kept else [math.nan] * 2
        spread = re.findall(r"-?[\d.]+|-", mean)  # mean [low, high] where there are several seeds
        told = [math.nan if cell == "-" else float(cell) for cell in (*scores, *spread, worst)]
        assert told == pytest.approx(expected, abs=5.1e-4, nan_ok=True), key
        assert int(seeds) == of_task.size().min(), key


def test_the_table_of_methods_is_what_they_say_of_themselves():
    """After a change of a method's line, source or kind: put the lines that fail here into the README."""
    left = {True: "a mask", False: "no mask"}
    weights = {True: "weights intact", False: "weights trained"}
    told = [
        f"| `{m.name}` | {m.line} | {m.source or '-'} | {left[m.mask]}, {weights[m.weights_intact]} |"
        for m in METHODS.values()
    ]
    table = README.partition("| `method` | what it does | source | what it leaves |\n|---|---|---|---|\n")[2].split(
        "\n\n"
    )[0]
    for row in told:
        assert row in table.split("\n"), f"README's table of methods lacks the line: {row}"
    assert table.split("\n") == told


def test_the_majority_class_and_what_it_keeps(glue_dir):
    floors = {"stsb": 0.0}
    for task in ("mrpc", "rte", "sst2"):
        floors[task] = (
            pd.read_parquet(glue_dir / task / "validation.parquet")["label"].value_counts(normalize=True).max()
        )
    for folder in ("recipe_long", "recipe"):
        scores = with_ways(table(ROOT / "results" / folder)).groupby(["method", "task"])["score"].mean()
        kept = [floors[task] / scores["finetune", task] for task in RECIPE]
        cells = [*floors.values(), sum(kept) / len(kept), 0.0, "-"]
        row = " | ".join(cell if cell == "-" else f"{cell:.3f}" for cell in cells)
        assert f"| majority class | {row} |" in README
    assert f"keeps {kept[1]:.2f} of MRPC and {kept[2]:.2f} of RTE" in README
    runs = table(ROOT / "results" / "recipe").groupby(["method", "sparsity", "task"])["score"].mean()
    above = [(runs["adaprune", 0.5, t] - floors[t]) / (runs["finetune", 0.0, t] - floors[t]) for t in RECIPE]
    assert f"the mean is {sum(above) / len(above):.2f}" in README


def test_the_table_of_the_quick_budget_says_what_the_records_say():
    runs = with_ways(table(ROOT / "results" / "quick"))
    points = curves(runs)
    shown = rows("### All methods in the quick budget", len(QUICK) + 1)
    assert set(shown) == set(points["way"])
    for way, (*cells, seeds) in shown.items():
        of_way = points[points["way"] == way]
        counts = []
        for (task, sparsity), cell in zip(QUICK, cells, strict=True):
            place = of_way["sparsity"].isna() | (of_way["sparsity"] == sparsity)
            found = of_way.loc[place & (of_way["task"] == task), "mean"].tolist()
            assert found == ([] if cell == "-" else [pytest.approx(float(cell), abs=5.1e-4)]), (way, task, sparsity)
            counts.append(int(of_way.loc[place & (of_way["task"] == task), "seeds"].sum()))
        assert seeds in (" / ".join(map(str, counts)), str(counts[0]) if len(set(counts)) == 1 else ""), way


def test_the_table_of_ablations_says_what_the_records_say():
    records = table(ROOT / "results" / "topology")
    records = records[records["sparsity"] == 0.5]
    shown = rows("### Sub-networks, and what the method needs", 4)
    assert len(shown) >= 5
    for name, (*cells, _, seeds) in shown.items():
        found = contrasts.select(records, {"method": "adaprune", **ABLATED[name]})
        of_task = found[found["task"].isin(["stsb", "mrpc"])].groupby("task")["score"]
        means = [of_task.mean().get(task, math.nan) for task in ("stsb", "mrpc")]
        told = [math.nan if cell == "-" else float(cell) for cell in cells]
        assert told == pytest.approx(means, abs=5.1e-4, nan_ok=True), name
        assert int(seeds) == of_task.size().min(), name


MADE_AGAIN = {
    "recovery, the sparsity stands at the end": {"reach": 1.0},
    "no recovery, the sparsity stands at the end": {"reach": 1.0, "recovery": False},
    "recovery, the sparsity stands after 0.4 of the steps": {},
    "no recovery, the sparsity stands after 0.4 of the steps": {"recovery": False},
    "theta starts constant": {"initial_theta": "constant"},
    "theta starts normal": {"initial_theta": "normal"},
    "theta starts uniform": {"initial_theta": "uniform"},
}


def test_the_control_made_again_says_what_the_records_say():
    records = table(ROOT / "results" / "ablations")
    shown = rows("### Recovery, made again", 5)
    assert list(shown) == list(MADE_AGAIN)
    for name, (*cells, _, seeds) in shown.items():
        found = contrasts.select(records, {"method": "adaprune", **MADE_AGAIN[name]})
        of_task = found.groupby("task")["score"]
        means = [of_task.mean().get(task, math.nan) for task in ("stsb", "cola", "mrpc")]
        assert [math.nan if cell == "-" else float(cell) for cell in cells] == pytest.approx(
            means, abs=5.1e-4, nan_ok=True
        )
        assert int(seeds) == of_task.size().min(), name


def test_what_is_said_of_the_masks_is_in_the_tables_beside_the_figures():
    folder = ROOT / "figures" / "topology"
    masks, overlaps, starts = (pd.read_csv(folder / f"{name}.csv") for name in ("masks", "overlaps", "starts"))
    part = README.split("### Sub-networks, and what the method needs\n")[1].split("\n## ")[0]
    learned = starts[starts["start"] == "|w|"].groupby("sparsity")["with magnitude"].mean()
    assert f"At 0.5 the two share {learned[0.5]:.2f}" in part and f"at 0.9 {learned[0.9]:.2f} (" in part
    kin = overlaps[overlaps["sparsity"] == 0.99].groupby(["differs in", "methods"])["jaccard"].mean()
    methods, tasks = kin["method"], kin["task"]
    assert f"IMP and GMP share {methods['gmp, imp']:.2f}" in part
    assert f"{methods['adaprune, gmp']:.2f} with GMP and {methods['adaprune, imp']:.2f} with IMP" in part
    three = [f"{tasks[f'{name}, {name}']:.2f}" for name in ("imp", "gmp", "adaprune")]
    assert "IMP's masks share {}, GMP's {}, `adaprune`'s {}.".format(*three) in part
    dead = masks[masks["asked"] == 0.99].groupby("method")[["dead heads", "dead FFN neurons", "dead head units"]].mean()
    assert "0.8 of the FFN neurons" in part and round(dead.loc["adaprune", "dead FFN neurons"], 1) == 0.8
    assert f"{dead.loc['adaprune', 'dead heads']:.0f} of 72 heads" in part
    assert (
        dead.loc["adaprune", "dead head units"] > 0.5 and dead.loc[["imp", "gmp"], "dead heads"].between(13, 15).all()
    )
    back = pd.read_csv(folder / "recovery.csv").groupby("run")["share"].last()
    assert f"{back.min():.2f} to {back.max():.2f} of what is kept" in part
    records = table(ROOT / "results" / "topology")
    plain = contrasts.select(records, {}).groupby(["task", "sparsity"])["score"].mean()
    magnitude = contrasts.select(records, {"method": "magnitude"}).groupby(["task", "sparsity"])["score"].mean()
    (a, b), (c, d) = [(plain["stsb", at], magnitude["stsb", at]) for at in (0.5, 0.9)]
    assert f"on STS-B are {a:.2f} against {b:.2f}, and {c:.2f} against {d:.2f}" in part
    assert f"not here, {a:.3f} against {plain['stsb', 0.2]:.3f}" in part
    assert f"On SST-2 `adaprune` has {plain['sst2', 0.99]:.2f}" in part


def test_what_is_said_of_twelve_epochs_at_099():
    folder = ROOT / "figures" / "topology_long"
    masks, overlaps, back = (pd.read_csv(folder / f"{name}.csv") for name in ("masks", "overlaps", "recovery"))
    part = " ".join(README.split("### Sub-networks, and what the method needs\n")[1].split("\n## ")[0].split())
    kin = overlaps.groupby(["differs in", "methods"])["jaccard"].mean()
    told = kin["method", "adaprune, gmp"], kin["task", "adaprune, adaprune"]
    assert "it shares {:.2f} with GMP, between tasks {:.2f}, and".format(*told) in part
    last = back.groupby("run")["share"].last()
    shares = [last[last.index.str.startswith(task)].mean() for task in ("stsb", "sst2", "mnli")]
    assert "{:.2f} (STS-B), {:.2f} (SST-2) and {:.2f} (MNLI) of what it keeps".format(*shares) in part
    dead = masks.groupby("method")["dead heads"].mean()
    assert f"with 12 epochs {dead['adaprune']:.0f} (GMP {dead['gmp']:.0f})" in part
    score = table(ROOT / "results" / "topology_long").groupby(["task", "method"])["score"].mean().round(2)
    assert f"({score['stsb', 'adaprune']} with 12 epochs, GMP {score['stsb', 'gmp']})" in part
    assert f"with 12 epochs {score['sst2', 'adaprune']} and GMP {score['sst2', 'gmp']}," in part
    assert f"`adaprune` has {score['mnli', 'adaprune']} and GMP {score['mnli', 'gmp']}; chance" in part


def test_the_list_of_tried_settings_says_what_the_records_say():
    folder = ROOT / "results" / "quick_tuning"
    runs = with_ways(table(folder))
    found = {(row["way"], row["sparsity"]): row["selection_score"] for row in runs.to_dict("records")}
    lines = re.findall(r"^\| (\S.*) \| ([\d.-]+) \| ([\d.-]+) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    shown = {
        (way, s): float(cell) for way, *cells in lines for s, cell in zip((0.5, 0.9), cells, strict=True) if cell != "-"
    }
    assert shown == pytest.approx(found, abs=5.1e-4)


def test_the_list_of_trials_says_what_the_records_say():
    folder = ROOT / "results" / "recipe_trials"
    lines = re.findall(r"^\| (\w+) \| (\w+).* \| ([\d.]+) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    found = [(row.task, row.method, f"{row.selection_score:.3f}") for row in table(folder).itertuples()]
    assert sorted(lines) == sorted(found)


def test_what_a_task_costs_is_what_was_measured():
    found = json.loads((ROOT / "benchmarks" / "results" / "switch_cost.json").read_text())
    size, switch = found["bytes"], {way: row["processor_seconds"] for way, row in found["switch"].items()}
    ways = {
        "mask, sparsity 0.5, to a task that is kept": "mask, kept", "mask, sparsity 0.5, to another": "mask, not kept",
        "LoRA r = 8, `set_adapter`": "lora", "LoRA r = 8, merged": "lora, merged",
    }  # fmt: skip
    part = README.split("## Many tasks, one base\n")[1].split("\n## ")[0]
    shown = dict(re.findall(r"^\| (\S.*?) \| ([\d,]+ \| \d+) \|$", part, re.MULTILINE))
    assert set(shown) == {*ways, "checkpoint, in the page cache"}
    for called, cells in shown.items():
        way = ways.get(called, "checkpoint")
        assert cells == f"{size[way.split(',')[0]]:,} | {switch[way] * 1000:.0f}"
    rows = found["coding"]
    assert all(f"{row['file_bytes']:,}" in part and f"{row['head_bytes']:,}" in part for row in rows)
    *over, sparsest = [100 * (row["coded_bytes"] / row["bound_bytes"] - 1) for row in rows]
    assert f"coded to {max(over):.1f} %\nabove the entropy bound, at 0.999 {sparsest:.1f} %" in part
    assert max(row["encode_seconds"] for row in rows) < 0.3 and max(row["decode_seconds"] for row in rows) < 0.1
    assert [bar["what"] for bar in found["bars"] if not bar["reached"]] == ["switch seconds, mask, not kept"]
    assert f"copying the matrices alone takes {1000 * found['parts']['a plain copy of the matrices']:.0f}\n" in part


def test_what_inference_costs_is_what_was_measured():
    page = (ROOT / "docs" / "costs.md").read_text(encoding="utf8").split("## Inference")[1].split("\n## ")[0]
    places = [("minilm", batch) for batch in ("1x32", "1x128", "8x128", "32x32")] + [("bert-base", "1x32")]
    faster, bars = {}, []
    for part in ("minilm", "minilm_batches", "bert_base"):
        found = json.loads((ROOT / "benchmarks" / "results" / f"inference_{part}.json").read_text())
        bars += found["bars"]
        for row in found["rows"]:
            if row["mask"] in ("", "magnitude"):
                key = row["shape"], row["batch"], row["way"], row["sparsity"]
                faster.setdefault(key, f"{row['faster']['median']:.2f}")
    shown = re.findall(r"^\| (\S.*?) \| ([-\d.]+) \| ([\d. |]+) \|$", page, re.MULTILINE)
    assert len(shown) == 4 + 5 * 4 + 2
    for way, sparsity, cells in shown:
        at = None if sparsity == "-" else float(sparsity)
        assert cells.split(" | ") == [faster[*place, way, at] for place in places], (way, sparsity)
    assert [bar["what"] for bar in bars if not bar["reached"]] == ["auto, stsb at 0.5, minilm 1x32 threads 1"]
    fastest = [faster["minilm", "1x32", "compact, sparse", at] for at in (0.5, 0.8, 0.9, 0.97)]
    said = re.search(r"float32 at sparsity 0.5, ([\d.]+) at 0.8, ([\d.]+) at 0.9 and ([\d.]+) at\n0.97", README)
    assert [f"{float(one):.1f}" for one in fastest[1:]] == list(said.groups())


def test_the_first_example_is_a_prediction_from_the_zoo(capsys):
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    (said,) = re.findall(r"^print\(.*\)  # ([\d.]+)$", example, re.MULTILINE)
    exec(example, {})
    shown = float(re.search(r"tensor\(\[\[([\d.]+)", capsys.readouterr().out)[1])
    assert shown == pytest.approx(float(said), abs=0.0051)


def test_sizes_of_masks_are_those_measured():
    """In the README the ranges in bits per weight, on the page every row of the table."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "mask_size.json").read_text())["rows"]
    plain = [row for row in rows if "task~" in row["name"] and "scope" not in row["name"]]

    def bits(sparsity, epochs):
        some = [row for row in plain if f"sparsity~{sparsity}_" in row["name"] and f"epochs~{epochs}_" in row["name"]]
        found = [8 * row["version 2"] / row["weights"] for row in some]
        return f"{min(found):.2f}", f"{max(found):.2f}"

    low, high = bits(0.5, 3)
    told = f"Learned masks of MiniLM at 0.5 take {low} to {high} bits per weight after 3 epochs and {bits(0.5, 12)[0]}"
    assert f"{told} after 12, at 0.9 {bits(0.9, 3)[0]} and {bits(0.9, 12)[0]}" in " ".join(README.split())
    page = (ROOT / "docs" / "mask_format.md").read_text(encoding="utf8")
    lines = [line for line in page.splitlines() if line.count("|") == 9 and re.search(r"epochs|made up", line)]
    keys = ("bits", "version 1", "version 2", "bound")
    measured = {tuple(f"{row[key]:,}" for key in keys) for row in rows}
    assert len(lines) == 12 and {tuple(cell.strip() for cell in line.split("|")[3:7]) for line in lines} <= measured


def test_links_and_figures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    local = [target for target in targets if "://" not in target]
    assert len(local) >= 5
    assert [target for target in local if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("command", ["make run", "make test", "papermill notebooks/01_adapt.ipynb", "make lab"])
def test_the_commands_are_there(command):
    assert command in README
