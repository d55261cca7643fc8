"""The walkthroughs: their form; each runs, what it says holds, its exercises wait while empty and take their solutions.

Nonsense in parameters is refused in a sentence. One kernel for each notebook.
"""

import ast
import inspect
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from adaprune.teach import solutions
from adaprune.teach.exercises import EXERCISES

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "notebooks" / "teach").glob("*.ipynb"))
WIDEST = 90

# What stands in the parameters here, where the lesson's own take longer.
SMALL = {"1_masks": "seeds = 1", "6_pruning_or_the_model": "task, rows = {own_table!r}, 200",
         "7_ship_it": "repeats = 2"}  # fmt: skip
HOLDS = {  # what a lesson says, by hand or by another route
    "1_masks": [
        "total == 6 * (4 * 384 * 384 + 2 * 384 * 1536)",  # four matrices for attention and two behind it, six times
        "intact and moved[0] == 0 < moved[sparsity]",
        "record['mask']['kept'] == round(0.1 * total) == 1_061_683",
        "[len(right[way]) for way in ways] == [1, 1, 1, 1] and max(map(max, right.values())) <= 96",
        "min(learned) > max(largest) and min(learned) > max(by_chance)",
        # what was recorded is what the served mask says
        "sum((served(**served.tokenizer([text], return_tensors='pt'), tasks=['adaprune-0']).logits.argmax().item()"
        " == served.config.label2id[label]) for text, label in lists['validation']) == learned[0]",
    ],
    "2_learning_a_mask": [
        "(slopes == 0).all()",
        "by_hand == 2 * 2 * 1.5 * 3 / 16",
        "alike == 100 and not (standing > threshold).any()",
        "returns[0] > 0 == returns[1] == returns[2]",
        "kept[:, 0].sum() > kept[:, 2].sum() > kept[:, 1].sum()",
        "alpha * typical < 1e-8",
        "reach[reach['step'] == 'penalty']['distance'].round(4).tolist() == [0.0006, 0.0045, 0.0177]",
        "list(arrives.values()) == ['none of the tasks', 'MNLI', 'STS-B, SST-2, MNLI']",
        "'cannot reach a sparsity of 0.5' in refusal",
    ],
    "3_near_optimal": [
        "len(masks) == 2**d and lowest <= losses[0] <= everything <= losses[-1]",
        "gaps.min() > -1e-9 and (gaps.mean(axis=1) < limit).all()",
        "(found > losses[0] - 1e-9).all() and (ended > losses[0] - 1e-9).all()",
        "theory.constant(4, 4, M=0) == 0",
        "3.9e7 < practical < 4e7 and math.isclose(practical, theory.constant(1e5, 1, M=0.001))",
        "theory.bound(enough, c, G, practical) < span <= theory.bound(enough / 1.03, c, G, practical)",
        "humps['regression'] == 0 < humps['network']",
        "table['mean above best'].min() > -1e-9",
        "ranking[0] == ranking.min() and stuck.max() > ranking[0] + 0.01",
        "(round(measured), round(printed, 1)) == (288, 9.2) and measured < with_d",
    ],
    "4_subnetworks_as_graphs": [
        "block['kept'] == 5 and block['dead_units'] == 1 and len(on_paths) == 3",
        "topology.degrees(into)[0].tolist() == [2, 0] and topology.degrees(out)[1].tolist() == [1, 2]",
        "(found.both, found.either) == (3, 6)",
        "row['effective_sparsity'] >= row['sparsity']",
        "int((~paths[3].any(axis=1)).sum()) == row['dead_units']",
        "abs(flipped['stsb'] - sum(int((real['stsb'][n] ^ real['largest weights'][n]).sum()) for n in sizes)"
        " / sum(m.numel() for m in sizes.values())) < 1e-6",
        "0.5 < between.min() < between.max() < 1",
        "[shape.sum() for shape in shapes.values()] == [36, 36, 36]",
    ],
    "5_read_the_paper_with_us": [
        "records['score'].between(-1, 1).all()",
        "(printed['score'] - printed['score_theirs'] == printed['difference']).all()",
        "set(printed['recipe']) <= {'paper'} and set(tuned['recipe']) <= {'tuned'}",
        "round(as_variance, 2) == 0.38 and as_deviation < 1e-20",
        "(drawn > 0).all() and not any(starts)",
        "((shares['removed'] - (1 - shares['kept'] / shares['total'])).abs() < 1e-9).all()",
        "set(noisy['noise']) <= {0.01} and set(noisy['noise_theirs']) <= {0.0}",
        "list(published.index[published[0.5] > published[0.2]]) == [('stsb', 'adaprune')]",
        "set(half['sparsity']) <= {0.5} and set(half['sparsity_theirs']) <= {0.2}",
        "((small.query('scope == \"encoder\"')['encoder_sparsity'] - small['sparsity']).abs() < 1e-3).sum() > 0",
        "((both['all_weights_sparsity'] - both['sparsity']).abs() < 1e-3).all()",
        "(both[both['sparsity'] == 0.5]['encoder_sparsity'] > 0.5).all()",
    ],
    "6_pruning_or_the_model": [
        "majority == 0.6 and len(train) == 180 and len(dev) == 40",  # as the table was made
        "probe > majority + 0.2",  # its sentences say it plainly
        "learned['weights_intact'] and learned['mask']['sparsity'] == 0.5",
        "all(abs(row['share'] * row['room'] - (row['learned mask'] - row['floor'])) < 1e-9"
        " for _, row in room.dropna().iterrows())",
        "room['share'].isna().equals(room['room'] < 0.03)",
    ],
    "7_ship_it": [
        "len(table) == 13 * 12 * 4 and new.sum() == 3 * 12 * 4",
        "(table['label'] == 'stays').mean() == 0.5",
        "right > by_probe + 0.1",  # unlike `fit`'s own few rows, these can tell
        "reference.sum() == learned.sum() == 5 and flips.nonzero().flatten().tolist() == [1, 4, 5, 6]",
        "bytes_of['one bit per weight'] == 1_327_104 and flip_bytes < bytes_of['entropy of the flips']",
        # by another route: the masks from the served task's bits, the references by torch.topk
        "flipped == sum(int((kept.flatten() ^ torch.zeros(kept.numel(), dtype=torch.bool).index_fill(0,"
        " sizes[n].flatten().topk(int(kept.sum())).indices, True)).sum())"
        " for n, kept in served.task('tickets').masks().items())",
        "'query.weight differs' in refusal",
        "torch.equal(by_served, alone) and 0 <= likeness <= 5",
        "medians.shape == (3, 2) and len(times) == 3 * 2 * repeats",
    ],
}
NONSENSE = {
    "1_masks": {"sparsity = 1.5": "sparsity must lie in [0, 1), got 1.5", "sentence = 3": "sentence: text in quotes"},
    "2_learning_a_mask": {"seed = 'x'": "seed must be a whole number, got 'x'"},
    "3_near_optimal": {
        "seed = -1": "seed must",
        "d = 40": "d, the number of weights, must be a whole number in 1 ... 14, got 40",
    },
    "4_subnetworks_as_graphs": {
        "head = 12": "MiniLM has layers 0 ... 5",
        "layer = 3.0": "MiniLM has layers 0 ... 5",
        "sparsity = 'half'": "sparsity must be a number",
        "sparsity = 0": "sparsity must be above 0 and below 1",
    },
    "5_read_the_paper_with_us": {
        "results_dir = 'nowhere'": "nowhere is not a folder: `make run` makes some",
        "results_dir = 3": "3 is not a folder",
    },
    "6_pruning_or_the_model": {
        "rows = 5": "rows must be 100 or more",
        "task = 'coal'": "unknown task 'coal' (did you mean cola?)",
    },
    "7_ship_it": {
        "rows = 5": "rows must be 100 to 480, got 5",
        "sentence = ' '": "sentence: text in quotes, got ' '",
        "repeats = 'often'": "repeats must be 1 to 1000, got 'often'",
    },
}
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def code(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def to_write(path: Path) -> dict[str, str]:
    """The exercises of a lesson: name of the function -> its cell."""
    found = {re.search(r"^check\((\w+)\)$", source, re.M): source for source in code(path)}
    return {match[1]: source for match, source in found.items() if match}


@pytest.fixture(scope="module")
def own_table(tmp_path_factory) -> str:
    """240 sentences that are easy to tell apart, three of five of them good."""
    nouns = "film story cast ending plot music script scene hero villain song joke".split()
    good = "wonderful moving superb lovely great exciting clever brilliant charming perfect fine warm".split()
    words = [*good, *"awful boring dull clumsy ugly stupid terrible tedious".split()]
    rows = [f"the {n} is {word},{'good' if word in good else 'bad'}" for n in nouns for word in words]
    folder = tmp_path_factory.mktemp("own")
    for split, some in {"train": rows[:200], "validation": rows[200:]}.items():
        (folder / f"{split}.csv").write_text("text,label\n" + "\n".join(some))
    return str(folder)


@each_lesson
def test_ends_with_three_functions_to_write(path):
    exercises = to_write(path)
    assert len(exercises) == 3 and set(exercises) <= set(EXERCISES)
    for name, source in exercises.items():
        function = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
        (dots,) = function.body
        assert function.name == name and dots.value.value is ...
        assert [arg.arg for arg in function.args.args] == list(inspect.signature(EXERCISES[name].answer).parameters)


@each_lesson
def test_hints_are_graded_and_the_solution_is_the_one_that_is_tested(path):
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    told = [text for text in texts if "<summary>Solution</summary>" in text]
    for name, text in zip(to_write(path), told, strict=True):
        folded = re.findall(r"<details><summary>(.+?)</summary>\n\n(.+?)\n\n</details>", text, re.DOTALL)
        assert [title for title, _ in folded] == ["Hint 1", "Hint 2", "Solution"]
        assert folded[-1][1] == f"```python\n{inspect.getsource(getattr(solutions, name)).strip()}\n```"


@each_lesson
def test_lines_are_short(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not [line for line in cell.source.splitlines() if len(line) > WIDEST and "](" not in line], path.stem


def test_every_exercise_is_in_one_lesson():
    named = [name for path in LESSONS for name in to_write(path)]
    assert sorted(named) == sorted(EXERCISES)


@each_lesson
def test_links_lead_on_and_back(path):
    opening = nbformat.read(path, as_version=4).cells[0].source
    links = re.findall(r"\]\(([^)#]+)\)", opening)
    assert all((path.parent / link).exists() for link in links), links
    place = LESSONS.index(path)
    for near in LESSONS[max(0, place - 1) : place] + LESSONS[place + 1 : place + 2]:
        assert near.name in links
    assert "README.md" in links and any(link.endswith(".py") for link in links)


def test_the_plan_names_every_lesson_and_its_parts_and_fills_two_hours():
    plan = (LESSONS[0].parent / "README.md").read_text(encoding="utf8")
    for path in LESSONS:
        question = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].removeprefix("# ")
        assert f"]({path.name}) | {question} |" in plan
    assert all((LESSONS[0].parent / link).exists() for link in re.findall(r"\]\(([^)#]+)\)", plan))
    spans = [tuple(map(int, span)) for span in re.findall(r"^\| (\d+)-(\d+) \|", plan, re.M)]
    assert spans[0][0] == 0 and spans[-1][1] == 120
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]
    rows = re.findall(r"^\| \d+-\d+ \| (.+?) \|", plan, re.M)
    headings = "\n".join(cell.source for path in LESSONS for cell in nbformat.read(path, as_version=4).cells)
    parts = [part for row in rows for part in re.findall(r"\*(.+?)\*", row)]
    assert parts and all(re.search(rf"^## {re.escape(part)}$", headings, re.M) for part in parts), parts


@each_lesson
def test_runs_holds_and_judges(path, own_table):
    name, cells = path.stem, code(path)
    small = SMALL.get(name, "pass").format(own_table=own_table)
    header, setting, *rest = cells
    holds = [f"assert {said}, {said!r}" for said in HOLDS[name]]
    solved = [f"{inspect.getsource(getattr(solutions, done))}\n\ncheck({done})" for done in to_write(path)]
    nonsense = [part for value in NONSENSE[name] for part in (setting, value, *rest[:2])]
    race = [source for source in rest if '"my_score" in done' in source]
    libraries = "import itertools, math\nfrom statistics import NormalDist\nimport torch"
    sources = [header, setting, small, *rest, *holds, libraries, *solved, *race, "a_name_from_nowhere", *nonsense]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, kernel_name="python3", allow_errors=True, resources=resources, timeout=400).execute()
    ran = iter(notebook.cells)

    def outcome() -> tuple[str, str]:
        """What the next cell printed, and its error."""
        outputs = next(ran).outputs
        errors = [output for output in outputs if output.output_type == "error"]
        assert all(len(error.traceback) == 1 for error in errors)  # a sentence, no frames
        assert not any(output.get("name") == "stderr" for output in outputs), outputs
        texts = [output.get("text") or output.get("data", {}).get("text/markdown", "") for output in outputs]
        return "".join(texts), " ".join(error.evalue for error in errors)

    first = [outcome() for _ in (header, setting, small, *rest)]
    assert [error for _, error in first if error] == []
    assert first[0] == ("", "")  # no Colab here
    assert sum(text.startswith("Yours to write") for text, _ in first) == 3
    assert [error for _, error in (outcome() for _ in holds) if error] == []
    outcome()
    for _ in solved:
        text, error = outcome()
        assert not error and text.startswith("Right, on all "), (text, error)
    for _ in race:
        assert re.fullmatch(r"Your score: \d+ of 96 right\. Largest weights: .*", outcome()[0], re.DOTALL)
    assert "Run All Above" in outcome()[1]
    for sentence in NONSENSE[name].values():
        errors = [outcome()[1] for _ in range(4)]
        assert any(error.startswith(sentence) for error in errors), errors
