"""Many tasks on one base: the single-task model's logits to the last bit, one copy of the weights, clear errors."""

import json
import os
import threading
from pathlib import Path

import pandas as pd
import pytest
import scipy.stats
import torch
from huggingface_hub import close_session, constants
from transformers import pipeline

from adaprune import Adapted, MaskedEncoder, apply_mask, load_encoder, load_mask, save_mask
from adaprune.deploy.serving import INDEX
from adaprune.deploy.task_inference import called, task_entropies, task_scores
from adaprune.masks.layers import maskable
from adaprune.training.encoders import tensor_hashes
from adaprune.training.heads import AdaptationHead, AdaptedModel
from tests import tiny
from tests.deploy import hub_stand_in

TASKS = {"good_bad": ["bad", "good"], "three": ["a", "b", "c"], "grade": [], "two": ["no", "yes"]}
SENTENCES = ["a fine film", "dull and long", "see it twice", "the cast is wasted , cold and flat"]


def make_mask(folder, encoder, name, labels, seed, scope="encoder", model="tiny", kind="mlp", **said):
    """A mask file of random bits and a random head, which is not near 0."""
    generator = torch.Generator().manual_seed(seed)
    modules = maskable(encoder, scope).items()
    masks = {weight: torch.rand(module.weight.shape, generator=generator) < 0.5 for weight, module in modules}
    config = encoder.config
    head = AdaptationHead(config.num_hidden_layers, config.hidden_size, len(labels) or 1, kind).state_dict()
    head = {p: torch.randn(value.shape, generator=generator) for p, value in head.items()}
    card = {
        "task": name,
        "labels": labels,
        "model": str(model),
        "revision": "unknown",
        "metrics": {"accuracy": 0.5},
        **said,
    }
    return save_mask(folder / f"{name}.safetensors", masks, head, card, encoder)


@pytest.fixture
def paths(tmp_path, tiny_model_dir):
    """Task -> mask file; one of them masks the word embeddings too, and two heads read the mean over tokens."""
    encoder, folder = load_encoder(str(tiny_model_dir)).model, tmp_path / "masks"
    scopes, pooled = {"three": "encoder+embeddings"}, {"three": "mean", "grade": "mean"}
    return {
        name: make_mask(
            folder, encoder, name, labels, seed, scopes.get(name, "encoder"), tiny_model_dir,
            pooling=pooled.get(name, "cls"),
        )
        for seed, (name, labels) in enumerate(TASKS.items())
    }  # fmt: skip


@pytest.fixture
def served(paths, tiny_model_dir):
    model = MaskedEncoder.from_pretrained(str(tiny_model_dir))
    for name, path in paths.items():
        model.add_task(name, path)
    return model


def alone(path, folder):
    """The single-task model on a base of its own."""
    return apply_mask(load_encoder(str(folder)).model, load_mask(path))


def read(model, sentences=SENTENCES):
    return dict(model.tokenizer(sentences, return_tensors="pt", padding=True))


def test_logits_are_those_of_the_single_task_model_to_the_last_bit(served, paths, tiny_model_dir):
    batch = read(served)
    for name in [*TASKS, *reversed(TASKS)]:
        served.set_task(name)
        with torch.no_grad():
            expected = alone(paths[name], tiny_model_dir)(**batch).logits
        assert torch.equal(served(**batch).logits, expected)
        assert served.config.num_labels == (len(TASKS[name]) or 1)


@pytest.mark.parametrize("family", tiny.FIVE)
@pytest.mark.parametrize(("scope", "pooling"), [("encoder", "cls"), ("encoder+embeddings", "mean")])
def test_every_family(tmp_path, family, scope, pooling):
    from adaprune.training.encoders import Encoder

    encoder = tiny.encoder(family)
    path = make_mask(tmp_path, encoder, "t", ["a", "b"], 3, scope, pooling=pooling)
    served = MaskedEncoder(Encoder(encoder, None, family, "none"))
    with torch.no_grad():
        bare = encoder(**tiny.batch()).last_hidden_state
        assert torch.equal(bare, tiny.encoder(family)(**tiny.batch()).last_hidden_state)  # no task: the base itself
        expected = apply_mask(tiny.encoder(family), load_mask(path))(**tiny.batch()).logits
    served.add_task("t", path)
    assert torch.equal(served(**tiny.batch()).logits, expected)


def test_a_mixed_batch_is_each_row_by_its_own_task(served, paths, tiny_model_dir):
    tasks = ["three", "grade", "good_bad", "three"]
    batch, before = read(served), {name: tensor.clone() for name, tensor in served.state_dict().items()}
    logits = served(**batch, tasks=tasks).logits
    assert logits.shape == (4, 3)
    for name in set(tasks):
        rows = torch.tensor([row for row, of in enumerate(tasks) if of == name])
        width = len(TASKS[name]) or 1
        with torch.no_grad():
            own = alone(paths[name], tiny_model_dir)(**{key: value[rows] for key, value in batch.items()}).logits
        assert torch.equal(logits[rows, :width], own)
        assert (logits[rows, width:] == -torch.inf).all()
    assert served.active_task == "good_bad"  # nothing was switched, nothing stored has changed
    assert all(torch.equal(tensor, before[name]) for name, tensor in served.state_dict().items())


def test_weights_exist_once_and_a_task_adds_its_bits_and_head(served, tiny_model_dir):
    base = load_encoder(str(tiny_model_dir)).model
    assert tensor_hashes(served.encoder) == tensor_hashes(base)
    in_scope = sum(module.weight.numel() for module in maskable(base).values())
    stored = {name: t for name, t in served.state_dict().items() if name.startswith("_tasks.task two.")}
    floats = sum(t.numel() for name, t in stored.items() if ".head." in name)
    assert sum(t.numel() * t.element_size() for t in stored.values()) == in_scope // 8 + 4 * floats + 256 * 8
    others = sum(p.numel() for name, p in served.named_parameters() if not name.startswith("_tasks."))
    assert others == sum(p.numel() for p in base.parameters())
    assert not any(parameter.requires_grad for parameter in served.parameters())


def test_threads_serve_their_own_tasks(served):
    batch, found = read(served), {}
    expected = {name: served(**batch, tasks=[name] * 4).logits for name in TASKS}

    def serve(name):
        found[name] = [served(**batch, tasks=[name] * 4).logits for _ in range(5)]

    threads = [threading.Thread(target=serve, args=(name,)) for name in TASKS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(logits, expected[name]) for name in TASKS for logits in found[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_moved_to_another_dtype_it_is_the_single_task_model_moved(served, paths, tiny_model_dir, dtype):
    served.to(dtype)
    single = alone(paths["three"], tiny_model_dir).to(dtype)
    with torch.no_grad():
        assert torch.equal(served(**read(served), tasks=["three"] * 4).logits, single(**read(served)).logits)
    assert served.dtype == dtype
    with pytest.raises(ValueError, match="another base: .* in float32"):
        served.add_task("again", paths["two"])
    with pytest.raises(ValueError, match="float32"):
        served.save_pretrained("nowhere")
    assert served.tasks == list(TASKS)


def test_a_pipeline_serves_the_active_task(served):
    pipe = pipeline("text-classification", model=served, tokenizer=served.tokenizer, device="cpu")
    for name, labels in TASKS.items():
        served.set_task(name)
        answers = pipe(SENTENCES, top_k=None, batch_size=2)
        logits = served(**read(served)).logits
        expected = logits.softmax(-1) if labels else logits
        for answer, row in zip(answers, expected, strict=True):
            scores = {entry["label"]: entry["score"] for entry in answer}
            assert list(scores) == sorted(scores, key=scores.get, reverse=True)
            for label, score in zip(labels or ["score"], row.tolist(), strict=True):
                assert scores[label] == pytest.approx(score, rel=1e-4, abs=1e-5)  # padded to other lengths


def test_a_pipeline_cuts_texts_as_the_active_task_was_trained(served, paths, tiny_model_dir, tmp_path):
    """Without a tokenizer being given, and also after a switch."""
    encoder, pipe = load_encoder(str(tiny_model_dir)).model, pipeline("text-classification", model=served)
    for length, columns in ((8, ["text"]), (12, ["text", "text_pair"])):
        path = make_mask(
            tmp_path, encoder, f"of_{length}", ["a", "b"], length, model=tiny_model_dir, max_length=length,
            columns=columns,
        )  # fmt: skip
        served.add_task(f"of_{length}", path)
        served.set_task(f"of_{length}")
        assert (served.max_length, served.columns) == (length, tuple(columns))
        long = "a fine film and " * 200
        given = (long,) if len(columns) == 1 else (long, "dull and long")
        tokens = served.tokenizer(*given, truncation=True, max_length=length, return_tensors="pt")
        assert tokens["input_ids"].shape[1] == length
        (answer,) = pipe([dict(zip(columns, given, strict=True))])
        assert answer["score"] == pytest.approx(float(served(**tokens).logits.softmax(-1).max()), abs=1e-5)
    with pytest.raises(ValueError, match='this task reads {"text": ..., "text_pair": ...}'):
        pipe("one text")


@pytest.mark.parametrize(
    "said", [{"max_length": "128"}, {"max_length": 0}, {"columns": "text"}, {"columns": ["label"]}, {"metrics": "x"}]
)
def test_a_card_that_no_run_wrote_is_refused(said, served, tiny_model_dir, tmp_path):
    path = make_mask(
        tmp_path, load_encoder(str(tiny_model_dir)).model, "odd", ["a", "b"], 9, model=tiny_model_dir, **said
    )
    (name, value), before = *said.items(), served.tasks
    with pytest.raises(ValueError, match=f"the mask's card says .*{name}={value!r}".replace("[", r"\[")):
        served.add_task("odd", path)
    assert served.tasks == before
    with pytest.raises(ValueError, match="the mask's card says"):
        Adapted.from_pretrained(path, base=str(tiny_model_dir))


def test_tasks_that_are_no_list_and_masks_that_are_no_path(served):
    for tasks in (3, iter(["two"] * 4), "two"):
        with pytest.raises(ValueError, match="tasks must be a list of 4 names, one for each row"):
            served(**read(served), tasks=tasks)
    for path in (None, 5, ["sst2"]):
        with pytest.raises(TypeError, match="a mask is given by a path or a name of the zoo, got"):
            load_mask(path)


def test_names_may_have_dots(served, paths, tmp_path):
    """As those of the zoo have, "sst2-0.9"; torch's own modules may not."""
    served.add_task("two-0.9", paths["two"])
    batch = read(served)
    assert torch.equal(served(**batch, tasks=["two-0.9"] * 4).logits, served(**batch, tasks=["two"] * 4).logits)
    served.save_pretrained(tmp_path / "all")
    again = MaskedEncoder.from_pretrained(str(tmp_path / "all"))
    assert again.tasks == served.tasks == [*TASKS, "two-0.9"]
    served.delete_task("two-0.9")
    assert served.tasks == list(TASKS)


def test_bad_input(served, paths, tmp_path, tiny_model_dir):
    batch = read(served)
    with pytest.raises(ValueError, match="'two' is there already"):
        served.add_task("two", paths["two"])
    for unfit in ("", ".b", "../up", "a,b", "a b", "x" * 101, "ä", "aä", "x\n", 3, None):
        with pytest.raises(ValueError, match="letters a to z, digits"):
            served.add_task(unfit, paths["two"])
    with pytest.raises(ValueError, match=r"'two' is there already: delete_task\('two'\) first"):
        served.add_task("Two", paths["two"])  # some file systems know no capitals
    for taken in ("adaprune", "AdaPrune"):
        with pytest.raises(ValueError, match=f"'{taken}' would have its card in adaprune.json, the index of tasks"):
            served.add_task(taken, paths["two"])
    with pytest.raises(ValueError, match="unknown task 'five': the tasks are good_bad, three, grade, two"):
        served(**batch, tasks=["two", "two", "five", "two"])
    for wrong in (["two"], "good", ["two"] * 5):
        with pytest.raises(ValueError, match="4 names, one for each row"):
            served(**batch, tasks=wrong)
    for call in (served.set_task, served.delete_task):
        with pytest.raises(ValueError, match="unknown task"):
            call("five")
    other = tiny.encoder()
    foreign = make_mask(tmp_path, other, "foreign", ["a", "b"], 0)
    with pytest.raises(ValueError, match="another base"):
        served.add_task("foreign", foreign)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(paths["two"].read_bytes()[:-1])
    with pytest.raises(ValueError, match="broken.safetensors is not a whole mask file"):
        served.add_task("broken", broken)
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        served.add_task("none", tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="neither a mask file"):
        served.add_task("none", tmp_path)
    assert served.tasks == list(TASKS) and served.active_task == "good_bad"
    served.delete_task("good_bad")
    with pytest.raises(ValueError, match="no task is active: set_task one of three, grade, two"):
        served(**batch)
    served.add_task("good_bad", paths["good_bad"])
    assert served.active_task == "good_bad"
    assert served(**batch, tasks=["two"] * 4).logits.shape == (4, 2)


def test_the_base_of_many_tasks_is_not_made_that_of_one(served, paths):
    batch, mask = read(served), load_mask(paths["two"])
    before = served(**batch).logits
    for model in (served.encoder, AdaptedModel.for_task(served.encoder, 2)):
        with pytest.raises(ValueError, match="a MaskedEncoder serves this encoder: add_task"):
            apply_mask(model, mask)
    assert torch.equal(served(**batch).logits, before)


def test_saved_and_loaded_again_byte_for_byte(served, paths, tmp_path, tiny_model_dir):
    folder = tmp_path / "all"
    served.save_pretrained(folder)
    for path in paths.values():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    readme = (folder / "README.md").read_text()
    assert readme.startswith("---\n") and "pipeline_tag: text-classification" in readme and "accuracy" in readme
    again = MaskedEncoder.from_pretrained(str(folder))
    assert again.tasks == list(TASKS) and again.active_task == "good_bad"
    batch = read(served)
    assert torch.equal(again(**batch).logits, served(**batch).logits)
    third = MaskedEncoder.from_pretrained(str(tiny_model_dir))
    third.add_task("three", folder)
    with pytest.raises(ValueError, match="has no task 'five': it has good_bad, three, grade, two"):
        third.add_task("five", folder)
    assert third.tasks == ["three"]
    with pytest.raises(ValueError, match="no task to save"):
        MaskedEncoder.from_pretrained(str(tiny_model_dir)).save_pretrained(tmp_path / "none")
    for content in ("", "[]", '{"tasks": []}', '{"tasks": ["../two"]}', '{"tasks": [1]}', "[" * 100_000):
        (folder / INDEX).write_text(content)
        with pytest.raises(ValueError, match="is not a list of tasks"):
            MaskedEncoder.from_pretrained(str(folder))


def test_a_kill_while_stale_files_go_leaves_tasks_that_load(served, tmp_path, monkeypatch):
    """The index then names only what is there, or a folder could no longer be loaded."""
    served.save_pretrained(tmp_path)
    served.delete_task("two")

    real = Path.unlink

    def killed(path, **more):
        real(path, **more)
        if path.name == "two.safetensors":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        served.save_pretrained(tmp_path)
    assert not (tmp_path / "two.safetensors").exists()
    assert MaskedEncoder.from_pretrained(str(tmp_path)).tasks == served.tasks


@pytest.mark.parametrize("name", ["README.md", INDEX])
def test_a_save_that_fails_leaves_the_old_file_whole(served, tmp_path, monkeypatch, name):
    served.save_pretrained(tmp_path)
    before, real = (tmp_path / name).read_bytes(), os.replace

    def full(source, target):
        if target.name == name:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    served.delete_task("two")
    with pytest.raises(OSError, match="No space left"):
        served.save_pretrained(tmp_path)
    assert (tmp_path / name).read_bytes() == before and not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("capitals", [True, False])
def test_a_task_replaced_by_one_of_other_capitals_is_saved(served, paths, tmp_path, capitals, monkeypatch):
    """Where both names are one file, as on a disk without capitals (pretended), it stays: it is the new task's."""
    served.save_pretrained(tmp_path / "all")
    served.delete_task("two")
    served.add_task("Two", paths["two"])
    if not capitals:
        monkeypatch.setattr(Path, "samefile", lambda one, other: one.name.lower() == other.name.lower())
    served.save_pretrained(tmp_path / "all")
    assert MaskedEncoder.from_pretrained(str(tmp_path / "all")).tasks == served.tasks
    assert (tmp_path / "all" / "two.safetensors").exists() != capitals


def test_masks_that_name_no_base(tmp_path):
    encoder = tiny.encoder()
    head = AdaptationHead(2, 32, 2).state_dict()
    masks = {name: torch.ones(module.weight.shape, dtype=torch.bool) for name, module in maskable(encoder).items()}
    save_mask(tmp_path / "a.safetensors", masks, head, {"labels": ["a", "b"]}, encoder)
    (tmp_path / INDEX).write_text('{"tasks": ["a"]}')
    with pytest.raises(ValueError, match="names no base model"):
        MaskedEncoder.from_pretrained(str(tmp_path))


def test_task_scores_are_the_slope_of_the_entropy(served, tiny_model_dir):
    """By another route: the entropy of the mixed model at shares moved a little to either side."""
    served.double()  # differences of float32 would be too coarse
    batch, names = read(served), ["good_bad", "two"]

    def entropy(shares):
        tasks = [served.task(name) for name in names]
        mixed = load_encoder(str(tiny_model_dir)).model.double()
        for name, module in maskable(mixed).items():
            kept = [share * task.kept(name, module.weight) for share, task in zip(shares, tasks, strict=True)]
            module.weight.copy_(module.weight * sum(kept))
        head = AdaptationHead(2, 16, 2).double()
        own = [dict(task.head.named_parameters()) for task in tasks]
        head.load_state_dict({p: sum(a * o[p] for a, o in zip(shares, own, strict=True)) for p in own[0]})
        states = mixed(**batch, output_hidden_states=True).hidden_states
        share = head(states[1:]).softmax(-1)
        return float(-(share * share.log()).sum(-1).mean())

    scores = task_scores(served, names, **batch)
    step = 1e-5
    with torch.no_grad():
        for place, name in enumerate(names):
            up, down = ([0.5 + sign * step * (at == place) for at in range(2)] for sign in (1, -1))
            assert scores[name] == pytest.approx(-(entropy(up) - entropy(down)) / (2 * step), rel=1e-4)
    assert set(scores) == set(names) and scores["two"] != scores["good_bad"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_task_scores_take_their_gradient_in_any_mode(served, paths, tiny_model_dir, mode):
    expected = task_scores(served, ["good_bad", "two"], **read(served))
    with mode():
        assert task_scores(served, ["good_bad", "two"], **read(served)) == expected
        other = MaskedEncoder.from_pretrained(str(tiny_model_dir))  # whose weights are of that mode too
        other.add_task("good_bad", paths["good_bad"])
        other.add_task("two", paths["two"])
        assert task_scores(other, **read(served)) == expected
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode) and not torch.is_grad_enabled()


def test_inputs_for_all_rows_go_to_every_task(served):
    batch, tasks = read(served), ["three", "grade", "good_bad", "three"]
    expected = served(**batch, tasks=tasks).logits
    places = torch.arange(batch["input_ids"].shape[1])
    for position_ids in (places[None], places.expand(4, -1)):
        assert torch.equal(served(**batch, position_ids=position_ids, tasks=tasks).logits, expected)


def test_task_scores_need_tasks_with_the_same_classes_and_heads(served, tmp_path):
    for tasks in (None, ["two"], ["two", "three"], ["grade", "two"]):
        with pytest.raises(ValueError, match="one number of classes"):
            task_scores(served, tasks, **read(served))
    served.add_task("plain", make_mask(tmp_path, served.encoder, "plain", ["no", "yes"], 9, kind="linear"))
    served.add_task("mean", make_mask(tmp_path, served.encoder, "mean", ["no", "yes"], 9, pooling="mean"))
    for other, said in {"plain": r"'linear', 'cls'", "mean": r"'mlp', 'mean'"}.items():
        for tasks in (["two", other], [other, "two"]):
            with pytest.raises(ValueError, match=rf"heads are of one kind and pooling; by task: .*'{other}': .{said}"):
                task_scores(served, tasks, **read(served))
    with pytest.raises(ValueError, match="unknown task 'five'"):
        task_scores(served, ["two", "five"], **read(served))


def test_task_entropies_are_those_of_the_single_task_models(served, paths, tiny_model_dir):
    found = task_entropies(served, ["three", "two"], **read(served))
    assert list(found) == ["three", "two"]
    for name, unsure in found.items():
        with torch.no_grad():
            shares = alone(paths[name], tiny_model_dir)(**read(served)).logits.double().softmax(-1)
        expected = scipy.stats.entropy(shares, axis=1, base=len(TASKS[name]))
        assert unsure.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    for tasks in (None, ["two"], ["grade", "two"]):
        with pytest.raises(ValueError, match="two tasks with 2 classes or more; classes by task"):
            task_entropies(served, tasks, **read(served))


def test_called_measures_each_task_by_its_own_habit():
    """b is always higher than a, and only once higher than it mostly is; c never says anything."""
    scores = pd.DataFrame({"a": [1.0, 2, 3, 2], "b": [9.0, 7.5, 8, 7], "c": [5.0] * 4}, index=list("wxyz"))
    assert called(scores).to_dict() == {"w": "b", "x": "a", "y": "a", "z": "a"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """huggingface_hub talks to a stand-in on this machine instead of the hub."""
    server = hub_stand_in.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    close_session()  # one that was opened offline stays offline
    yield server
    close_session()
    server.shutdown()
    server.server_close()


def test_pushed_to_the_hub_and_fetched_again(served, paths, tiny_model_dir, hub):
    assert served.push_to_hub("user/masks", private=True, token="a-token") == f"{hub.address}/user/masks"
    pushed = hub.repos["user/masks"]
    assert set(pushed) == {"README.md", INDEX, *(f"{name}{end}" for name in TASKS for end in (".safetensors", ".json"))}
    assert json.loads(pushed[INDEX]) == {"tasks": list(TASKS)}
    assert all(pushed[path.name] == path.read_bytes() for path in paths.values())
    again = MaskedEncoder.from_pretrained("user/masks")
    assert again.tasks == list(TASKS)
    batch = read(served)
    assert torch.equal(again(**batch).logits, served(**batch).logits)
    third = MaskedEncoder.from_pretrained(str(tiny_model_dir))
    third.add_task("two", "user/masks")
    hub.repos["user/empty"] = {}
    for name in ("user/none", "user/empty"):
        with pytest.raises(FileNotFoundError, match=f"{name} is neither a mask file nor a folder or repository"):
            third.add_task("x", name)
    hub.repos["user/damaged"] = {**pushed, "two.safetensors": pushed["two.safetensors"][:-1]}
    with pytest.raises(ValueError, match="two.safetensors"):
        MaskedEncoder.from_pretrained("user/damaged")
