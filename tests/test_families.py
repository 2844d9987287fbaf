"""Wan (two calls per step) and CogVideoX (both branches in one batch): what is exact at each site."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import ertacache.runtime.apply as ertacache
from ertacache.calibration.assemble import assemble, fit
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.candidates import fit_options
from ertacache.calibration.closed_loop import ClosedLoop
from ertacache.calibration.lockstep import Lockstep
from ertacache.calibration.method import Method
from ertacache.calibration.pipeline_run import Final, run_pipeline
from ertacache.calibration.solving import Seat, Solving
from ertacache.core.schedule import Schedule
from ertacache.errors import ProfileMismatch
from ertacache.profile.profile import Rectifier, Site
from ertacache.runtime.player import Player
from ertacache.runtime.run_stats import RunStats
from pipelines import PROMPTS, VIDEO_CALL, cogvideox, wan
from video_profiles import MASK, T, base_sigmas, latents, linear, profile, seen

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell")

SITES: tuple[Site, ...] = ("output", "guided", "hidden")
COMPUTED = [int(mark == "#") for mark in MASK]
W = VIDEO_CALL["guidance_scale"]
ONE = "#" + "." * (T - 1)


def wan_euler() -> Any:
    pipe = wan()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return pipe


BUILDERS: dict[str, Callable[[], Any]] = {"wan unipc": wan, "wan euler": wan_euler, "cogvideox": cogvideox}


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {name: build() for name, build in BUILDERS.items()}


def calls_of(name: str) -> int:
    return 1 if name == "cogvideox" else 2


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", BUILDERS)
def test_computing_every_step_changes_no_bit(pipes: dict[str, Any], name: str, site: Site) -> None:
    pipe = pipes[name]
    plain = latents(pipe)
    with ertacache.apply(pipe, profile(pipe, site, "#" * T)):
        assert torch.equal(latents(pipe), plain)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", BUILDERS)
def test_the_blocks_run_on_the_computed_steps_only(pipes: dict[str, Any], name: str, site: Site) -> None:
    pipe = pipes[name]
    with seen(pipe) as found, ertacache.apply(pipe, profile(pipe, site)) as stats:
        latents(pipe)
    assert found.calls == [[calls_of(name) * computed for computed in COMPUTED]]
    assert set(stats.computed.values()) == set(stats.predicted.values()) == {5}
    # On a skipped step both calls are free; at site hidden the embeddings and the head run.
    ran = [len(outputs) for outputs in found.outputs]
    assert ran == ([calls_of(name)] * T if site == "hidden" else found.calls[0])


@pytest.mark.parametrize("name", ["wan unipc", "wan euler"])
def test_each_context_has_its_own_row(pipes: dict[str, Any], name: str) -> None:
    pipe = pipes[name]
    rows = {"cond": {"cond": [0.5]}, "uncond": {"uncond": [2.0], "cond": [0.25]}}
    with seen(pipe) as found, ertacache.apply(pipe, profile(pipe, "output", ONE, predictor=linear(ONE, rows))):
        latents(pipe)
    cond, uncond = found.outputs[0]
    c, u = 0.5 * cond, 2.0 * uncond + 0.25 * cond
    for i in range(1, T):
        torch.testing.assert_close(found.received[i], u + W * (c - u))


def test_each_context_has_its_own_residual_and_rectifier_at_site_hidden(pipes: dict[str, Any]) -> None:
    pipe = pipes["wan unipc"]
    rows = {"cond": {"cond": [0.5]}, "uncond": {"uncond": [2.0]}}
    kappa = torch.zeros(T, 2, 1)
    kappa[1:, 0], kappa[1:, 1] = 0.25, -0.5
    entries: list[torch.Tensor] = []
    exits: list[torch.Tensor] = []
    handles = [
        pipe.transformer.patch_embedding.register_forward_hook(lambda m, a, out: entries.append(out)),
        pipe.transformer.norm_out.register_forward_pre_hook(lambda m, a: exits.append(a[0])),
    ]
    wanted = profile(pipe, "hidden", ONE, predictor=linear(ONE, rows), rectifier=Rectifier(kappa, kappa / 2, "linear"))
    with seen(pipe) as found, ertacache.apply(pipe, wanted):
        latents(pipe)
    for handle in handles:
        handle.remove()
    entered = [entry.flatten(2).transpose(1, 2).float() for entry in entries]
    residuals = [exits[n].float() - entered[n] for n in range(2)]
    for i in range(1, T):
        for n, share in enumerate((0.5, 2.0)):
            torch.testing.assert_close(exits[2 * i + n].float(), entered[2 * i + n] + share * residuals[n])
        c, u = found.outputs[i]
        c, u = c - (0.25 * c + 0.125), u - (-0.5 * u - 0.25)
        torch.testing.assert_close(found.received[i], u + W * (c - u))


@pytest.mark.parametrize(("name", "weight"), [("wan unipc", 6.0), ("cogvideox", 6.0)])
def test_another_guidance_scale_is_refused(pipes: dict[str, Any], name: str, weight: float) -> None:
    pipe = pipes[name]
    with ertacache.apply(pipe, profile(pipe, "guided")):
        latents(pipe)
        with pytest.raises(ProfileMismatch, match=r"guidance weight: the profile was calibrated at 5, .* runs at 6;"):
            latents(pipe, guidance_scale=weight)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["wan unipc", "cogvideox"])
def test_a_batch_of_two_is_two_batches_of_one(pipes: dict[str, Any], name: str, site: Site) -> None:
    pipe = pipes[name]
    with ertacache.apply(pipe, profile(pipe, site)):
        both = latents(pipe, PROMPTS[:2])
        apart = [latents(pipe, [PROMPTS[n]], seed=n) for n in range(2)]
    torch.testing.assert_close(both, torch.cat(apart), rtol=0, atol=1e-5)


def calibrated(pipe: Any, **choices: Any) -> Any:
    return calibrate(
        pipe, PROMPTS[:3], schedule=MASK, holdout=0.3, show_progress=False, **{**VIDEO_CALL, **choices}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "coefficient"), [("wan unipc", (4, 1, 1, 1)), ("wan euler", (4, 1, 1, 1)), ("cogvideox", (1, 4, 1, 1))]
)
def test_a_rectifier_is_one_per_channel_and_context(
    pipes: dict[str, Any], name: str, coefficient: tuple[int, ...]
) -> None:
    pipe = pipes[name]
    output = calibrated(pipe, site="output", rectifier="channel")
    hidden = calibrated(pipe, site="hidden", rectifier="channel")
    assert output.predictor.coef_shape == tuple(hidden.rectifier.kappa.shape[2:]) == coefficient
    for table in (output.predictor.d, hidden.rectifier.kappa):
        assert table.shape[1] == calls_of(name)
        rows = table[2].flatten(1)
        assert (rows[:, 1:] - rows[:, :1]).abs().min() > 0  # another coefficient in every channel
        assert calls_of(name) == 1 or (rows[0] - rows[1]).abs().min() > 0  # and in every context


def test_the_halves_of_a_batch_are_branches(pipes: dict[str, Any]) -> None:
    pipe, mask = pipes["cogvideox"], "##........"
    row = {"guided": {"guided": [0.5], "cond_uncond:0": [0.25, -0.5], "cond_uncond:1": [1.5, 2.0]}}
    with seen(pipe) as found, ertacache.apply(pipe, profile(pipe, "guided", mask, predictor=linear(mask, row))):
        latents(pipe, PROMPTS[:2])
    (u0, c0), (u1, c1) = (found.outputs[i][0].chunk(2) for i in range(2))
    expected = 0.5 * found.received[1] + 0.25 * u1 - 0.5 * u0 + 1.5 * c1 + 2.0 * c0
    for i in range(2, T):
        torch.testing.assert_close(found.received[i], expected)


def test_the_halves_of_a_batch_can_be_fitted(pipes: dict[str, Any]) -> None:
    pipe = pipes["cogvideox"]
    calibrator = Calibrator(pipe, PROMPTS[:3], choose=0.3, seed=0, call=VIDEO_CALL)
    assert calibrator.reference.contexts == ("cond_uncond",)
    assert calibrator.reference.branches == ("cond_uncond:0", "cond_uncond:1")
    method = Method("fitted", "guided", Schedule.from_mask(MASK), levels=2, ridge=1e-3)
    options = fit_options(calibrator, method, aim="step")
    assert {(option.levels, option.branches) for option in options} > {(1, True), (3, True)}
    method = replace(method, branches=True)
    found = assemble(calibrator, method, fit(calibrator, method), heldout={})
    assert found.predictor.sources == ("guided", "cond_uncond:0", "cond_uncond:1")
    assert (found.predictor.a[2, 0, 1:] != 0).all()
    # What was fitted is what is run: the closed loop on the calibration prompts ends where the profile does.
    (seat,), lockstep = [Seat()], Lockstep(1)
    solving, reference = Solving(method, lockstep, channel_axis=2), calibrator.reference
    ends: list[torch.Tensor] = []
    loop = ClosedLoop(solving, reference.contexts, reference.branches, [seat], lockstep)
    for controller in (loop, Player(found, RunStats())):
        final = Final(controller)
        run_pipeline(pipe, calibrator.parts.fitted, final, VIDEO_CALL, decode=False)
        ends.append(final.latents)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


def test_dynamic_guidance_is_part_of_the_calibration(pipes: dict[str, Any]) -> None:
    """CogVideoX's `use_dynamic_cfg` changes the weight from step to step: the fit has it, another run is refused."""
    pipe = pipes["cogvideox"]
    with seen(pipe) as plain:
        latents(pipe, use_dynamic_cfg=True)
    wanted = calibrated(pipe, basis="fitted", history=1, aim="step", use_dynamic_cfg=True)
    with seen(pipe) as found, ertacache.apply(pipe, wanted):
        latents(pipe, use_dynamic_cfg=True)
        with pytest.raises(ProfileMismatch, match="guidance weight"):
            latents(pipe)
    assert torch.equal(found.received[1], plain.received[1])
    assert found.calls[0][:T] == COMPUTED


def test_the_grids_of_the_solvers_are_their_own(pipes: dict[str, Any]) -> None:
    unipc, euler = (base_sigmas(pipes[name]) for name in ("wan unipc", "wan euler"))
    assert (unipc - euler).abs().max() > 0.02
    with pytest.raises(ProfileMismatch, match="scheduler class"):
        ertacache.enable(pipes["wan euler"], profile(pipes["wan unipc"], "output"))
