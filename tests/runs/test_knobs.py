"""Every field of `Run` changes the result, in the direction that its formula says; or, being neutral, changes nothing.

`KNOBS` and `NEUTRAL` name all fields between them, and what must differ between a run and the same run with one field
changed. A knob that does nothing fails here. Then the directions, and every field that a method says it reads.
"""

import math
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertModel

import adaprune
from adaprune.data.tasks import load_task
from adaprune.deploy.mask_file import load_mask
from adaprune.masks.counting import component_of
from adaprune.masks.cuts import keep_each, keep_top
from adaprune.masks.layers import attach, maskable
from adaprune.methods import METHODS
from adaprune.methods.learning import optimiser_for
from adaprune.methods.oneshot import activations, sensitivities_with_head
from adaprune.runs.answers import read_answers
from adaprune.runs.paths import mask_path, paths_of, record_path
from adaprune.runs.recipes import plan_for
from adaprune.runs.records import read_record
from adaprune.runs.run import RESULT_NEUTRAL, Run
from adaprune.training import predict, prepare, trainer
from adaprune.training.encoders import load_encoder
from adaprune.training.teachers import read_logits, read_teacher, with_teacher

WORDS = "a film the cast is i laughed and cried see it twice cold flat long".split()
STEPS = 10  # of a run below: 18 training rows are left of 20, five batches of four in each of two epochs
SMALL = {"task": "plain", "model": "tiny", "max_length": 24, "batch_size": 4, "epochs": 2, "results_dir": "out"}


def texts(count, seed):
    """Every second one superb, the others dull; of 4 to 17 words."""
    generator = np.random.default_rng(seed)
    return [" ".join([("dull", "superb")[n % 2], *generator.choice(WORDS, size=generator.integers(3, 17))])
            for n in range(count)]  # fmt: skip


def is_good(text):
    return text.startswith("superb")


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model_dir):
    """A folder with a task, its mirror image, the same texts as SST-2 in two places, and two models of a like shape."""
    folder = tmp_path_factory.mktemp("knobs")
    for name, labels in (("plain", ("bad", "good")), ("turned", ("good", "bad"))):
        (folder / name).mkdir()
        for split, count in (("train", 20), ("validation", 12)):
            rows = [f"{text},{labels[is_good(text)]}" for text in texts(count, count)]
            (folder / name / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    for place in ("here", "there"):
        (folder / place / "sst2").mkdir(parents=True)
        for split, count in (("train", 20), ("validation", 12)):
            found = texts(count, count)
            rows = {"sentence": found, "label": [int(is_good(text)) for text in found]}
            datasets.Dataset.from_dict(rows).to_parquet(folder / place / "sst2" / f"{split}.parquet")
    tokenizer = load_encoder(str(tiny_model_dir)).tokenizer
    for seed, name in enumerate(("tiny", "other")):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        model = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes, max_position_embeddings=32))
        with torch.no_grad():  # texts, and masks, are told apart
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(5)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "other" / "1_Pooling").mkdir()
    (folder / "other" / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    return folder


@pytest.fixture(autouse=True)
def in_world(world, monkeypatch):
    monkeypatch.chdir(world)


def ask(**fields):
    return Run(**{**SMALL, **fields})


def flat(tensors):
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors.values()])


# ---------------------------------------------------------------- whole runs

DONE = {}  # run -> what is seen of it; the runs of this module are made once


def seen(run):
    """Everything that a run leaves, by a name: what is compared below."""
    if run not in DONE:
        if run.ablation:
            seen(run.model_copy(update={"ablation": "", "noise": 0.0}))
        record = adaprune.adapt(run)
        file = mask_path(run)
        mask = load_mask(file) if file.is_file() else None
        DONE[run] = {
            "rows": record["environment"]["data_fingerprint"],
            "base": record["environment"]["model_revision"],
            "steps": record["cost"]["steps"],
            "intact": record["weights_intact"],
            "counts": record["mask"],
            "metrics": record["metrics"],
            "losses": [(point["step"], point["loss"]) for point in record["curve"] if "loss" in point],
            "sparsities": [(point["step"], point["sparsity"]) for point in record["curve"] if "sparsity" in point],
            "answers": [part.tolist() for part in read_answers(paths_of(record_path(run)).answers)],
            "masks": mask and {name: part.tolist() for name, part in mask.masks.items()},
            "head": mask and {name: part.tolist() for name, part in mask.head.items()},
        }
    return DONE[run]


def teacher():
    run = ask(method="finetune", learning_rate=1e-3)
    seen(run)
    return str(record_path(run))


# field -> rows of (value, settings of both runs, what must differ, what must not)
KNOBS = {
    "task": [("turned", {}, "rows losses head", "base steps")],
    "method": [("random", {}, "masks head", "rows base steps")],
    "sparsity": [(0.7, {}, "counts masks head", "rows steps"), (0.0, {}, "counts masks head", "rows steps")],
    "seed": [(1, {}, "losses masks head", "rows base steps counts-total")],
    "model": [("other", {}, "base losses masks head", "rows steps")],
    "teacher": [(teacher, {}, "losses masks head", "rows base steps")],
    "epochs": [(3.0, {}, "steps masks head", "rows"), (1.5, {}, "steps masks head", "rows")],
    "max_train_examples": [(10, {}, "rows steps masks head", "base")],
    "recipe": [("paper", {}, "losses masks head sparsities", "rows base steps")],
    "scope": [("encoder+embeddings", {}, "counts masks", "rows steps")],
    "pattern": [
        ("units", {}, "masks counts losses", "rows base steps sparsities-last"),
        ("units", {"recipe": "paper"}, "masks losses", "rows base steps"),
    ],
    "batch_size": [(2, {}, "steps masks head", "rows")],
    "max_length": [(8, {}, "losses masks head", "rows steps")],
    "learning_rate": [(1e-2, {}, "losses masks head", "steps"), (1e-2, {"method": "finetune"}, "losses", "steps")],
    "head_learning_rate": [(3e-2, {}, "losses head", "steps"), (3e-2, {"method": "random"}, "losses head", "masks")],
    "initial_theta": [
        *((kind, {}, "losses masks", "steps") for kind in ("constant", "normal", "uniform", "relative")),
        *((kind, {}, "losses masks", "rows") for kind in ("activation", "gradient")),
        ("magnitude", {"recipe": "paper"}, "losses masks", "steps"),
        ("magnitude", {"method": "smp"}, "losses masks", "steps"),
    ],
    "penalty": [
        (2e-3, {"recipe": "paper"}, "steps sparsities masks", "rows"),
        (1e8, {"method": "soft_movement"}, "losses masks", "steps"),
        (1e8, {"method": "movement", "allocation": "global"}, "losses masks", "steps"),
    ],
    "temperature": [
        (300.0, {}, "losses masks", "steps sparsities-last"),
        (1.0, {"method": "smp"}, "losses masks", "steps"),
    ],
    "reach": [
        (1.0, {}, "sparsities losses masks", "steps"),
        (1.0, {"method": "edge_popup"}, "sparsities masks", "steps"),
    ],
    "head": [("mlp", {}, "head losses", "steps")],
    "rank": [(2, {"method": "lora"}, "losses", "rows steps")],
    "recovery": [(False, {"learning_rate": 1e-2}, "losses masks", "steps sparsities")],
    "allocation": [
        ("equal", {}, "masks counts", "steps"),
        ("scores", {}, "masks counts", "steps"),
        ("global", {"method": "smp"}, "masks counts", "steps"),
        ("equal", {"method": "magnitude"}, "masks counts", "steps"),
    ],
    "ablation": [
        ("head", {}, "head losses sparsities", "masks counts intact"),
        ("shuffle", {}, "masks head losses", "counts intact"),
        ("probe", {}, "head masks answers", "counts intact"),
    ],
    "noise": [(0.5, {"ablation": "head"}, "losses intact", "counts steps")],
    "precision": [("bf16", {}, "losses head", "steps counts-total rows")],
}
NEUTRAL = {
    "data_dir": [("there", {"task": "sst2", "data_dir": "here"})],
    "results_dir": [("elsewhere", {})],
    "checkpoint_steps": [(1, {}), (3, {}), (0, {})],
    "keep": [("theta", {}), ("snapshots", {}), ("theta+snapshots", {})],
}
ROWS = [(field, *row) for field, rows in KNOBS.items() for row in rows]


def test_all_fields_are_here_and_no_others():
    assert {*KNOBS, *NEUTRAL} == set(Run.model_fields) and set(NEUTRAL) == RESULT_NEUTRAL


def part(found, name):
    if name == "counts-total":
        return found["counts"]["total"]
    return found["sparsities"][-1] if name == "sparsities-last" else found[name]


@pytest.mark.parametrize(
    ("field", "value", "others", "differs", "stays"), ROWS, ids=lambda v: getattr(v, "__name__", str(v))
)
def test_the_field_changes_the_result(field, value, others, differs, stays):
    value = value() if callable(value) else value
    before, after = seen(ask(**others)), seen(ask(**{**others, field: value}))
    assert {name for name in differs.split() if part(before, name) == part(after, name)} == set()
    assert {name for name in stays.split() if part(before, name) != part(after, name)} == set()


@pytest.mark.parametrize(
    ("field", "value", "others"), [(field, *row) for field, rows in NEUTRAL.items() for row in rows], ids=str
)
def test_the_neutral_field_leaves_the_result_alone(field, value, others):
    """To the byte of the mask file; two places for one run, whose names are one."""
    run = ask(**{**others, "results_dir": "out"})
    twin = run.model_copy(
        update={"results_dir": f"{field}-{value}", **({} if field == "results_dir" else {field: value})}
    )
    assert run.name == twin.name and seen(run) == seen(twin)
    assert mask_path(run).read_bytes() == mask_path(twin).read_bytes()
    assert paths_of(record_path(run)).answers.read_bytes() == paths_of(record_path(twin)).answers.read_bytes()
    one, two = (read_record(record_path(r)) for r in (run, twin))
    assert [name for name in one["run"] if one["run"][name] != two["run"][name]] == sorted(
        {"results_dir", field}, key=[*one["run"]].index
    )


def test_neutral_fields_do_what_they_say(monkeypatch):
    """Files where and when they are asked for."""
    seals = []
    real = trainer.seal
    monkeypatch.setattr(trainer, "seal", lambda folder: seals.append(folder.name) or real(folder))
    for every, expected in ((0, []), (3, [3, 6, 9, 10]), (5, [5, 10])):  # and after the last step
        seals.clear()
        adaprune.adapt(ask(checkpoint_steps=every, results_dir=f"every{every}"))
        assert seals == [f"checkpoint-{step}" for step in expected]
    for keep in ("", "theta", "snapshots", "theta+snapshots"):
        run = ask(keep=keep, results_dir=f"keep {keep}")
        adaprune.adapt(run)
        paths = paths_of(record_path(run))
        assert paths.theta.is_file() == ("theta" in keep)
        assert len(list(paths.snapshots.glob("*.safetensors"))) == (STEPS if "snapshots" in keep else 0)  # 8 at least
    with pytest.raises(FileNotFoundError, match="nowhere/sst2/train.parquet"):
        adaprune.adapt(ask(task="sst2", data_dir="nowhere", results_dir="new"))


# ---------------------------------------------------------------- directions


COUNT = iter(range(10**6))


def job_of(**fields):
    """The job of a run, in a folder of its own, without checkpoints."""
    run = ask(**{"checkpoint_steps": 0, "results_dir": f"job{next(COUNT)}", **fields})
    task = load_task(run.task, run.data_dir, run.max_train_examples)
    job = prepare(run, plan_for(run), paths_of(run), task, load_encoder(run.model))
    teacher = job.paths.teacher
    return with_teacher(job, teacher and read_logits(read_teacher(run, teacher), teacher, task))


def learned(**fields):
    """The job after its method, and the outcome."""
    job = job_of(**fields)
    return job, job.run.kind.function(job)


def shares_of(masks):
    return {name: float(mask.double().mean()) for name, mask in masks.items()}


def weights_of(job):
    modules = maskable(job.model.encoder, job.run.scope)
    return {name: module.weight.detach().clone() for name, module in modules.items()}


def stands_at(fit, target):
    """The first step after which the sparsity is the target's for good."""
    off = [point["step"] for point in fit.curve if "sparsity" in point and abs(point["sparsity"] - target) > 2e-4]
    return max(off, default=0) + 1


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("method", ["adaprune", "magnitude", "edge_popup"])
def test_sparsity_is_the_share_removed(method, sparsity):
    _, outcome = learned(method=method, sparsity=sparsity, epochs=0.5)
    total = flat(outcome.masks).numel()
    assert int(flat(outcome.masks).sum()) == round((1 - sparsity) * total)


@pytest.mark.parametrize(
    "fields", [{}, {"epochs": 1.5}, {"batch_size": 7}, {"epochs": 0.2}, {"max_train_examples": 9}], ids=str
)
def test_steps_are_epochs_times_batches(fields):
    job, outcome = learned(method="random", **fields)
    rows, held = (len(job.task.splits[split]) for split in ("train", "selection"))
    assert rows + held == fields.get("max_train_examples", 20) and held >= 1
    asked = {**SMALL, **fields}
    assert outcome.fit.steps == math.ceil(asked["epochs"] * math.ceil(rows / asked["batch_size"]))


def test_max_length_cuts_texts():
    for most in (8, 12):
        lengths = [len(ids) for ids in job_of(max_length=most).sentences.splits["train"]["input_ids"]]
        assert max(lengths) == most


def test_scope_names_what_is_masked():
    names = [
        set(learned(method="random", scope=scope, epochs=0.2)[1].masks) for scope in ("encoder", "encoder+embeddings")
    ]
    assert names[1] - names[0] == {"embeddings.word_embeddings.weight"} and names[0] < names[1] and len(names[0]) == 12


@pytest.mark.parametrize("method", ["adaprune", "smp", "bernoulli"])
def test_theta_moves_in_proportion_to_its_learning_rate(method):
    """Of an Adam-type step: three times the rate, about three times the way, wherever the gradients point."""
    ways, own = [], plan_for(ask(method=method)).learning_rate
    start = learned(method=method, keep="theta", learning_rate=1e-12)[1].thetas
    for rate in (own / 10, 3 * own / 10):
        _, outcome = learned(method=method, keep="theta", learning_rate=rate)
        ways.append(float((flat(outcome.thetas) - flat(start)).abs().mean()))
    assert 2 < ways[1] / ways[0] < 4 and own / 100 < ways[0] < own


def test_the_head_moves_in_proportion_to_its_learning_rate():
    ways = []
    for rate in (1e-4, 3e-4):
        job = job_of(method="random", head_learning_rate=rate)
        before = flat(job.model.head.state_dict())
        job.run.kind.function(job)
        ways.append(float((flat(job.model.head.state_dict()) - before).abs().mean()))
    assert 2 < ways[1] / ways[0] < 4


def test_a_pupil_comes_nearer_to_its_teacher(monkeypatch):
    """Of a teacher who is of another opinion than the labels; half of the loss is his."""
    # the best by the labels is an early one
    monkeypatch.setattr(trainer.PruningTrainer, "restore_best", lambda self: None)
    opinion = torch.from_numpy(np.where(np.arange(18)[:, None] % 3 == 0, [2.0, -2.0], [-2.0, 2.0])).float()
    distances = []
    for teaching in (None, opinion):
        job = job_of(method="features", epochs=20, head_learning_rate=2e-2)
        taken = with_teacher(job, teaching)
        taken.run.kind.function(taken)
        logits = predict(job.model, job.sentences, "train", job.settings)
        distances.append(np.abs(logits - opinion.numpy()).mean())
    assert distances[1] < 0.97 * distances[0]


@pytest.mark.parametrize("reach", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("method", ["adaprune", "movement", "edge_popup", "gmp_finetune"])
def test_sparsity_stands_after_reach_of_the_steps(method, reach):
    job, outcome = learned(method=method, reach=reach)
    early = bool(job.plan.allocation)  # matrices of 256 have the last 0.0005 of the schedule rounded away
    assert round(reach * STEPS) - early <= stands_at(outcome.fit, 0.5) <= round(reach * STEPS)


def test_a_method_whose_sparsity_holds_throughout_does_so_until_a_reach_is_asked():
    for method in ("edge_popup", "threshold_mask", "bernoulli"):
        assert stands_at(learned(method=method)[1].fit, 0.5) == 1
        first = learned(method=method, reach=1.0)[1].fit.curve[0]["sparsity"]
        assert first < 0.3


@pytest.mark.parametrize("gamma", [1.2e-3, 2e-3, 4e-3])
def test_gamma_of_algorithm_1_sets_the_step_at_which_it_stops(gamma):
    """theta_0 ~ N(0.01, 0.001^2) stands still: half of it is pruned when steps x gamma passes 0.01."""
    _, outcome = learned(recipe="paper", penalty=gamma, learning_rate=1e-12)
    assert outcome.fit.steps == math.ceil(0.01 / gamma)


@pytest.mark.parametrize("method", ["soft_movement", "smp", "threshold_mask", "bernoulli"])
def test_a_larger_lambda_gives_a_smaller_mean_of_sigmoid(method):
    means = []
    for lam in (1.0, 1e4, 1e5, 1e6):  # above, the step is normalised and no longer grows
        _, outcome = learned(method=method, penalty=lam, keep="theta")
        means.append(float(flat(outcome.thetas).sigmoid().mean()))
    assert means == sorted(means, reverse=True) and means[0] - means[-1] > 5e-4


@pytest.mark.parametrize("temperature", [0.5, 1.0, 50.0])
def test_temperature_is_that_of_the_slope(temperature):
    """One SGD step by hand: theta - rate dL/dm t sigmoid(t theta) (1 - sigmoid(t theta))."""
    encoder = nn.Module()
    encoder.layer, encoder.table = nn.ModuleList([nn.Linear(3, 2, bias=False)]), nn.Embedding(2, 2)
    encoder.get_input_embeddings = lambda: encoder.table
    thetas = attach(encoder, {"layer.0.weight": torch.full((2, 3), 0.02)})
    plan = plan_for(ask(temperature=temperature, learning_rate=0.1))
    plan = type(plan)(**{**vars(plan), "step_rule": "sgd"})
    optimiser = optimiser_for(SimpleNamespace(encoder=encoder, head=nn.Linear(1, 1)), thetas, plan)
    theta = thetas["layer.0.weight"]
    theta.grad = torch.full((2, 3), 0.5)
    optimiser.step()
    soft = 1 / (1 + math.exp(-temperature * 0.02))
    expected = 0.02 - 0.1 * 0.5 * temperature * soft * (1 - soft)
    torch.testing.assert_close(theta.detach(), torch.full((2, 3), expected))


def still(**fields):
    """The masks of adaprune where theta stays at its start."""
    job = job_of(**fields)
    return job, job.run.kind.function(job).masks


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_each_start_cuts_as_it_says():
    fixed = {"learning_rate": 1e-12, "epochs": 0.5}
    job, masks = still(**fixed, initial_theta="magnitude")
    weights = {name: weight.abs() for name, weight in weights_of(job_of()).items()}
    assert same(masks, keep_top(weights, 0.5)) and same(masks, still(**fixed)[1])  # the recipe's
    relative = {name: weight / weight.mean() for name, weight in weights.items()}
    assert same(still(**fixed, initial_theta="relative")[1], keep_top(relative, 0.5))
    assert same(still(**fixed, initial_theta="activation")[1], keep_top(activations(job_of()), 0.5))
    scores, _ = sensitivities_with_head(job_of(**fixed))
    assert same(still(**fixed, initial_theta="gradient")[1], keep_top(scores, 0.5))
    for kind in ("normal", "uniform"):  # no weight is asked: each matrix keeps about a half
        one, two = still(**fixed, initial_theta=kind)[1], still(**fixed, initial_theta=kind, seed=1)[1]
        assert not same(one, two) and all(abs(share - 0.5) < 0.12 for share in shares_of(one).values())
    assert same(still(**fixed, initial_theta="constant")[1], still(**fixed, initial_theta="constant")[1])


def test_the_head_is_of_the_asked_kind_and_reads_by_the_recipes_pooling():
    assert [job_of(head=head).model.head.hidden is None for head in ("mlp", "linear")] == [False, True]
    for model, recipe, read in (
        ("tiny", "tuned", "cls"),
        ("other", "tuned", "mean"),  # as the checkpoint was made
        ("other", "paper", "cls"),  # the paper's, whatever the checkpoint
    ):
        assert job_of(model=model, recipe=recipe).model.head.pooling == read, (model, recipe)


@pytest.mark.parametrize("method", ["adaprune", "movement", "soft_movement", "smp"])
@pytest.mark.parametrize("recipe", ["tuned", "paper"])
def test_without_recovery_none_comes_back_to_the_last_cut(method, recipe):
    """Masks of each step and the final one; with recovery some do come back."""
    returned = {}
    for recovery in (True, False):
        rate = 1e-2 if method == "adaprune" else 0.0
        job, outcome = learned(
            method=method, recipe=recipe, recovery=recovery, keep="theta+snapshots", learning_rate=rate, epochs=4
        )
        files = sorted(job.paths.snapshots.glob("*.safetensors"), key=lambda file: int(file.stem))
        history = [in_order(load_file(file)) for file in files] + [in_order(outcome.masks)]
        returned[recovery] = sum(
            int((after & ~before).sum()) for before, after in zip(history, history[1:], strict=False)
        )
        assert int(history[-1].sum()) == round(0.5 * history[-1].numel())
        assert len(history) > 8 and not torch.equal(history[0], history[-1])
        gone = in_order({name: theta == -torch.inf for name, theta in outcome.thetas.items()})
        assert bool(gone.any()) is not recovery and not (gone & history[-1]).any()  # nor does the exact cut revive any
    assert returned[True] > 0 and returned[False] == 0


def in_order(masks):
    return flat(dict(sorted(masks.items()))).bool()


@pytest.mark.parametrize("method", ["adaprune", "magnitude", "soft_movement", "threshold_mask", "bernoulli", "smp"])
def test_equal_allocation_gives_each_matrix_the_same_share(method):
    masks = learned(method=method, allocation="equal", sparsity=0.6)[1].masks
    assert all(abs(share - 0.4) <= 1 / 256 for share in shares_of(masks).values())
    whole = learned(method=method, allocation="global", sparsity=0.6)[1].masks
    assert max(abs(share - 0.4) for share in shares_of(whole).values()) > 0.01


@pytest.mark.parametrize("method", ["adaprune", "movement", "smp"])
def test_allocation_by_scores_gives_each_component_the_same_share(method):
    """Within a component the shares follow the mean scores, all components alike."""
    _, outcome = learned(method=method, allocation="scores", sparsity=0.6, keep="theta")
    sizes, kept, strengths = {}, {}, {}
    for name, mask in outcome.masks.items():
        part = component_of(name)
        sizes[part] = sizes.get(part, 0) + mask.numel()
        kept[part] = kept.get(part, 0) + int(mask.sum())
        strengths.setdefault(part, []).append(
            (float(outcome.thetas[name].sigmoid().mean()), float(mask.double().mean()))
        )
    assert all(abs(kept[part] / sizes[part] - 0.4) < 0.01 for part in sizes) and len(sizes) == 6
    for pairs in strengths.values():
        (one, first), (two, second) = pairs
        assert first / second == pytest.approx(one / two, abs=0.02)


def test_global_is_no_allocation():
    masks = learned(allocation="global", learning_rate=1e-12)[1].masks
    weights = {name: weight.abs() for name, weight in weights_of(job_of()).items()}
    counts = {name: int(mask.sum()) for name, mask in keep_top(weights, 0.5).items()}
    assert same(masks, keep_top(weights, 0.5)) and same(masks, keep_each(weights, counts))
    assert plan_for(ask(allocation="global")) == plan_for(ask())


def test_more_noise_moves_the_weights_further():
    losses = []
    for noise in (0.0, 1e-4, 1.0):
        found = seen(ask(ablation="head", noise=noise))
        losses.append(np.array([loss for _, loss in found["losses"]]))
        assert found["intact"] == (noise == 0)
    assert 0 < np.abs(losses[1] - losses[0]).max() < 0.1 * np.abs(losses[2] - losses[0]).max()


def test_half_precision_is_half_and_auto_is_what_the_device_has():
    """fp32 on this CPU; bf16 differs by its rounding and no more."""
    if torch.accelerator.is_available():
        pytest.skip("auto is another precision on an accelerator")
    exact, half = (np.array([loss for _, loss in seen(ask(precision=p))["losses"]]) for p in ("fp32", "bf16"))
    assert seen(ask(precision="fp32"))["masks"] == seen(ask())["masks"]
    assert 0 < np.abs(exact - half).max() < 0.2
    with pytest.raises(ValueError, match="precision='fp16' needs a GPU"):
        adaprune.adapt(ask(precision="fp16"))


# ---------------------------------------------------------------- what a method says it reads


def trace(**fields):
    """All that a method leaves: theta, masks, head, encoder and curve, as numbers."""
    job, outcome = learned(**fields)
    found = {"head": flat(job.model.head.state_dict()), "steps": outcome.fit.steps}
    found["sparsities"] = [point["sparsity"] for point in outcome.fit.curve if "sparsity" in point]
    if outcome.masks is not None:
        found["masks"] = flat(outcome.masks)
    if outcome.thetas is not None:
        found["thetas"] = flat(outcome.thetas)
    if not job.run.kind.weights_intact:
        found["encoder"] = flat(weights_of(job))
    return found


def changes(method, field):
    """A value of the field that is not the method's own, and settings of both runs."""
    plan, scores = plan_for(ask(method=method)), bool(METHODS[method].tuned.get("scores"))
    if field == "penalty" and not scores:
        return 2e-3, {"recipe": "paper"}
    if field == "allocation" and scores:  # shares by scores need scores that differ
        return "equal" if plan.allocation != "equal" else "scores", {
            "learning_rate": 1e4 if plan.step_rule == "sgd" else 0.5
        }
    value = {
        "learning_rate": 3 * plan.learning_rate,
        "head_learning_rate": 3 * plan.head_learning_rate,
        "initial_theta": "magnitude" if scores else "normal",
        "penalty": 1e7,
        "temperature": 300.0,
        "reach": 0.8,
        "recovery": False,
        "allocation": "equal",
        "pattern": "units",
        "rank": 2,
    }[field]
    return value, {}


READ = [(name, field) for name, method in METHODS.items() for field in method.reads if field != "keep"]
BASES = {}


@pytest.mark.parametrize(("method", "field"), READ)
def test_what_a_method_says_it_reads_changes_what_it_does(method, field):
    if method in ("lora", "ia3"):
        pytest.importorskip("peft", reason="lora and ia3 need peft, of the extra adaprune[methods]")
    value, others = changes(method, field)
    kept = {"keep": "theta"} if "keep" in METHODS[method].reads and field != "pattern" else {}
    common = {"method": method, "epochs": 1, **kept, **others}
    if (key := str(common)) not in BASES:
        BASES[key] = trace(**common)
    before, after = BASES[key], trace(**common, **{field: value})
    differing = [name for name in before if not np.array_equal(np.asarray(before[name]), np.asarray(after[name]))]
    assert differing, f"{field}={value!r} changed nothing in {method}"
    if field == "head_learning_rate":
        assert "head" in differing
    elif field in ("initial_theta", "recovery", "allocation", "pattern"):
        assert "masks" in differing, f"{field}={value!r} changed no mask of {method}"
    elif field == "reach":
        assert "sparsities" in differing


@pytest.mark.parametrize("method", ["adaprune", *(n for n, m in METHODS.items() if m.tuned.get("scores"))])
def test_methods_that_keep_theta_and_snapshots_do_so(method):
    job, outcome = learned(method=method, keep="theta+snapshots", epochs=1)
    _, plain = learned(method=method, epochs=1)
    assert same(outcome.masks, plain.masks) and plain.thetas is None
    assert {name: theta.shape for name, theta in outcome.thetas.items()} == {
        n: m.shape for n, m in outcome.masks.items()
    }
    assert len(list(job.paths.snapshots.glob("*.safetensors"))) == 5  # of five steps each: 8 would be less than one


def test_movements_rate_scales_its_scores_and_alters_no_order():
    """From 0 by SGD, S is the rate times a sum: four times the rate, four times the scores to the last bit."""
    (_, one), (_, two) = (learned(method="movement", keep="theta", learning_rate=rate) for rate in (0.01, 0.04))
    assert same(one.masks, two.masks) and not torch.equal(flat(one.thetas), flat(two.thetas))
    np.testing.assert_allclose(flat(two.thetas), 4 * flat(one.thetas), rtol=1e-4, atol=1e-12)


def test_folders_hold_no_stray_files():
    """All runs above left their checkpoints nowhere."""
    seen(ask())
    assert not list(Path("out", ".checkpoints").glob("*"))
