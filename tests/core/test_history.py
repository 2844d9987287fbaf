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
    assert history.newest is not None and history.newest.shape == (1, 4) and history.newest.is_meta
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


def test_every_source_may_have_a_depth_of_its_own():
    history = History({"cond": 2})
    for n in range(3):
        for source in ("cond", "uncond"):
            history.push(source, torch.full((1, 2), float(n)))
    assert (history.depth("cond"), history.depth("uncond")) == (2, 1)
    assert history.output("cond", 1)[0, 0] == 1.0 and history.output("uncond", 0)[0, 0] == 2.0
    with pytest.raises(PredictorInvalid, match=r"output 2 of 'uncond' is wanted and 1 are held"):
        history.output("uncond", 1)


def test_what_is_copied_may_change_and_what_is_not_is_held_as_it_is():
    history, output = History(levels=2), torch.ones(1, 2)
    history.push("cond", output, copy=True)
    output.fill_(5.0)
    history.push("cond", output)
    assert history.output("cond", 0) is output and torch.equal(history.output("cond", 1), torch.ones(1, 2))


def test_the_oldest_output_is_let_go_before_the_new_one_is_copied():
    held: list[int] = []

    class Watched(History):
        def _keep(self, output: torch.Tensor, copy: bool) -> torch.Tensor:
            held.append(self.nbytes)
            return super()._keep(output, copy)

    history = Watched(levels=2)
    for _ in range(4):
        history.push("cond", torch.ones(1, 2), copy=True)
    assert held == [0, 8, 8, 8] and history.nbytes == 16


def test_an_input_that_is_part_of_something_larger_does_not_keep_it_alive():
    history, whole = History(levels=1), torch.arange(16.0).view(2, 8)
    history.push("cond", torch.zeros(1, 4), whole[:1, :4])
    assert history.nbytes == 2 * 16 and torch.equal(history.input("cond"), whole[:1, :4])


def test_the_newest_output_is_known_without_its_data():
    history = History(levels=1)
    with pytest.raises(PredictorInvalid, match=r"no output of 'cond' is held; compute a step"):
        history.like("cond")
    history.push("cond", torch.zeros(1, 4, dtype=torch.bfloat16))
    history.push("guided", torch.zeros(1, 2))
    like, newest = history.like("cond"), history.newest
    assert (like.shape, like.dtype, like.is_meta) == ((1, 4), torch.bfloat16, True)
    assert newest is not None and newest.shape == (1, 2) and history.device.type == "cpu"


def test_a_predictor_says_how_much_of_each_source_it_needs():
    schedule = Schedule.from_mask("###.#.")
    a = torch.zeros(6, 1, 3, 3, 2)
    a[3, 0, 0, 0], a[3, 0, 1, 2, 1], a[5, 0, 1, 1] = 1.0, 0.5, 0.5
    predictor = Predictor(("guided",), ("guided", "cond", "uncond"), a, torch.zeros(6, 1, 2), torch.zeros(6, 1, 2))
    predictor.for_schedule(schedule)
    assert predictor.depths() == {"guided": 1, "cond": 3, "uncond": 1}
