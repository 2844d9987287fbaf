"""A prediction that is NaN or infinite ends the run with its step."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import ertacache.runtime.apply as ertacache
from cached import MASK, SITES, latents, profile
from ertacache.core.history import History
from ertacache.core.predictor import Predictor
from ertacache.errors import PredictionDiverged
from ertacache.profile.profile import Profile, Site
from ertacache.runtime.finite_watch import FiniteWatch
from ertacache.runtime.hooks import attached
from ertacache.runtime.player import Player
from ertacache.runtime.run_stats import RunStats


def exploding(pipe: Any, site: Site, step: int = 5) -> Profile:
    """Reuse, but at one step ten thousand times the output, which float16 cannot hold."""
    plain = profile(pipe, site, basis="reuse")
    old = plain.predictor
    a = old.a.clone()
    a[step] *= 9999
    return replace(plain, predictor=Predictor(old.targets, old.sources, a, old.d, old.b))


@pytest.fixture
def flux_half(flux: Any) -> Any:
    """Outputs in float16, whatever the weights are in."""
    original = flux.transformer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        wide = {**kwargs, "hidden_states": kwargs["hidden_states"].float(), "return_dict": False}
        return tuple(part.half() for part in original(*args, **wide))

    flux.transformer.forward = forward
    yield flux
    del flux.transformer.forward


@pytest.mark.parametrize("site", ["output", "guided"])
def test_a_prediction_out_of_range_names_its_step(flux_half: Any, site: Site) -> None:
    wanted = exploding(flux_half, site)
    target = wanted.predictor.targets[0]
    message = (
        rf"the prediction of '{target}' at step 5 holds NaN or infinity; what it was predicted from is finite, .* "
        r"calibrated for this model, compute more steps, or use a wider dtype \(calibrated in torch.float32\)"
    )
    with pytest.raises(PredictionDiverged, match=message), ertacache.apply(flux_half, wanted) as stats:
        latents(flux_half)
    assert sum(stats.computed.values()) == MASK[:5].count("#")


@pytest.mark.parametrize("site", SITES)
def test_a_model_that_returns_nan_is_told_apart(flux: Any, site: Site) -> None:
    blocks = flux.transformer.transformer_blocks
    handle = blocks[0].register_forward_hook(lambda m, a, out: tuple(part * float("nan") for part in out))
    try:
        message = r"step 2 holds NaN or infinity; so is what the model computed before it: run the pipeline without"
        with pytest.raises(PredictionDiverged, match=message), ertacache.apply(flux, profile(flux, site)):
            latents(flux)
    finally:
        handle.remove()


def test_who_measures_may_go_on(flux_half: Any) -> None:
    player = Player(exploding(flux_half, "output"), RunStats(), keep_nan=True)
    with attached(flux_half, player):
        assert not latents(flux_half).isfinite().all()


def test_notes_are_read_together_and_the_first_that_is_not_finite_is_named() -> None:
    watch, history = FiniteWatch("bfloat16"), History(1)
    history.push("cond", torch.ones(2, 3))
    watch.read(history)
    watch.note(1, "cond", torch.ones(2, 3))
    watch.note(3, "cond", torch.tensor([[1.0, -torch.inf, torch.inf]]))
    watch.note(4, "cond", torch.tensor([torch.nan]))
    with pytest.raises(PredictionDiverged, match=r"step 3 .* what it was predicted from is finite, .*in bfloat16\)"):
        watch.read(history)
    watch.read(history)  # what was read is forgotten


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_values_of_a_narrow_dtype_are_finite(dtype: torch.dtype) -> None:
    """Their sum is out of the range of float16, and is taken in float32."""
    watch = FiniteWatch("float16")
    watch.note(1, "cond", torch.full((64, 64), 60000.0, dtype=dtype))
    watch.read(History(1))
