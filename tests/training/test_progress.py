"""One bar with what matters, and no wall of text."""

from types import SimpleNamespace

from adaprune.training.trainer import _Bars


def test_training_bar_shows_step_loss_sparsity_and_selection(capsys):
    bars, state = _Bars(), SimpleNamespace(max_steps=4, global_step=1, is_world_process_zero=True)
    bars.on_train_begin(None, state, None)
    state.global_step = 3
    bars.on_log(None, state, None, {"loss": 0.5, "sparsity": 0.25, "grad_norm": 1.0})
    for _ in range(2):
        bars.on_prediction_step(None, state, None, [0, 0])
    bars.on_evaluate(None, state, None)
    bars.on_log(None, state, None, {"eval_loss": 0.75, "eval_runtime": 9.0})
    bars.on_step_end(None, state, None)
    bars.on_train_end(None, state, None)
    shown = capsys.readouterr()
    assert not shown.out
    last = shown.err.strip().replace("\r", "\n").splitlines()[-1]
    assert "training" in last and "3/4" in last
    assert "loss=0.500, sparsity=0.250, selection loss=0.750" in last
    assert "grad_norm" not in shown.err


def test_a_prediction_alone_has_its_own_bar_and_other_processes_none(capsys):
    for main in (True, False):
        bars, state = _Bars(), SimpleNamespace(max_steps=4, global_step=0, is_world_process_zero=main)
        bars.on_prediction_step(None, state, None, [0])
        bars.on_predict(None, state, None, metrics={})
        assert ("evaluating" in capsys.readouterr().err) == main


def test_a_log_gets_few_lines_and_no_cursor_codes(capsys):
    """Nothing that a page would show as dirt, and 500 steps in a moment are not 500 lines."""
    bars, state = _Bars(), SimpleNamespace(max_steps=500, global_step=0, is_world_process_zero=True)
    bars.on_train_begin(None, state, None)
    for step in range(500):
        state.global_step = step + 1
        bars.on_step_end(None, state, None)
        if step % 100 == 0:
            bars.on_prediction_step(None, state, None, [0])
            bars.on_evaluate(None, state, None)
    bars.on_train_end(None, state, None)
    shown = capsys.readouterr().err
    assert "500/500" in shown and "\x1b" not in shown
    assert shown.count("\r") < 40
