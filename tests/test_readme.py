"""The numbers of README and docs/ are those of committed records, their links lead somewhere, the README is short."""

import ast
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from scipy import stats

from adaprune import load_encoder, load_mask, zoo
from adaprune.data import load_task
from adaprune.masks import keep_top, maskable
from adaprune.methods import METHODS
from adaprune.report import contrasts, gains
from adaprune.report.comparison import with_ways
from adaprune.runs.records import table
from adaprune.topology import jaccard
from docs import build_results

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")
PAGES = {page.stem: page.read_text(encoding="utf8") for page in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("page", build_results.PAGES)
def test_tables_are_those_of_the_records(page):
    """After new records: `python docs/build_results.py`."""
    text = (ROOT / page).read_text(encoding="utf8")
    assert build_results.filled(text) == text


def test_a_table_by_another_route():
    """One cell of the table of ablations: the records' files, read by hand."""
    found = []
    for path in (ROOT / "results" / "ablations").glob("task~stsb_*.json"):
        record = json.loads(path.read_text())
        if record["run"]["reach"] == 1.0 and not record["run"]["recovery"]:
            found.append(record["metrics"]["validation"]["spearman"])
    row = next(line for line in PAGES["results"].splitlines() if line.startswith("| adaprune reach 1 recovery False |"))
    assert row.split("|")[-2].strip() == f"{sum(found) / len(found):.3f} ({len(found)})"


def test_what_twelve_epochs_keep():
    for name in ("recipe_long", "recipe"):  # SST-2's seed 0 is the same in both, and the second has three at 0.5
        runs = gains.with_rows(table(ROOT / "results" / name), ROOT / "results" / name)
        marks = gains.landmarks(runs)
        assert set(marks.index[marks["room"] >= gains.ROOM].get_level_values("task")) == {"sst2"}
    found = gains.shares(runs[runs["method"] == "adaprune"], marks, ["sparsity"])
    assert found["seeds"].tolist() == [3, 1, 1, 1]
    said = (
        "there the share of the gain kept is {:.2f} at 0.5 (three seeds), {:.2f} at 0.8, {:.2f} at 0.9 and {:.2f} at "
        "0.97 (one seed each;".format(*found["share"])
    )
    assert said in " ".join(PAGES["results"].split())


def test_what_the_mask_of_movie_reviews_keeps():
    runs = table(ROOT / "results" / "zoo")
    runs = runs[(runs["task"] == "movie_reviews") & (runs["seed"] == 0)].set_index(["precision", "method"])
    floor, page = runs.loc[("fp32", "probe")], " ".join(PAGES["results"].split())
    said = {"fp32": "the mask at 0.5 keeps {} of the gain on the 1,007 reported rows", "bf16": "At 0.9 it keeps {},"}
    held = {"fp32": "and {} on the 906 held-out rows", "bf16": "on held-out rows {} ("}
    for precision, sparsity in (("fp32", 0.5), ("bf16", 0.9)):  # each with its own fine-tuned model
        tuned, ours = (runs.loc[(precision, name)] for name in ("finetune", "adaprune"))
        assert ours["sparsity"] == sparsity
        for which, told in (("score", said), ("selection_score", held)):
            kept = (ours[which] - floor[which]) / (tuned[which] - floor[which])
            assert told[precision].format(f"{kept:.2f}") in page


def test_what_the_papers_settings_score():
    runs = table(ROOT / "results" / "as_printed")
    scores = runs[(runs["task"] == "stsb") & (runs["sparsity"] == 0.5)].sort_values("seed").groupby("method")["score"]
    ours, random = scores.mean()[["adaprune", "random"]]
    of_seeds = " and ".join(f"{score:.3f}" for score in scores.get_group("adaprune"))
    said = f"STS-B at 0.5 gives {ours:.3f} on MiniLM ({of_seeds}), a random mask with a trained head {random:.3f} ("
    assert said in " ".join(PAGES["paper"].split()) and len(scores.get_group("random")) == 2
    assert f"score {ours:.2f} on STS-B at 0.5, a random mask {random:.2f} ([two seeds]" in README
    baselines = table(ROOT / "results" / "baselines").query("task == 'stsb' and method == 'probe'")
    assert f"below the floor of {baselines['score'].iloc[0]:.3f}" in " ".join(PAGES["paper"].split())


def test_what_masks_of_six_topics_keep():
    runs = table(ROOT / "results" / "topics")
    runs = runs[(runs["seed"] == 0) & ~runs["method"].isin(["majority", "soft_movement"])]
    kept = []
    for which in ("score", "selection_score"):
        score = runs.set_index(["method", runs["sparsity"].fillna(0)])[which]
        floor, tuned = score["probe"].iloc[0], score["finetune"].iloc[0]
        kept += [(score["adaprune", at] - floor) / (tuned - floor) for at in (0.5, 0.9)]
    said = "keeps {:.2f} of the gain at 0.5 and {:.2f} at 0.9, on the 339 held-out rows {:.2f} and {:.2f}.".format(
        *kept
    )
    assert said in " ".join(PAGES["results"].split())


def test_what_a_start_at_the_weights_changes_in_the_deciding_test():
    """By another route: the row on starts from the files themselves, whose names leave out what is a method's own."""
    changes: dict[str, list[float]] = {"cola": [], "sst2": []}
    for path in (ROOT / "results" / "deciding").glob("*_initial_theta~magnitude_*.json"):
        record, other = json.loads(path.read_text()), path.with_name(path.name.replace("_initial_theta~magnitude", ""))
        if other.is_file():
            (after, before) = (
                found["metrics"]["validation"][found["metrics"]["primary"]]
                for found in (record, json.loads(other.read_text()))
            )
            changes[record["run"]["task"]].append(after - before)
    cells = [f"{sum(of) / len(of):+.3f} ({sum(one > 0 for one in of)} of {len(of)})" for of in changes.values()]
    assert f"| start: 0 to abs(w) | both | {' | '.join(cells)} |" in PAGES["results"]


def test_the_table_of_methods_is_what_they_say_of_themselves():
    """After a change of a method's line, source or kind: put the lines that fail here into docs/use.md."""
    left = {True: "a mask", False: "no mask"}
    weights = {True: "weights intact", False: "weights trained"}
    told = [
        f"| `{m.name}` | {m.line} | {m.source or '-'} | {left[m.mask]}, {weights[m.weights_intact]} |"
        for m in METHODS.values()
    ]
    table = (
        PAGES["use"]
        .partition("| `method` | what it does | source | what it leaves |\n|---|---|---|---|\n")[2]
        .split("\n\n")[0]
    )
    for row in told:
        assert row in table.split("\n"), f"the table of methods in docs/use.md lacks the line: {row}"
    assert table.split("\n") == told


def test_what_is_said_of_the_masks_is_in_the_tables_beside_the_figures():
    folder = ROOT / "results" / "topology"
    masks, overlaps, starts = (pd.read_csv(folder / f"{name}.csv") for name in ("masks", "overlaps", "starts"))
    part = " ".join(PAGES["results"].split("## Sub-networks, and what the method needs\n")[1].split("\n## ")[0].split())
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
    assert f"not here, {a:.3f} against {plain['stsb', 0.2]:.3f}" in PAGES["paper"]
    assert f"On SST-2 `adaprune` has {plain['sst2', 0.99]:.2f}" in part


def test_what_is_said_of_twelve_epochs_at_099():
    folder = ROOT / "results" / "topology_long"
    masks, overlaps, back = (pd.read_csv(folder / f"{name}.csv") for name in ("masks", "overlaps", "recovery"))
    part = " ".join(PAGES["results"].split("## Sub-networks, and what the method needs\n")[1].split("\n## ")[0].split())
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
    assert f"`adaprune` has {score['mnli', 'adaprune']} and GMP {score['mnli', 'gmp']}; the majority" in part


def test_the_list_of_tried_settings_says_what_the_records_say():
    folder = ROOT / "results" / "quick_tuning"
    runs = with_ways(table(folder))
    found = {(row["way"], row["sparsity"]): row["selection_score"] for row in runs.to_dict("records")}
    lines = re.findall(r"^\| (\S.*) \| ([\d.-]+) \| ([\d.-]+) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    shown = {
        (way, s): float(cell) for way, *cells in lines for s, cell in zip((0.5, 0.9), cells, strict=True) if cell != "-"
    }
    assert shown == pytest.approx(found, abs=5.1e-4)


@pytest.mark.parametrize("name", ["recipe_trials", "trials_0.9"])
def test_the_list_of_trials_says_what_the_records_say(name):
    folder = ROOT / "results" / name
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
    part = PAGES["many_tasks"]
    shown = dict(re.findall(r"^\| (\S.*?) \| ([\d,]+ \| \d+) \|$", part, re.MULTILINE))
    assert set(shown) == {*ways, "checkpoint, in the page cache"}
    for called, cells in shown.items():
        way = ways.get(called, "checkpoint")
        assert cells == f"{size[way.split(',')[0]]:,} | {switch[way] * 1000:.0f}"
    rows = found["coding"]
    assert all(f"{row['file_bytes']:,}" in part and f"{row['head_bytes']:,}" in part for row in rows)
    *over, sparsest = [100 * (row["coded_bytes"] / row["bound_bytes"] - 1) for row in rows]
    told = " ".join(part.split())
    assert f"coded to {max(over):.1f} % above the entropy bound, at 0.999 {sparsest:.1f} %" in told
    assert max(row["encode_seconds"] for row in rows) < 0.3 and max(row["decode_seconds"] for row in rows) < 0.1
    assert [bar["what"] for bar in found["bars"] if not bar["reached"]] == ["switch seconds, mask, not kept"]
    assert f"copying the matrices alone takes {1000 * found['parts']['a plain copy of the matrices']:.0f} " in told


def test_what_inference_costs_is_what_was_measured():
    page = PAGES["costs"].split("## Inference")[1].split("**How the sparse product works.**")[0]
    places = [("minilm", batch) for batch in ("1x32", "1x128", "8x128", "32x32")]
    places += [("bert-base", batch) for batch in ("1x32", "1x128", "8x128")]
    faster, bars = {}, []
    for part in ("minilm", "minilm_batches", "bert_base", "bert_base_batches"):
        found = json.loads((ROOT / "benchmarks" / "results" / f"inference_{part}.json").read_text())
        bars += found["bars"]
        for row in found["rows"]:
            if row["mask"] in ("", "magnitude"):
                key = row["shape"], row["batch"], row["way"], row["sparsity"]
                faster.setdefault(key, f"{row['faster']['median']:.2f}")
    shown = re.findall(r"^\| (\S.*?) \| ([-\d.]+) \| ([-\d. |]+) \|$", page, re.MULTILINE)
    assert len(shown) == 4 + 5 * 4 + 2
    for way, sparsity, cells in shown:
        at = None if sparsity == "-" else float(sparsity)
        assert cells.split(" | ") == [faster.get((*place, way, at), "-") for place in places], (way, sparsity)
    assert [bar["what"] for bar in bars if not bar["reached"]] == ["auto, stsb at 0.5, minilm 1x32 threads 1"]
    again = json.loads((ROOT / "benchmarks" / "results" / "inference_zoo.json").read_text())["rows"]
    autos = [row for row in again if row["way"] == "auto" and row["mask"] != "magnitude"]
    for at in (0.5, 0.9):
        medians = sorted(row["faster"]["median"] for row in autos if round(row["sparsity"], 3) == at)
        assert f"{medians[0]:.2f} to {medians[-1]:.2f} at {at}" in " ".join(page.split())
    fastest = [faster["minilm", "1x32", "compact, sparse", at] for at in (0.8, 0.9, 0.97)]
    said = re.search(r"([\d.]+) times as fast as dense\s+float32 at 0.8, ([\d.]+) at 0.9, ([\d.]+) at 0.97", README)
    assert [f"{float(one):.1f}" for one in fastest] == list(said.groups())


def test_the_first_example_is_a_prediction_from_the_zoo(capsys):
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert len([line for line in example.splitlines() if line]) == 3
    (said,) = re.findall(r"^print\(.*\)  # negative: ([\d.]+), positive: ([\d.]+)$", example, re.MULTILINE)
    exec(example, {})
    answer, scores = ast.literal_eval(capsys.readouterr().out)
    assert answer == "negative" and [*scores.values()] == pytest.approx([*map(float, said)], abs=0.0051)


def test_sizes_of_masks_are_those_measured():
    """In docs/many_tasks.md the ranges in bits per weight, on the page every row of the table."""
    files = [ROOT / "benchmarks" / "results" / f"mask_size{more}.json" for more in ("", "_12_epochs")]
    rows = [row for file in files for row in json.loads(file.read_text())["rows"]]
    plain = [row for row in rows if "task~" in row["name"] and not re.search("scope|recovery", row["name"])]

    def bits(sparsity, epochs):
        some = [row for row in plain if f"sparsity~{sparsity}_" in row["name"] and f"epochs~{epochs}_" in row["name"]]
        found = [8 * row["version 2"] / row["weights"] for row in some]
        return f"{min(found):.2f}", f"{max(found):.2f}"

    low, high = bits(0.5, 3)
    recipe = zoo()[lambda rows: (rows["head_bytes"] < 10_000) & (rows["model"] == "minilm")]
    per_weight = (8 * (recipe["bytes"] - recipe["head_bytes"]) / plain[0]["weights"]).groupby(recipe["sparsity"])
    spans = [f"{least:.2f} to {most:.2f}" for least, most in zip(per_weight.min(), per_weight.max(), strict=True)]
    said = "take {} bits per weight at 0.5 and {} at 0.9; shorter".format(*spans)
    assert said in " ".join(PAGES["many_tasks"].split())
    told = f"Learned masks of MiniLM at 0.5 take {low} to {high} bits per weight after 3 epochs and {bits(0.5, 12)[0]}"
    assert f"{told} after 12, at 0.9 {bits(0.9, 3)[0]} and {bits(0.9, 12)[0]}" in " ".join(PAGES["many_tasks"].split())
    page = (ROOT / "docs" / "mask_format.md").read_text(encoding="utf8")
    lines = [line for line in page.splitlines() if line.count("|") == 9 and re.search(r"epochs|made up", line)]
    keys = ("bits", "version 1", "version 2", "bound")
    measured = {tuple(f"{row[key]:,}" for key in keys) for row in rows}
    assert len(lines) == 14 and {tuple(cell.strip() for cell in line.split("|")[3:7]) for line in lines} <= measured


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in PAGES)])
def test_links_and_figures_exist(page):
    text = (ROOT / page).read_text(encoding="utf8")
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (ROOT / page).parent.joinpath(target).exists()] == []
    assert page != "README.md" or len(local) >= 15


def test_the_verdicts_are_counted():
    said = re.findall(r"\| \*\*(.*?)\*\*", (ROOT / "figures" / "claims.md").read_text(encoding="utf8"))
    kinds = ("confirmed", "right sign, not significant", "not confirmed", "measured, not judged", "not tested")
    counts = [sum(verdict.startswith(kind) for verdict in said) for kind in kinds]
    told = ", ".join(f"{count} {kind}" for count, kind in zip(counts, kinds, strict=True))
    assert f"gives a verdict on {len(said)} claims ([table](../figures/claims.md)) from the cells" in PAGES["paper"]
    assert f"that were measured: {told}. " in " ".join(PAGES["paper"].split()) and sum(counts) == len(said)


@pytest.mark.parametrize("page", ["README.md", "results/tables.md", *(f"docs/{name}.md" for name in PAGES)])
def test_links_to_a_heading_lead_to_one(page):
    """By the names that GitHub gives headings, which the site takes over."""
    text = (ROOT / page).read_text(encoding="utf8")
    for name, place in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
        target = ROOT / page if not name else (ROOT / page).parent / name
        if target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf8"), re.MULTILINE)
            assert place in [re.sub(r"[^\w -]", "", of.lower()).replace(" ", "-") for of in headings], (name, place)


def test_every_page_is_a_link_away():
    assert [
        name for name in PAGES if f"docs/{name}.md" not in README and f"({name}.md" not in "".join(PAGES.values())
    ] == []


@pytest.mark.parametrize("command", ["make run", "make test", "adaprune fit", "make lab"])
def test_the_commands_are_there(command):
    assert command in README


def test_what_the_readme_says_beside_its_table_is_of_records_and_zoo():
    """The figure's two shares; megabytes at 0.5 and 0.9; overlap with the magnitude mask; losses of CoLA."""
    shares = re.findall(r"\*\*adaprune\*\*, 0\.[59] removed \|.*?\| ([\d.]+) \| [\d.]+ to", README)
    said = re.search(r"gain: ([\d.]+) at sparsity 0\.5, ([\d.]+) at 0\.9\]", README)
    assert [*said.groups()] == shares
    said = "masks at 0.5 keep {} of what fine-tuning gains over the probe, and at 0.9 they keep {},".format(*shares)
    assert said in " ".join(PAGES["paper"].split())
    made = zoo()[lambda rows: (rows["head_bytes"] < 10_000) & (rows["model"] == "minilm")]
    megabytes = [f"{made.loc[made['sparsity'] == at, 'bytes'].mean() / 1e6:.1f} MB" for at in (0.5, 0.9)]
    assert f"for MiniLM {megabytes[0]} at 0.5, {megabytes[1]} at 0.9," in README
    encoder = load_encoder("minilm").model
    weights = {name: module.weight.detach().abs() for name, module in maskable(encoder).items()}
    of_all = 0.9 * sum(weight.numel() for weight in weights.values()) / sum(p.numel() for p in encoder.parameters())
    assert f"90 % of the linear layers' weights are removed ({100 * of_all:.0f} % of all in MiniLM)" in README
    halves = zoo()[lambda rows: (rows["sparsity"] == 0.5) & (rows["model"] == "minilm")].index
    largest = keep_top(weights, 0.5)
    shared = [jaccard(load_mask(name).masks, largest).jaccard for name in halves]
    assert f"(Jaccard overlap {min(shared):.2f} to {max(shared):.2f} at 0.5; 0.33 by chance)" in README
    (path,) = (ROOT / "results" / "gain").glob("task~cola_method~adaprune_sparsity~0.9_seed~0_*.json")
    curve = json.loads(path.read_text())["curve"]
    held = [
        point["selection_loss"]
        for point in curve
        if point["step"] > 0.4 * curve[-1]["step"] and "selection_loss" in point
    ]
    last = [point["loss"] for point in curve if "loss" in point][-1]
    losses = f"training loss falls to {last:.2f}, held-out loss rises from {held[0]:.2f} to {held[-1]:.2f}."
    assert losses in " ".join(PAGES["results"].split())


def test_what_is_said_of_bytes_against_quality_is_of_the_frontiers_records():
    folder, page = ROOT / "results" / "frontier", " ".join(PAGES["results"].split())
    both = gains.with_rows(table(folder), folder)
    over, runs, sst2 = gains.frontier(both).set_index("way"), both[both["task"] == "cola"], both[both["task"] == "sst2"]
    ways, names = gains.frontier(runs).set_index("way"), ("ia3", "adaprune 0.5", "lora r = 8")
    ia3, ours, lora = (over.loc[name] for name in names)
    assert abs(ia3["share"] - ours["share"]) < 0.12 and ia3["bytes"] * 6 < ours["bytes"] < lora["bytes"] / 3
    qnli = both[both["task"] == "qnli"]
    assert set(both["task"]) == {"cola", "sst2", "qnli"} and {int(ways.loc[name, "seeds"]) for name in names} == {3}
    assert {*sst2["seed"], *qnli["seed"]} == {0}
    assert "On CoLA (three seeds), SST-2 and QNLI (one), without a teacher," in README
    of_qnli = qnli[qnli["pattern"] == "weights"].query("sparsity in (0, 0.5)").set_index("method")
    of_qnli = of_qnli.loc[["lora", "ia3", "adaprune", "finetune"], ["score", "selection_score"]].map("{:.3f}".format)
    said = (
        "LoRA has {}, IA3 {}, the mask {} and fine-tuning {} on 5,463 dev rows, where one standard error is 0.005, and "
    )
    said += "{}, {}, {} and {} on the 800 held-out rows."
    assert said.format(*of_qnli["score"], *of_qnli["selection_score"]) in page
    (whole_units,) = qnli[qnli["pattern"] == "units"]["score"]
    assert f"on QNLI ({whole_units:.3f} against {of_qnli.loc['adaprune', 'score']}, one seed)" in page
    said = (
        f"units score {whole_units:.3f}, single weights {of_qnli.loc['adaprune', 'score']}, within one standard error"
    )
    assert said in " ".join(PAGES["costs"].split())
    said = f"IA3 keeps {ia3['share']:.2f} in {ia3['bytes'] / 1e3:.0f} kB"
    more = f"0.5 keeps {ours['share']:.2f} in {ours['bytes'] / 1e3:.0f} kB, LoRA {lora['share']:.2f} in "
    assert said in README and f"{more}{lora['bytes'] / 1e6:.1f} MB" in " ".join(README.split())
    units = f"such masks keep {over.loc['adaprune units 0.5', 'share']:.2f} of the gain, those of single weights "
    assert f"{units}{ours['share']:.2f}" in " ".join(PAGES["costs"].split())
    marks = sst2.assign(way=sst2["method"] + sst2["pattern"].str.replace("weights", "")).groupby("way")
    dev, held = (marks[column].max() for column in ("score", "selection_score"))  # of several rates the best
    gained = f"gains only {dev['finetune'] - dev['probe']:.3f} on the dev split"
    assert gained in page and f"it gains {held['finetune'] - held['probe']:.3f} (standard" in page
    kept = ((held - held["probe"]) / (held["finetune"] - held["probe"])).map("{:.2f}".format)
    said = "of which the mask keeps {}, IA3 {}, LoRA {} and the units {}."
    assert said.format(*kept[["adaprune", "ia3", "lora", "adapruneunits"]]) in page
    stsb = table(ROOT / "results" / "zoo").query("task == 'stsb' and method == 'adaprune'")
    stsb = stsb.set_index(["pattern", "sparsity"])["score"]
    scored = [stsb["units", 0.5], stsb["weights", 0.5], stsb["weights", 0.9]]
    said = "units score {:.3f}, single weights {:.3f} at 0.5 and {:.3f} at 0.9.".format(*scored)
    assert said in " ".join(PAGES["costs"].split())
    rates = sst2[sst2["method"] == "lora"].set_index("learning_rate")[["score", "selection_score"]]
    assert (rates.loc[0.001] > rates.loc[0.0003]).all() and "; on SST-2 0.001 is better." in page
    ia3, ours, lora = (ways.loc[name] for name in names)
    rated = runs[runs["pattern"] == "weights"].groupby(["method", "learning_rate"])[["score", "selection_score"]].mean()
    best = rated.sort_values("selection_score").groupby("method").tail(1).droplevel(1)
    names, rows = ["ia3", "adaprune", "lora", "finetune"], []
    for column in ("score", "selection_score"):
        rows.append([f"{best.loc[name, column]:.3f}" for name in names])
    said = "IA3 has {}, the mask {}, LoRA {} and fine-tuning {}, and on the 799 held-out rows {}, {}, {} and {}."
    assert said.format(*rows[0], *rows[1]) in page
    spans = [f"{way['seeds_low']:.2f} to {way['seeds_high']:.2f} for" for way in (ia3, ours)]
    assert f"over seeds are {spans[0]} IA3 and {spans[1]} the mask." in page
    first = runs[runs["seed"] == 0].set_index(["method", "learning_rate"])["score"]
    for method, said in (
        ("ia3", "IA3 {:.3f}, {:.3f} and {:.3f}"),
        ("bitfit", "BitFit {:.3f}, {:.3f} and {:.3f}"),
        ("lora", "LoRA {:.3f}, {:.3f} and {:.0f}"),
    ):
        assert said.format(*first[method].sort_index()) in page
    tuned = rows[0][names.index("finetune")]
    (whole,) = re.findall(r"^\| fine-tuned \| ([\d.]+)", README, re.MULTILINE)
    assert f"On CoLA fine-tuning has {tuned} here and {whole} in the section above" in page
    by_bytes = [round(ways.loc[way, "bytes"] / ia3["bytes"]) for way in ("adaprune 0.5", "ia3", "lora r = 8")]
    assert "{} to {} to {}".format(*by_bytes) in page
    of_units = runs[runs["pattern"] == "units"].groupby("sparsity")["score"].mean()
    said = "{:.3f} on the dev split with a quarter of the attention heads and neurons removed, {:.3f} with half."
    assert said.format(of_units[0.25], of_units[0.5]) in page
    trained = runs[~runs["method"].isin(["features", "magnitude", "probe", "majority"])]
    (most,) = {f"{size / 1e3:.0f} kB" for size in trained.loc[trained["pattern"] == "units", "shipped_bytes"]}
    smallest = trained.sort_values("shipped_bytes").iloc[0]
    assert smallest["pattern"] == "units" and f"their files are the smallest, {most}:" in page


def test_what_is_said_of_an_anchor_is_measured():
    rows = json.loads((ROOT / "benchmarks" / "results" / "anchor.json").read_text())["rows"]
    names = {
        "adaprune": "adaprune", "pull_1e3": "pull 0.001", "pull_1e2": "pull 0.01", "band_1": "band 1",
        "band_05": "band 0.5", "band_025": "band 0.25",
    }  # fmt: skip
    assert {row["method"] for row in rows} == set(names) and len(rows) == len(names)
    for row in rows:
        line = f"| {names[row['method']]} | {row['bytes'] / 1e3:.0f} | {row['held out']:.3f} | {row['dev']:.3f} |"
        assert line in PAGES["results"], line


def test_what_is_said_of_rivals_is_of_the_same_seeds():
    folder = ROOT / "results" / "gain"
    runs = gains.with_rows(table(folder), folder)
    pairs = runs.loc[runs["method"] == "soft_movement", ["task", "seed"]].apply(tuple, axis=1)
    runs = runs[runs["method"].isin(["probe", "majority"]) | runs[["task", "seed"]].apply(tuple, axis=1).isin(pairs)]
    runs = runs[runs["task"].isin({task for task, _ in pairs})]
    marks = gains.landmarks(runs)
    share = gains.shares(runs[runs["sparsity"] == 0.5], marks, ["method"]).set_index("method")["share"]
    rival, ours = share["soft_movement"], share["adaprune"]
    assert f"{rival:.2f} of the gain, ours {ours:.2f} on the same seeds" in README
    assert f"it keeps {rival:.2f} of the gain, `adaprune` {ours:.2f}." in " ".join(PAGES["results"].split())
    assert set(pairs) == {("cola", 2), ("sst2", 1), ("sst2", 2), ("mrpc", 1), ("qnli", 1), ("mnli", 1)}
    beside = runs[runs["sparsity"] == 0.5].pivot_table(
        index=["task", "seed"], columns="method", values=["score", "selection_score"]
    )
    dev, held = (
        (beside[column, "soft_movement"] - beside[column, "adaprune"]).dropna()
        for column in ("score", "selection_score")
    )
    told = f"the mean over the six pairs of runs is {held.mean():.3f}, as on the dev split ({dev.mean():.3f})."
    assert len(dev) == 6 and told in " ".join(PAGES["results"].split())
    assert f"(p = {stats.ttest_1samp(held, 0).pvalue:.1f} over the six pairs at 0.5)" in PAGES["results"]
    at_most = runs[runs["sparsity"] == 0.9].pivot_table(
        index=["task", "seed"], columns="method", values=["score", "selection_score"]
    )
    (dev_cola, dev_mrpc), (held_cola, held_mrpc) = (
        [
            f"{at_most.loc[place, (column, 'adaprune')]:.3f} to {at_most.loc[place, (column, 'soft_movement')]:.3f}"
            for place in (("cola", 2), ("mrpc", 1))
        ]
        for column in ("score", "selection_score")
    )
    said = f"standard error, {dev_cola} and {dev_mrpc} (held-out rows: {held_cola}, and {held_mrpc})."
    assert said in " ".join(PAGES["results"].split())


def test_the_sigmoids_slope_is_constant_where_theta_starts():
    weights = [module.weight.detach().abs().flatten() for module in maskable(load_encoder("minilm").model).values()]
    most = torch.cat(weights).kthvalue(int(0.99 * sum(map(len, weights)))).values
    slope = most.sigmoid() * (1 - most.sigmoid())
    said = f"99 in 100 are below {most:.2f}, where the sigmoid's slope is {slope:.3f} to 0.250"
    assert said in " ".join(PAGES["results"].split())


def test_the_costs_of_a_step_are_those_measured():
    found = [
        json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["shapes"]
        for name in ("step_cost_one_thread", "step_cost_8x128", "step_cost_bert_base_one_thread")
    ]
    columns = [found[0]["minilm-32x32"], found[1]["minilm-8x128"], found[1]["bert-base-8x128"]]
    names = {
        "adaprune": "`adaprune`, scope `encoder`",
        "adaprune_embeddings": "`adaprune`, scope `encoder+embeddings`",
        "forward_backward": "forward and backward with all weight gradients, no optimiser",
        "features": "features (frozen encoder)",
    }
    for variant, name in names.items():
        ratios = [column[variant]["seconds_ratio"] for column in columns]
        cells = [f"{of['median']:.2f} ({of['least']:.2f}-{of['greatest']:.2f})" for of in ratios]
        assert f"| {name} | {' | '.join(cells)} |" in PAGES["costs"]
    for variant, name in list(names.items())[:3]:
        rows = [shapes["bert-base-8x128"][variant] for shapes in found[1:]]
        cells = [f"{row['memory_bytes'] / 1e6:,.0f} | {row['memory_ratio']:.2f}" for row in rows]
        assert f"| {name} | {' | '.join(cells)} |" in PAGES["costs"]


def test_what_units_of_base_size_keep():
    folder, page = ROOT / "results" / "gain_base", " ".join(PAGES["results"].split())
    runs = table(folder).query("task == 'sst2'").set_index("method")
    for column, told in (
        ("score", "the mask of units keeps {:.2f} of"),
        ("selection_score", "held-out rows {:.2f} (there"),
    ):
        floor, tuned, ours = (runs.loc[name, column] for name in ("probe", "finetune", "adaprune"))
        assert told.format((ours - floor) / (tuned - floor)) in page
    assert f"gain: {runs.loc['finetune', 'score'] - runs.loc['probe', 'score']:.3f}, of" in page
    assert f"ships in {runs.loc['adaprune', 'shipped_bytes'] / 1e3:.0f} kB" in page
    assert runs.loc["adaprune", "pattern"] == "units"
    runs = table(folder).query("task == 'movie_reviews'").set_index("method")
    kept = {
        column: (runs.loc["adaprune", column] - runs.loc["probe", column])
        / (runs.loc["finetune", column] - runs.loc["probe", column])
        for column in ("score", "selection_score")
    }
    assert f"such a mask keeps only {kept['score']:.2f} of the gain**, on held-out rows nothing:" in page
    assert kept["selection_score"] == 0


def test_what_is_said_of_the_task_on_which_nothing_was_chosen():
    """Its shares at 0.5 and 0.9, on dev and held-out rows, as the test above finds them in the page."""
    page = " ".join(PAGES["results"].split())
    (topics,) = re.findall(
        r"keeps ([\d.]+) of the gain at 0\.5 and ([\d.]+) at 0\.9, on the 339 held-out rows ([\d.]+) and ([\d.]+)\.",
        page,
    )
    said = f"of which no row was seen the share is {topics[0]} or {topics[2]} at 0.5, where the five tasks above have"
    assert said in page and f", and {topics[1]} or {topics[3]} at 0.9, where those have" in page
    lost = [100 - round(100 * float(kept)) for kept in topics[1::2]]
    assert f"{lost[0]} % (dev) or {lost[1]} % (held out)." in README


def test_how_many_sentences_of_movie_reviews_are_also_in_sst2():
    folder = ROOT.parent / "shared" / "glue" / "sst2"
    if not folder.is_dir():
        pytest.skip("needs SST-2's training file")

    def plain(texts):
        return [" ".join(re.sub(r"[^a-z0-9]+", " ", text.lower()).split()) for text in texts]

    splits = load_task("movie_reviews").splits.values()
    ours = [text for split in splits for text in plain(split["text"])]
    theirs = plain(pd.read_parquet(folder / "train.parquet")["sentence"])
    page = " ".join(PAGES["results"].split())
    found, seen = (sum(text in known for text in ours) for known in (set(theirs), set(theirs[:20000])))
    assert round(found / len(ours), 1) == 0.5
    said = f"half of its {len(ours):,} sentences are also in SST-2's training file, {seen:,} of them in the 20,000 rows"
    assert said in page


def test_what_the_readme_says_is_lost():
    """From the table's own line at 0.9, which `docs/build_results.py` makes."""
    line = next(line for line in README.splitlines() if line.startswith("| **adaprune**, 0.9 removed"))
    kept, lowest = line.split("|")[-5].strip(), line.split("|")[-2].split()[-1]
    said = f"At 0.9 {100 * (1 - float(kept)):.0f} % of the gain is lost, on MRPC {100 * (1 - float(lowest)):.0f} %, "
    assert said in README


def test_what_is_said_of_the_start_is_of_the_deciding_runs():
    """Pairs that the start at |w| wins, what is left of it without the stuck runs from 0, the probe of as many rows."""
    folder, page = ROOT / "results" / "deciding", " ".join(PAGES["results"].split())
    runs, _ = build_results._of_deciding()
    others = [factor for factor in build_results.FACTORS if factor != "start"]
    paired = runs.pivot_table(index=["task", *others], columns="start", values=["score", "selection_score"])
    gain = {column: paired[column]["abs(w)"] - paired[column]["0"] for column in ("score", "selection_score")}
    wins = [f"{(found > 0).sum()} of {len(found)}" for found in gain.values()]
    assert f"helps in {wins[0]} pairs on the dev split, but in {wins[1]} on held-out rows" in page
    free = paired["score"]["0"].loc["cola"] > 0
    on_cola = gain["score"].loc["cola"]
    assert (~free).sum() == 2 and "two of CoLA's eight runs from 0 are stuck at the majority class" in page
    assert f"the mean there is {on_cola[free].mean():+.3f}, not {on_cola.mean():+.3f}." in page
    probes = table(folder).query("method == 'probe'").set_index("task")["score"].map("{:.3f}".format)
    assert (
        f"A probe of as many has {probes['cola']} on CoLA, and on SST-2 {probes['sst2']}, which none of the 16" in page
    )
    assert runs[runs["task"] == "sst2"]["score"].max() <= table(folder).query("method == 'probe'")["score"].max()


def test_the_products_that_were_tried_are_those_measured():
    rows = json.loads((ROOT / "benchmarks" / "results" / "kernels.json").read_text())["rows"]
    found = {(row["way"], row["shape"], row["sparsity"], row["tokens"]): row["faster"]["median"] for row in rows}
    names = {
        "`embedding_bag` (ours)": "embedding_bag", "torch CSR (MKL)": "CSR", "SciPy CSR": "scipy", "torch COO": "COO",
        "torch CSR, x not turned": "CSR, x left", "torch BSR, 4 x 4": "BSR",
    }  # fmt: skip
    page = PAGES["costs"].split("**How the sparse product works.**")[1].split("\n## ")[0]
    places = [(shape, tokens) for shape in ("384x384", "3072x768") for tokens in (8, 32, 128, 1024)]
    for name, way in names.items():
        cells = " | ".join(f"{found[way, shape, 0.9, tokens]:.2f}" for shape, tokens in places)
        assert f"| {name} | {cells} |" in page
    ways, cells = set(names.values()), sorted({key[1:] for key in found})
    first = {cell: max(ways, key=lambda way: found[way, *cell]) == "embedding_bag" for cell in cells}
    ratio = {cell: found["embedding_bag", *cell] / found["CSR", *cell] for cell in cells}
    long, short = [cell for cell in cells if cell[2] >= 128], [cell for cell in cells if cell[2] == 8]
    assert all(first[cell] for cell in long) and len(long) == 24
    span = sorted(ratio[cell] for cell in long)
    said = f"first in all 24 cells, {span[0]:.1f} to {span[-1]:.1f} times as fast as MKL's; with 32 in "
    said += f"{sum(first[cell] for cell in cells if cell[2] == 32)} of 12; with 8 MKL's is mostly first, by up to "
    assert f"{said}{1 / min(ratio[cell] for cell in short):.1f} times." in " ".join(page.split())
    assert sum(first[cell] for cell in short) < 6


def test_the_readme_is_short():
    assert len(README.split()) <= 900
