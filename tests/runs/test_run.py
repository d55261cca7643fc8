"""Run: what it refuses, how it says so, and the names it gives."""

import copy
import math
import pickle
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaprune.runs.run import METHODS, NAME_BYTES, NAMED, RESULT_NEUTRAL, Run

DEFAULT_NAME = "task~movie_reviews_method~adaprune_sparsity~0.5_seed~0_model~minilm"


def message(**fields):
    """The text of the error that the fields raise."""
    with pytest.raises(ValueError) as caught:
        Run(**fields)
    assert "pydantic" not in str(caught.value) and "http" not in str(caught.value)
    return str(caught.value)


def test_every_field_has_a_description_and_every_method_its_own_name():
    assert all(field.description for field in Run.model_fields.values())
    assert all(Run(method=name).kind is method and method.name == name for name, method in METHODS.items())
    features = Run(method="features").kind
    assert (features.mask, features.weights_intact) == (False, True)
    assert not METHODS["finetune"].weights_intact and METHODS["random"].mask


@pytest.mark.parametrize(
    "field, value, expected",
    [
        ("recovery", "false", "write False, with a capital letter"),  # papermill -p recovery false
        ("task", 1e5, "`-r task VALUE`"),  # papermill -p task 1e5
        ("model", True, "must be text, got True (bool)"),
        ("recovery", 0, "must be True or False, got 0 (int)"),
        ("seed", 3.0, "must be a whole number, got 3.0 (float)"),
        ("seed", True, "must be a whole number, got True (bool)"),
        ("sparsity", True, "must be a number, got True (bool)"),
        ("sparsity", None, "must be a number, got None (NoneType)"),
        ("epochs", "3", "must be a number, got '3' (str)"),
        pytest.param("epochs", 10**400, "a number of over 100 digits", id="epochs-huge"),
        ("results_dir", Path("results"), "must be text"),
    ],
)
def test_wrong_types_are_named(field, value, expected):
    text = message(**{field: value})
    assert text.startswith(f"{field} must be ") and expected in text and "\n" not in text


@pytest.mark.parametrize(
    "field, value, expected",
    [
        ("sparsity", 1, "must lie in [0, 1), got 1"),
        ("sparsity", -0.1, "must lie in [0, 1), got -0.1"),
        ("sparsity", math.nan, "must be a finite number, got nan"),
        ("learning_rate", math.inf, "must be a finite number, got inf"),
        ("head_learning_rate", -1e-9, "must be at least 0, got -1e-09"),
        ("seed", -1, "must lie in [0, 4294967296), got -1"),
        ("seed", 2**32, "must lie in [0, 4294967296), got 4294967296"),
        ("epochs", -1, "must be at least 0, got -1"),
        ("max_length", 7, "must lie in [8, 512], got 7"),
        ("max_length", 513, "must lie in [8, 512], got 513"),
        ("task", "", "must not be empty, got ''"),
        ("model", "  ", "must not be empty, got '  '"),
        ("results_dir", "", "must not be empty, got ''"),
    ],
)
def test_impossible_values_are_named_with_the_range(field, value, expected):
    assert message(**{field: value}) == f"{field} {expected}"


def test_unknown_choice_names_the_choices_and_the_nearest():
    text = message(method="Magnitud")
    assert "'Magnitud'" in text and text.endswith("did you mean 'magnitude'?")
    assert all(method in text for method in METHODS)
    assert "'' (the default), 'global', 'equal', 'scores'" in message(allocation="equall")
    assert "got ['a']" in message(scope=["a"])
    assert "did you mean" not in message(precision="")


def test_unknown_name_is_told_with_the_nearest_and_all_fields():
    text = message(sparsty=0.3, qqqq=1)
    assert "unknown parameter 'sparsty': did you mean 'sparsity'?\n" in text
    assert "unknown parameter 'qqqq'\n" in text
    assert text.count("The parameters are") == 1 and all(field in text for field in Run.model_fields)


def test_every_culprit_has_its_own_line():
    assert message(sparsity=2, seed="0", recipe="papr").splitlines() == [
        "sparsity must lie in [0, 1), got 2",
        "seed must be a whole number, got '0' (str)",
        "recipe must be one of 'paper', 'tuned', got 'papr': did you mean 'paper'?",
    ]


def test_a_very_long_value_is_cut():
    assert len(message(sparsity="x" * 10_000)) < 300


def test_text_that_no_file_can_hold_is_refused():
    assert message(task="a\udc80b").startswith("task: ")


def test_whole_numbers_widen_and_numpy_scalars_become_plain():
    run = Run(sparsity=np.float64(0.25), seed=np.int64(3), epochs=np.int32(2), recovery=np.bool_(False))
    assert [type(v) for v in (run.sparsity, run.seed, run.epochs, run.recovery)] == [float, int, float, bool]
    assert run == Run(sparsity=0.25, seed=3, epochs=2.0, recovery=False)
    assert "sparsity~0.25_seed~3" in run.name


def test_a_run_is_frozen_hashable_and_survives_copies():
    run = Run(seed=3)
    with pytest.raises(ValueError, match="frozen"):
        run.seed = 4
    assert copy.deepcopy(run) == run and hash(run) == hash(Run(seed=3))
    assert pickle.loads(pickle.dumps(run)) == run  # as a pool of processes passes it


def test_a_changed_copy_is_checked_too():
    assert Run().model_copy(update={"seed": 5}) == Run(seed=5)
    with pytest.raises(ValueError, match="sparsity must lie"):
        Run().model_copy(update={"sparsity": 3})
    with pytest.raises(ValueError, match="sparsity must lie"):
        Run.model_validate({"sparsity": 3})


def test_names_by_hand():
    assert Run().name == DEFAULT_NAME
    assert Run(recovery=False, learning_rate=2e-5, epochs=3).name == (
        f"{DEFAULT_NAME}_epochs~3_learning_rate~2e-05_recovery~False"
    )
    assert Run(sparsity=0.1 + 0.2).name == DEFAULT_NAME.replace("0.5", "0.30000000000000004")
    assert Run(sparsity=-0.0).name == Run(sparsity=0).name == DEFAULT_NAME.replace("0.5", "0")
    assert Run(scope="encoder+embeddings", precision="fp32").name == (
        f"{DEFAULT_NAME}_scope~encoder+embeddings_precision~fp32"
    )


@pytest.mark.parametrize(
    "given_task, written",
    [
        ("my_reviews.csv", "my_reviews.csv"),
        ("../data/reviews.csv", "..--data--reviews.csv"),
        ("/home/me/my data/", "home--me--my-data"),
        ("C:\\data\\a~b.tsv", "C---data--a-b.tsv"),
        ("critiques/été.csv", "critiques--été.csv"),
        ("a\0b\nc", "a-b-c"),
    ],
)
def test_paths_are_readable_in_names(given_task, written):
    name = Run(task=given_task, model="sentence-transformers/all-mpnet-base-v2").name
    assert name == (
        f"task~{written}_method~adaprune_sparsity~0.5_seed~0_model~sentence-transformers--all-mpnet-base-v2"
    )


@pytest.mark.parametrize(
    "field, value", [("data_dir", "x"), ("results_dir", "y"), ("checkpoint_steps", 0), ("keep", "theta")]
)
def test_what_leaves_the_result_alone_leaves_the_name_alone(field, value):
    assert Run(**{field: value}).name == DEFAULT_NAME


OTHER = {
    "task": "rte",
    "method": "random",
    "model": "x",
    "recipe": "paper",
    "scope": "encoder+embeddings",
    "initial_theta": "normal",
    "precision": "bf16",
    "recovery": False,
    "allocation": "equal",
    "ablation": "shuffle",
    "sparsity": 0.75,
    "max_length": 64,
    "teacher": "results/t.json",
    "reach": 0.5,
    "head": "linear",
    "pattern": "units",
}


@pytest.mark.parametrize("field", [name for name in Run.model_fields if name not in RESULT_NEUTRAL])
def test_every_other_field_changes_the_name(field):
    name = Run(**{field: OTHER.get(field, 7)}).name
    assert name != DEFAULT_NAME and f"{field}~" in name
    assert [part.split("~")[0].split("_")[-1] for part in name.split("~")[:5]] == [*NAMED]


def test_the_longest_name_still_fits_a_file(tmp_path):
    room = NAME_BYTES - len(DEFAULT_NAME) + len("movie_reviews")
    longest = Run(task="x" * room)
    (tmp_path / f"{longest.name}.safetensors").touch()
    assert f"has {NAME_BYTES + 1} bytes" in message(task="x" * (room + 1))
    assert "shorter path" in message(task="é" * (room // 2 + 1))


@settings(deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1e6), st.integers(0, 2**32 - 1))
def test_names_give_the_numbers_back_exactly(sparsity, epochs, seed):
    run = Run(sparsity=sparsity, epochs=epochs, seed=seed)
    written = {key: run.name.split(f"{key}~")[1].split("_")[0] for key in ("sparsity", "seed")}
    assert float(written["sparsity"]) == sparsity and int(written["seed"]) == seed
    assert run.name == Run(sparsity=sparsity, epochs=epochs, seed=seed).name
    assert ("epochs~" in run.name) == (epochs != 0)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_any_task_gives_a_safe_file_name(task):
    try:
        name = Run(task=task).name
    except ValueError:
        assert not task.strip() or len(task.encode(errors="replace")) > 40
        return
    assert "/" not in name and "\\" not in name and name.isprintable() and name.count("~") == 5


def test_a_namespace_gives_its_fields_and_nothing_else():
    kernel = {
        "_": 3,
        "__name__": "x",
        "Out": {},
        "exit": exit,
        "open": open,
        "math": math,
        "Path": Path,
        "PAPERMILL_INPUT_PATH": "in.ipynb",
    }
    assert Run.from_namespace({**kernel, "seed": 4, "task": "rte"}) == Run(seed=4, task="rte")


@pytest.mark.parametrize("stranger", [0.3, "x", None, [1], {"a": 1}, True])
def test_a_namespace_with_an_unknown_variable_is_refused(stranger):
    with pytest.raises(ValueError, match="unknown parameter 'sparsty': did you mean 'sparsity'"):
        Run.from_namespace({"sparsty": stranger, "sparsity": 0.5})


def test_a_cell_can_be_run_again_after_later_cells_made_variables():
    history = [
        "",
        "sparsity = 0.5  # help\nseed: int = 0",
        "record = adapt(run)\nscore = 0.9",
        "%magic (",
        "a\0b",
    ]
    later = {"In": history, "sparsity": 0.5, "seed": 0, "record": {}, "score": 0.9}
    assert Run.from_namespace(later) == Run()
    for typo in ("sed = 1", "# Parameters\nsed = float('nan')\n", "'''text'''\nsed: int = -1"):
        with pytest.raises(ValueError, match="unknown parameter 'sed'"):
            Run.from_namespace({**later, "In": [*history, typo], "sed": 1})


def test_what_papermill_injects_is_judged(tmp_path):
    tags = {"tags": ["parameters"]}
    parameters = nbformat.v4.new_code_cell("sparsity = 0.5\nrecovery = True", metadata=tags)
    body = (
        "from adaprune.runs import Run\nMINE = {'later': 1}\ntry:\n    Run.from_namespace(globals())\n"
        "except ValueError as error:\n    print(error)"
    )
    again = "del sparsty, recovery\nprint(Run.from_namespace(globals()).name)"
    cells = [parameters, nbformat.v4.new_code_cell(body), nbformat.v4.new_code_cell(again)]
    language = {"language_info": {"name": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=language), tmp_path / "in.ipynb")
    done = papermill.execute_notebook(
        str(tmp_path / "in.ipynb"),
        str(tmp_path / "out.ipynb"),
        progress_bar=False,
        kernel_name="python3",
        parameters={"sparsty": 0.3, "recovery": "false", "seed": 7},
        cwd=str(Path(__file__).parents[2]),
    )
    told, name = (cell.outputs[0].text for cell in done.cells[-2:])
    assert "unknown parameter 'sparsty': did you mean 'sparsity'?" in told and "recovery must be True" in told
    assert "MINE" not in told and len(told.splitlines()) == 3
    assert name.strip() == DEFAULT_NAME.replace("seed~0", "seed~7")


def test_a_teacher_adds_to_the_name_only_what_is_its_own():
    common = {"task": "stsb", "epochs": 3, "precision": "bf16"}
    teacher = Run(**common, method="finetune", sparsity=0.0, seed=1)
    pupil = Run(**common, seed=10, teacher=f"results/{teacher.name}.json")
    assert pupil.name == pupil.model_copy(update={"teacher": ""}).name + "_teacher~method-finetune_sparsity-0_seed-1"
