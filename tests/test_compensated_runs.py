"""A profile that corrects what computed steps of a quantised denoiser give the solver."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dummy_pipeline import DummyPipeline, mixture_pipeline
from ertacache.calibration.pipeline_run import Final, run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.core.compensation import Compensation
from ertacache.errors import PredictionDiverged, ProfileMismatch
from ertacache.pipelines.solvers import read_grid
from ertacache.profile.profile import Profile
from ertacache.runtime.apply import apply
from ertacache.runtime.player import Player
from ertacache.runtime.retarget import retargeted
from ertacache.runtime.run import Controller
from ertacache.runtime.run_stats import RunStats
from quantized_dummy import CALL, PROMPTS, SEED, T, ideal, off_pipeline, played


def grid(steps: int = T) -> Tensor:
    scheduler = mixture_pipeline().scheduler
    scheduler.set_timesteps(steps)
    return read_grid(scheduler)


def final(pipe: DummyPipeline, controller: Controller, count: int = 2, call: dict[str, Any] = CALL) -> Final:
    seen = Final(controller, keep_outputs=True)
    run_pipeline(pipe, Prompts(tuple(PROMPTS[:count]), SEED), seen, call)
    return seen


def play(profile: Profile, stats: RunStats | None = None, pipe: DummyPipeline | None = None, **more: Any) -> Final:
    return final(pipe or off_pipeline(), Player(profile, stats or RunStats()), **more)


def with_tables(**tables: Tensor) -> Compensation:
    neutral = {"gain": torch.ones(T, 1), "previous": torch.zeros(T, 1), "bias": torch.zeros(T, 1)}
    return Compensation(**{**neutral, **tables})


def rows(**values: float) -> Tensor:
    """[T, 1] with a value at each step named s0, s1, ..."""
    table = torch.zeros(T, 1)
    for name, value in values.items():
        table[int(name[1:])] = value
    return table


def test_the_right_table_gives_the_run_in_full_precision_back():
    exact, raw = final(mixture_pipeline(), Controller()), final(off_pipeline(), Controller())
    corrected = play(played(off_pipeline(), grid(), ideal(grid())))
    assert float((raw.latents - exact.latents).abs().max()) > 0.01
    torch.testing.assert_close(corrected.latents, exact.latents, rtol=1e-5, atol=1e-5)


def test_every_step_of_a_formula_by_hand():
    """o' = gain õ + previous õ_{i−1} + bias, õ the raw output of each step."""
    pipe, sigmas = off_pipeline(), grid()
    table = with_tables(gain=1 + rows(s1=0.5), previous=rows(s2=0.25, s4=-0.5), bias=rows(s0=0.125, s4=1.0))
    seen = play(played(pipe, sigmas, table))
    pipe.scheduler.set_timesteps(T)
    x, before = None, None
    for i, used in enumerate(seen.outputs):
        if x is None:
            generators = [torch.Generator().manual_seed(SEED + n) for n in range(2)]
            x = torch.cat([torch.randn(1, 4, 4, generator=one, dtype=torch.float64) for one in generators])
        label = torch.tensor([int(text.split()[-1]) for text in PROMPTS[:2]])
        raw = pipe._guided(x, pipe.scheduler.timesteps[i].expand(2), label, CALL["guidance_scale"])
        gain, previous, bias = (float(one[i]) for one in (table.gain, table.previous, table.bias))
        wanted = gain * raw + (previous * before if before is not None else 0) + bias
        torch.testing.assert_close(used, wanted.float(), rtol=1e-5, atol=1e-6)
        x, before = x + (sigmas[i + 1] - sigmas[i]) * used.double(), raw


def test_steps_without_a_correction_and_profiles_without_one_change_no_bit():
    plain = final(off_pipeline(), Controller())
    assert torch.equal(play(played(off_pipeline(), grid(), None)).latents, plain.latents)
    last = play(played(off_pipeline(), grid(), with_tables(bias=rows(**{f"s{T - 1}": 1.0}))))
    assert all(map(torch.equal, last.outputs[:-1], plain.outputs[:-1]))
    assert not torch.equal(last.outputs[-1], plain.outputs[-1])


def test_nothing_is_kept_where_every_step_is_computed_and_the_table_is_counted():
    stats = RunStats()
    play(played(off_pipeline(), grid(), ideal(grid())), stats)
    assert stats.extra_bytes == ideal(grid()).gain.nbytes * 2  # gain and bias of every step
    assert sum(stats.computed.values()) == 2 * T and not stats.predicted
    window = RunStats()
    play(played(off_pipeline(), grid(), with_tables(previous=rows(s1=0.5))), window)
    assert window.extra_bytes == 2 * 16 * 8  # one raw output of two prompts in float64


def test_the_history_holds_corrected_outputs():
    """Plain reuse repeats what the solver was given."""
    seen = play(played(off_pipeline(), grid(), with_tables(bias=rows(s1=2.0)), "##.###"))
    assert torch.equal(seen.outputs[2], seen.outputs[1])


def test_a_late_start_drops_the_step_before_and_goes_on():
    pipe = off_pipeline()
    pipe.start = 2
    table = with_tables(gain=1 + rows(s2=1.0), previous=rows(s2=100.0, s3=0.5))
    plain = off_pipeline()
    plain.start = 2
    without = final(plain, Controller())
    seen = play(played(pipe, grid(), table), pipe=pipe)
    torch.testing.assert_close(seen.outputs[0], 2 * without.outputs[0])
    assert not torch.equal(seen.outputs[1], without.outputs[1])


def with_window() -> tuple[Compensation, Compensation]:
    """A gain and a bias, without and with the term for the step before."""
    own = with_tables(gain=1 + rows(s1=0.5, s2=0.5, s3=0.25), bias=rows(s1=1.0, s2=2.0, s3=-0.5))
    return own, own.with_previous([1.0] * T, [-0.1] * T, 0.5)


def test_a_late_start_drops_what_the_bias_has_of_the_step_before_too():
    own, full = with_window()
    assert full.bias[2, 0] == 2.5
    seen = list[Final]()
    for table in (own, full):
        pipe = off_pipeline()
        pipe.start = 2
        seen.append(play(played(pipe, grid(), table), pipe=pipe))
    assert torch.equal(seen[0].outputs[0], seen[1].outputs[0])
    assert not torch.equal(seen[0].outputs[1], seen[1].outputs[1])


def test_retargeting_drops_what_the_bias_has_of_the_step_before_too():
    own, full = (retargeted(played(off_pipeline(), grid(), table), grid(2 * T)) for table in with_window())
    assert own.compensation is not None and full.compensation is not None
    for name in ("gain", "previous", "bias"):
        assert torch.equal(getattr(own.compensation, name), getattr(full.compensation, name))


def test_runs_that_are_under_way_at_once_read_their_own_steps():
    """One prompt of each batch size after the other gives what both give in one batch."""
    profile = played(off_pipeline(), grid(), with_tables(previous=rows(s1=0.25, s3=0.5)))
    both = play(profile)
    pipe = off_pipeline()
    with apply(pipe, profile):
        for n in range(2):
            alone = pipe(
                [PROMPTS[n]], generator=[torch.Generator().manual_seed(SEED + n)], output_type="latent", **CALL
            )[0]  # fmt: skip
            torch.testing.assert_close(alone.float(), both.latents[n : n + 1])


def test_a_correction_that_is_not_finite_is_refused_unless_asked_for():
    class Nan(type(off_pipeline().transformer)):
        def forward(self, *args: Any, **more: Any) -> Any:
            return (super().forward(*args, **more)[0] * math.nan,)

    pipe = off_pipeline()
    profile = played(pipe, grid(), ideal(grid()))
    pipe.transformer.__class__ = Nan
    with pytest.raises(PredictionDiverged, match=r"the correction of 'guided' at step 0 holds NaN .* so does what the"):
        play(profile, pipe=pipe)
    kept = final(pipe, Player(profile, RunStats(), keep_nan=True))
    assert kept.latents.isnan().all()


def test_another_quantiser_is_refused_by_name():
    kind = {"by": "ertacache", "scheme": "w4a4", "group": 64, "skip": []}
    pipe = off_pipeline()
    profile = played(pipe, grid(), ideal(grid()), quantizer={"denoisers": [kind]})
    with pytest.raises(ProfileMismatch, match=r"quantizer: is \{.*w4a4.*\} in the profile and not quantised here; the"):
        with apply(pipe, profile):
            pass
    pipe.transformer._ertacache_quantizer = {"scheme": "w8a8", "group": 64, "skip": []}
    with pytest.raises(Exception, match="was saved as w8a8 and loaded without it"):
        with apply(pipe, profile, on_mismatch="compute"):
            pass


def test_a_run_that_goes_on_without_the_profile_is_not_corrected():
    table = with_tables(bias=rows(s0=1.0, s1=1.0, s2=1.0, s3=1.0, s4=1.0, s5=1.0))
    pipe = off_pipeline()
    with apply(pipe, played(pipe, grid(), table), on_mismatch="compute") as stats:
        seeds = [torch.Generator().manual_seed(SEED)]
        got = pipe(PROMPTS[:1], generator=seeds, output_type="latent", **{**CALL, "guidance_scale": 9.0})[0]
    assert stats.reason is not None and "guidance weight" in stats.reason
    plain = final(off_pipeline(), Controller(), 1, {**CALL, "guidance_scale": 9.0})
    assert torch.equal(got.float(), plain.latents)  # the first step tells the weight before it is corrected
    assert sum(stats.computed.values()) == 2 * T


def test_retargeting_takes_the_nearest_correction():
    profile = played(off_pipeline(), grid(), with_tables(previous=rows(s3=0.5), bias=rows(s0=1, s2=3, s5=6)))
    same = retargeted(profile, grid())
    assert torch.equal(same.compensation.bias, profile.compensation.bias)  # type: ignore[union-attr]
    assert same.compensation.previous.any()  # type: ignore[union-attr]
    finer = retargeted(profile, grid(2 * T)).compensation
    assert finer is not None and finer.T == 2 * T and not finer.previous.any()
    assert finer.bias[[0, 4, -1], 0].tolist() == [1.0, 3.0, 6.0]
    with apply(off_pipeline(), profile, retarget=True):
        pass


def test_channels_of_another_model_are_refused_in_the_run():
    profile = played(off_pipeline(), grid(), ideal(grid()))
    other = replace(profile, provenance=replace(profile.provenance, channel_axis=1))
    assert play(other).latents.shape == (2, 4, 4)  # axis 1 has as many
