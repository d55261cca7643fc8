"""Runs as people make them: a base that changed, paths under ``~``, files of others, copies, wrong arguments."""

import json
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertModel

import adaprune
from adaprune import MaskedEncoder, Run, apply_mask, load_encoder, load_mask, save_mask, table
from adaprune.runs import mask_path, record_path
from tests import small_data

SMALL = {"epochs": 1, "batch_size": 4, "max_length": 16}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with one finished run of a random mask: ``ten`` (data), ``tiny`` (model), ``out``."""
    folder = tmp_path_factory.mktemp("finished")
    small_data.ten_sentences(folder / "ten")
    small_data.tiny_model(folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        adaprune.adapt(run_of())
    return folder


@pytest.fixture
def here(finished, tmp_path, monkeypatch):
    """A copy of it, to be changed, in which the test runs."""
    shutil.copytree(finished, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def run_of(**fields):
    return Run(**{"task": "ten", "model": "tiny", "method": "random", "results_dir": "out", **SMALL, **fields})


def change_model(folder):
    """Other weights under the same path."""
    model = BertModel.from_pretrained(folder)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.mul_(2)
    model.save_pretrained(folder)


def test_a_finished_run_whose_base_changed_is_refused(here):
    assert adaprune.adapt(run_of())["weights_intact"]
    change_model("tiny")
    with pytest.raises(ValueError, match="the weights of model 'tiny' have changed .*choose another results_dir"):
        adaprune.adapt(run_of())
    shutil.rmtree("tiny")  # a record can be read without its model
    assert adaprune.adapt(run_of())["weights_intact"]


def change_config(folder):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_norm_eps": 1e-5}))


def change_tokenizer(folder):
    path = Path(folder) / "tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase": true', '"lowercase": false'))


@pytest.mark.parametrize("change", [change_config, change_tokenizer])
def test_a_finished_run_whose_config_or_tokenizer_changed_is_refused(here, change):
    change("tiny")
    with pytest.raises(ValueError, match="config.json or tokenizer of model 'tiny' have changed .*another results_dir"):
        adaprune.adapt(run_of())
    path = record_path(run_of())
    record = json.loads(path.read_text())
    del record["environment"]["model_files"]  # as older records are
    path.write_text(json.dumps(record))
    assert adaprune.adapt(run_of())["weights_intact"]


@pytest.mark.parametrize("change", [change_config, change_tokenizer])
def test_a_mask_on_another_config_or_tokenizer_is_told(here, change):
    path = mask_path(run_of())
    adaprune.Adapted.from_pretrained(path)
    change("tiny")
    with pytest.warns(UserWarning, match="'tiny': config.json or tokenizer differ .*: answers may differ"):
        adaprune.Adapted.from_pretrained(path, base="tiny")
    with pytest.warns(UserWarning, match="'tiny': config.json or tokenizer differ .*: answers may differ"):
        MaskedEncoder.from_pretrained("tiny").add_task("a", path)


@pytest.mark.parametrize("change", [change_model, change_config, change_tokenizer])
def test_a_checkpoint_is_not_continued_on_another_base(here, change, monkeypatch):
    run = run_of(seed=1, checkpoint_steps=1)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["adaprune.adapt"], "write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            adaprune.adapt(run)
    change("tiny")
    with pytest.raises(ValueError, match=r"interrupted run in .* had another model(_files)? \(.*: delete that folder"):
        adaprune.adapt(run)
    shutil.rmtree("out/.checkpoints")
    assert adaprune.adapt(run)["weights_intact"]


def test_home_and_variables_in_every_path_of_a_run(here, monkeypatch):
    home = here / "home"
    for name in ("ten", "tiny"):
        shutil.copytree(name, home / name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WORK", str(here))
    run = run_of(task="~/ten", model="~/tiny", results_dir="~/mine", method="finetune")
    adaprune.adapt(run)
    assert record_path(run) == home / "mine" / f"{run.name}.json" and record_path(run).is_file()
    assert not Path("~").exists() and not Path("$WORK").exists()
    assert len(table("~/mine")) == 1
    pupil = run_of(
        task="$WORK/home/ten", model="$WORK/tiny", results_dir="$WORK/mine", teacher=f"~/mine/{run.name}.json"
    )
    adaprune.adapt(pupil)
    assert (here / "mine" / f"{pupil.name}.json").is_file()
    card = (here / "mine" / "masks" / f"{pupil.name}.json").read_text()
    assert str(here) not in card and "$WORK" not in card and json.loads(card)["model"] == "tiny"
    with (home / "ten" / "train.csv").open("a") as file:
        file.write("more,good\n")
    with pytest.raises(ValueError, match="the data have changed"):
        adaprune.adapt(run)


@pytest.mark.parametrize("data_dir", ["", "glue"])
def test_own_rows_that_changed_are_noticed_whatever_the_data_dir(here, data_dir):
    with open("ten/train.csv", "a") as file:
        file.write("more,good\n")
    with pytest.raises(ValueError, match="the data have changed"):
        adaprune.adapt(run_of(data_dir=data_dir))


def test_a_card_has_no_path(here):
    run = run_of(task=str(here / "ten"), model=str(here / "tiny"), results_dir=str(here / "other"))
    adaprune.adapt(run)
    card = load_mask(mask_path(run)).card
    assert (card["max_length"], card["task"], card["model"]) == (16, "ten", "tiny")
    assert str(here) not in json.dumps(card) + mask_path(run).with_suffix(".json").read_text()


def test_json_that_is_no_record_is_skipped_with_one_line(here):
    for name, text in {
        "a.json": "{}",
        "b.json": "[1]",
        "served/x.json": '{"tasks": ["a"]}',
        "c.json": "3",
        "d.json": "",
    }.items():
        (here / "out" / name).parent.mkdir(exist_ok=True)
        (here / "out" / name).write_text(text or '{"loss": 1}\n{"loss": 0}\n')
    with pytest.warns(UserWarning, match="out: skipped files that are not records: .* and 2 more") as said:
        assert len(table("out")) == 1
    assert len(said) == 1
    (here / "out" / "e.json").write_bytes(b"")
    with pytest.warns(UserWarning, match="out: skipped files that are not records: .* and 3 more"):
        assert len(table("out")) == 1
    record_path(run_of()).write_text("{}")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="is not a record"):
        table("out")


def test_a_mask_copied_beside_its_record_loads(here):
    run = run_of()
    copied = shutil.copy(mask_path(run), "out")
    assert load_mask(copied).card == load_mask(mask_path(run)).card


@pytest.fixture
def served(here):
    served = MaskedEncoder.from_pretrained("tiny")
    served.add_task("a", mask_path(run_of()))
    served.add_task("b", mask_path(run_of()))
    return served


def test_saving_keeps_a_readme_of_others(served):
    Path("README.md").write_text("# weeks of notes\n")
    with pytest.warns(UserWarning, match=r"README\.md is not adaprune's"):
        served.save_pretrained(".")
    assert Path("README.md").read_text() == "# weeks of notes\n"
    served.save_pretrained("own")
    served.save_pretrained("own")
    assert "library_name: adaprune" in Path("own/README.md").read_text()


def test_a_second_save_removes_what_was_deleted_and_refuses_what_it_does_not_know(served):
    served.save_pretrained("own")
    Path("own/b.txt").write_text("mine")
    served.delete_task("b")
    served.save_pretrained("own")
    assert sorted(path.name for path in Path("own").iterdir()) == sorted(
        ["README.md", "a.json", "a.safetensors", "adaprune.json", "b.txt"]
    )
    other = MaskedEncoder.from_pretrained("tiny")
    other.add_task("c", mask_path(run_of()))
    with pytest.raises(FileExistsError, match="own holds the tasks a, which this model does not have"):
        other.save_pretrained("own")
    assert MaskedEncoder.from_pretrained("own").tasks == ["a"]
    Path("loose").mkdir()
    save_file({"weight": torch.ones(2)}, "loose/c.safetensors")
    with pytest.raises((FileExistsError, ValueError), match=r"c\.safetensors"):
        other.save_pretrained("loose")


def test_a_base_in_a_folder_can_be_named(served, here):
    served.save_pretrained("own")
    shutil.move("tiny", "elsewhere")
    with pytest.raises(OSError, match=r"the base model of own: .* give base=PATH"):
        MaskedEncoder.from_pretrained("own")
    assert MaskedEncoder.from_pretrained("own", base="elsewhere").tasks == ["a", "b"]


def test_a_base_in_a_folder_is_found_by_what_is_in_it(here, monkeypatch, tmp_path):
    """Cards have no path: where this process loaded it, or where the run beside the mask had it."""
    run = run_of(model=str(here / "tiny"), results_dir="runs_of_mine")
    adaprune.adapt(run)
    monkeypatch.chdir(tmp_path)  # no folder is called tiny here
    mask, expected = here / mask_path(run), load_mask(mask_path(run_of(results_dir=str(here / "out")))).masks
    adaprune.Adapted.from_pretrained(mask).save_pretrained("mine")
    assert adaprune.Adapted.from_pretrained("mine").predict("a")  # this process knows
    monkeypatch.setattr("adaprune.training.model_files._PLACES", {})
    with pytest.raises(OSError, match=r"the base model of mine: model 'tiny' .* give base=PATH"):
        adaprune.Adapted.from_pretrained("mine")
    assert adaprune.Adapted.from_pretrained("mine", base=str(here / "tiny")).predict("a")
    monkeypatch.setattr("adaprune.training.model_files._PLACES", {})
    found = load_mask(mask).masks  # its record knows
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    monkeypatch.setattr("adaprune.training.model_files._PLACES", {})
    shutil.copytree(here / "runs_of_mine", "mine/runs")  # as the command leaves them
    assert adaprune.Adapted.from_pretrained("mine").predict("a")


def test_tensors_of_others_are_not_replaced_by_a_mask(here):
    mask, encoder = load_mask(mask_path(run_of())), load_encoder("tiny").model
    save_file({"weight": torch.ones(2)}, "model.safetensors")
    with pytest.raises(FileExistsError, match=r"model\.safetensors holds tensors, but no mask"):
        save_mask("model.safetensors", mask.masks, mask.head, {"labels": ["bad", "good"]}, encoder)
    save_mask("new.safetensors", mask.masks, mask.head, {"labels": ["bad", "good"]}, encoder)
    save_mask("new.safetensors", mask.masks, mask.head, {"labels": ["good", "bad"]}, encoder)
    assert load_mask("new.safetensors").card["labels"] == ["good", "bad"]


def test_a_mask_whose_card_has_labels_only_is_saved_and_evaluated(here):
    loaded, mask = load_encoder("tiny"), load_mask(mask_path(run_of()))
    file = save_mask("bare.safetensors", mask.masks, mask.head, {"labels": ["bad", "good"]}, loaded.model)
    adapted = adaprune.Adapted(load_mask(file), loaded, file)
    assert adapted.evaluate(["dull", "a fine film"], labels=["bad", "good"]).keys() == {"accuracy", "f1_macro"}
    adapted.save_pretrained("bare")
    assert "dev rows" not in Path("bare/README.md").read_text()
    assert adaprune.Adapted.from_pretrained("bare", base="tiny").labels == ["bad", "good"]


def test_wrong_arguments_are_named(here):
    loaded, mask = load_encoder("tiny"), load_mask(mask_path(run_of()))
    with pytest.raises(TypeError, match="model must be an encoder .* got Encoder: give its .model"):
        apply_mask(loaded, mask)
    with pytest.raises(TypeError, match=r"mask must be what load_mask\(path\) returns, got str 'out/m\.safetensors'"):
        apply_mask(loaded.model, "out/m.safetensors")
    with pytest.raises(TypeError, match=r"model must be .* got str: give load_encoder"):
        apply_mask("tiny", mask)
    with pytest.raises(TypeError, match="base must be an encoder .* got Encoder: give its .model"):
        load_mask(mask_path(run_of()), base=loaded)
    with pytest.raises(TypeError, match="base must be what load_encoder returns, got BertModel"):
        adaprune.MaskedEncoder(loaded.model)
    with pytest.raises(TypeError, match="a path or name must be text, got '3' .int"):
        adaprune.MaskedEncoder(loaded).add_task("x", 3)
    with pytest.raises(TypeError, match="Adapted needs what load_mask returns, got str"):
        adaprune.Adapted("m.safetensors", loaded, "m.safetensors")
    with pytest.raises(TypeError, match="Adapted needs what load_encoder returns, got BertModel"):
        adaprune.Adapted(mask, loaded.model, "m.safetensors")
    with pytest.raises(TypeError, match="model must be what apply_mask or compact returns, got BertModel"):
        adaprune.set_runtime(loaded.model, "sparse")
    with pytest.raises(
        TypeError, match=r"encoder must be a torch module, got Encoder: give load_encoder\(\.\.\.\)\.model"
    ):
        save_mask("m.safetensors", mask.masks, mask.head, {"labels": ["a", "b"]}, loaded)
    for labels in ([0, 1], ["a"], ["a", "b", "c"]):
        with pytest.raises(
            ValueError, match="labels must be different texts, one for each of the head's 2 outputs, got"
        ):
            save_mask("m.safetensors", mask.masks, mask.head, {"labels": labels}, loaded.model)
    damaged = {name: tensor * torch.nan for name, tensor in mask.head.items()}
    with pytest.raises(ValueError, match="the head's tensors are not those .* holds NaN or infinity"):
        save_mask("m.safetensors", mask.masks, damaged, {"labels": ["a", "b"]}, loaded.model)
    assert not Path("m.safetensors").exists()
    assert load_encoder(Path("tiny")).id == "tiny"
    with pytest.raises(OSError, match="model 'none' cannot be loaded: there is no such folder"):
        load_encoder(Path("none"))
    with pytest.raises(ValueError, match="is in float16, masks belong to tensors in float32"):
        save_mask("half.safetensors", mask.masks, mask.head, {"labels": ["a", "b"]}, loaded.model.half())


def test_nothing_is_left_where_writing_was_tried(tmp_path):
    (tmp_path / ".writable").write_text("mine")
    adaprune.runs.check_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".writable"]
    assert (tmp_path / ".writable").read_text() == "mine"


def test_the_old_name_of_the_records_module_still_gives_mask_path():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from adaprune.records import mask_path as old
    assert old is mask_path
