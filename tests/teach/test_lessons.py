"""The walkthroughs: each runs, its exercises wait while empty, take right answers and refuse wrong ones, and nonsense
in its parameters is refused in a sentence. One kernel for each notebook."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "notebooks" / "teach").glob("*.ipynb"))

RIGHT = {  # by hand; one answer or several to an exercise
    "1_masks": [
        ["[[False, True, False], [True, False, False]]", "[[0, 1, 0], [1, 0, 0]]"],
        ["1_061_683", "round(0.1 * 10_616_832)"],
        ["32", "32.0"],
    ],
    "2_learning_a_mask": [["-1"], ["50_000", "0.01 / 2e-7", "torch.tensor(50_000)"], ["10"]],
    "3_near_optimal": [["9 / 16"], ["184_756", "math.comb(20, 10)", "np.float64(184_756)"], ["0.67"]],
    "4_subnetworks_as_graphs": [
        ["[[1, 0], [0, 1]]", "np.eye(2, dtype=bool)", "torch.eye(2)"],
        ["2 / 5"],
        ["12", "12.0"],
    ],
    "5_read_the_paper_with_us": [["0.0051"], ["0.76513"], ["0.01"]],
}
WRONG = {
    "1_masks": [
        ["[[False, True, True], [True, False, False]]", "[[0, 0.9995, 0], [1, 0, 0]]"],
        ["1_061_600", "1_061_682", "1_061_684"],
        ["'many'", "32.03"],
    ],
    "2_learning_a_mask": [["-4"], ["5_000", "50_040"], ["1"]],
    "3_near_optimal": [["1"], ["2**20", "184_755", "184_757"], ["5"]],
    "4_subnetworks_as_graphs": [
        ["[[1, 1], [0, 0]]", "[[2, -1], [0, 1]]", "[[0.5, 0.5], [0, 1]]"],
        ["2 / 7"],
        ["1", "12.01"],
    ],
    "5_read_the_paper_with_us": [["0.01"], ["0.5"], ["3.84"]],
}
NONSENSE = {
    "1_masks": {"sparsity = 1.5": "sparsity must lie in [0, 1), got 1.5", "sentence = 3": "sentence must be text"},
    "2_learning_a_mask": {"seed = 'x'": "seed must be a whole number, got 'x'"},
    "3_near_optimal": {
        "seed = -1": "seed must",
        "d = 40": "d, the number of weights, must be a whole number in 1 ... 14, got 40",
    },
    "4_subnetworks_as_graphs": {
        "head = 12": "MiniLM has layers 0 ... 5",
        "sparsity = 'half'": "sparsity must be a number",
        "sparsity = 0": "sparsity must be above 0 and below 1",
    },
    "5_read_the_paper_with_us": {
        "results_dir = 'nowhere'": "nowhere is not a folder: `make run` makes some",
        "results_dir = 3": "3 is not a folder",
    },
}
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def code(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def exercises(path: Path) -> list[str]:
    return [source for source in code(path) if source.startswith("answer_")]


@each_lesson
def test_ends_with_three_exercises_in_one_form(path):
    found = exercises(path)
    assert found == code(path)[-3:]
    for number, source in enumerate(found, 1):
        first, second, *_ = source.splitlines()
        assert re.fullmatch(rf"answer_{number} = \.\.\.  # .+", first) and not second
        assert re.search(rf"^check\(\s*answer_{number},", source, re.M)
    assert "begin()" in code(path)[1]


@each_lesson
def test_runs_and_judges(path):
    name, (setting, *start) = path.stem, code(path)[:3]
    answered = [
        re.sub(r"= \.\.\.  # .*", f"= {answer}", source)
        for source, right, wrong in zip(exercises(path), RIGHT[name], WRONG[name], strict=True)
        for answer in (*right, *wrong)
    ]
    nonsense = [part for value in NONSENSE[name] for part in (setting, value, *start)]
    sources = [*code(path), *answered, "a_name_from_nowhere", *nonsense]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, kernel_name="python3", allow_errors=True, resources=resources, timeout=400).execute()
    cells = iter(notebook.cells)

    def outcome() -> tuple[str, str]:
        """What the next cell printed, and its error."""
        outputs = next(cells).outputs
        errors = [output for output in outputs if output.output_type == "error"]
        assert all(len(error.traceback) == 1 for error in errors)  # a sentence, no frames
        assert not any(output.get("name") == "stderr" for output in outputs), outputs
        return "".join(output.get("text", "") for output in outputs), " ".join(error.evalue for error in errors)

    ran = [outcome() for _ in code(path)]
    assert [error for _, error in ran if error] == []
    assert all(text.startswith("Yours to fill in") for text, _ in ran[-3:])
    for right, wrong in zip(RIGHT[name], WRONG[name], strict=True):
        for answer in right:
            assert (answer, *outcome()) == (answer, "Right.\n", "")
        for answer in wrong:
            text, error = outcome()
            assert not text and error.startswith("Not "), answer
    assert "Run All Above" in outcome()[1]
    for sentence in NONSENSE[name].values():
        errors = [outcome()[1] for _ in range(4)]
        assert any(error.startswith(sentence) for error in errors), errors
