import pytest
import torch

from dummies import shifted_sigmas
from ertacache.core.history import History
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import PredictorInvalid


def test_history_keeps_the_newest_levels_and_one_input():
    history = History(levels=2)
    outputs = [torch.full((1, 4), float(i)) for i in range(3)]
    for i, output in enumerate(outputs):
        history.push("cond", output, output + 10 * i)
    assert [o[0, 0].item() for o in history.outputs("cond")] == [2.0, 1.0]
    assert history.depth("cond") == 2 and history.depth("uncond") == 0
    assert torch.equal(history.input("cond"), outputs[2] + 20)
    assert history.newest is outputs[2]
    assert history.nbytes == 3 * 16  # two outputs and one input of four float32
    history.clear()
    assert history.depth("cond") == 0 and history.newest is None and history.x is None and history.nbytes == 0


def test_nbytes_counts_shared_storage_once():
    history, x = History(levels=1), torch.zeros(2, 8)
    both = torch.ones(4, 8)
    history.push("cond", both[:2], x)
    history.push("uncond", both[2:], x)
    assert history.nbytes == both.nbytes + x.nbytes


def test_a_target_without_its_own_input_uses_the_last_one_pushed():
    history = History(levels=1)
    history.push("cond", torch.ones(1, 2), torch.full((1, 2), 3.0))
    history.push("guided", torch.ones(1, 2))
    assert torch.equal(history.input("guided"), torch.full((1, 2), 3.0))
    assert torch.equal(history.input("cond"), torch.full((1, 2), 3.0))
    history.push("guided", torch.ones(1, 2), torch.full((1, 2), 5.0))
    assert torch.equal(history.input("guided"), torch.full((1, 2), 5.0))
    assert torch.equal(history.input("cond"), torch.full((1, 2), 3.0))


def test_the_last_input_is_the_newest_of_any_source():
    history = History(levels=1)
    for source, value in (("cond", 1.0), ("uncond", 2.0), ("cond", 3.0)):
        history.push(source, torch.ones(1), torch.tensor([value]))
    assert history.x == 3.0 and history.input("guided") == 3.0 and history.input("uncond") == 2.0


def test_an_older_input_never_stands_in_for_a_newer_step():
    terms = Predictor.residual_reuse(Schedule.from_mask("#."), ["cond"]).terms(1, "cond")
    history, x = History(levels=1), torch.ones(1, 2)
    history.push("cond", x, x)
    history.push("cond", x)
    with pytest.raises(PredictorInvalid, match=r"needs an input of 'cond' .* push\(source, output, x\)"):
        terms(history, x)


def test_a_short_history_is_refused_at_run_time():
    terms = Predictor.extrapolation(Schedule.from_mask("##."), ["cond"], shifted_sigmas(3)).terms(2, "cond")
    history, x = History(levels=2), torch.ones(1, 2)
    with pytest.raises(PredictorInvalid, match="history is empty; compute a step before predicting 'cond'"):
        terms(history, x)
    history.push("cond", x)
    with pytest.raises(PredictorInvalid, match="needs 2 outputs of 'cond' and 1 are held; compute more"):
        terms(history, x)
