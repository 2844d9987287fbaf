"""The server's parts without a server: which profile serves what, the queue, the time known in advance, previews."""

import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

import cached
from entry_point import refused
from ertacache.calibration.pipeline_run import run_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.errors import InvalidArgument, ProfileMismatch
from ertacache.pipelines.preview import can_preview, decode, estimate
from ertacache.pipelines.solvers import read_grid
from ertacache.runtime.run import Controller, Run
from ertacache.serving.job import Job, JobQueue
from ertacache.serving.ladder import Ladder, Rung, read_rungs
from ertacache.serving.order import QUALITIES, Order
from ertacache.serving.service import Service
from pipelines import CALL, VIDEO_CALL, cogvideox
from profile_maker import make

DEFAULTS = {"height": 64, "width": 64, "num_inference_steps": 5}
MASKS = ("#...#", "#.#.#", "##.##", "####.")


def ladder(count: int) -> Ladder:
    rungs = [Rung(f"p{n}", cached_like(mask)) for n, mask in enumerate(MASKS[:count])]
    return Ladder((*rungs, Rung("none")), DEFAULTS)


def cached_like(mask: str) -> Any:
    from ertacache.core.predictor import Predictor
    from ertacache.core.schedule import Schedule

    schedule = Schedule.from_mask(mask)
    return make(schedule=schedule, predictor=Predictor.plain_reuse(schedule, ("guided",)), sigmas=make().base_sigmas)


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (0, ["none"] * 6),
        (1, ["p0", "p0", "p0", "p0", "none", "p0"]),
        (2, ["p0", "p0", "p1", "p1", "none", "p1"]),
        (3, ["p0", "p1", "p1", "p2", "none", "p2"]),
        (4, ["p0", "p1", "p2", "p3", "none", "p3"]),
    ],
)
def test_qualities_are_spread_over_the_profiles_by_budget(count: int, names: list[str]):
    rungs = ladder(count)
    chosen = [rungs.choose(Order("a", DEFAULTS, quality))[0].name for quality in (*QUALITIES, "auto")]
    assert chosen == names


def test_a_request_that_no_profile_fits_says_why_and_a_named_one_is_taken():
    other = {**DEFAULTS, "num_inference_steps": 6}
    assert ladder(2).choose(Order("a", other))[1] == "num_inference_steps: no profile is for 6; those here are for 5"
    assert ladder(0).choose(Order("a", DEFAULTS))[1] == "num_inference_steps: no profile is for 5; none is served here"
    assert ladder(2).choose(Order("a", DEFAULTS, "max"))[1] is None
    assert ladder(2).choose(Order("a", other, "low", "p1"))[0].name == "p1"
    with pytest.raises(InvalidArgument, match=r"^profile is 'x', which is not served here; there are p0, p1, none$"):
        ladder(2).choose(Order("a", DEFAULTS, "low", "x"))


def asked(**changes: int) -> Order:
    return Order("a", {**DEFAULTS, **changes})


def test_the_time_is_that_of_the_last_run_or_in_proportion():
    known = ladder(1)
    rung, plain = known.rungs
    assert known.expected(plain, asked()) == 0
    known.took(plain, asked(), 10.0)
    assert known.expected(plain, asked(num_inference_steps=10)) == 20
    assert known.expected(plain, asked(width=128)) == 20
    assert known.expected(rung, asked(width=128)) == 10 * 2 / 5 * 2
    known.took(rung, asked(), 4.5)
    styled = replace(asked(), lora=(("style", 1.0),))
    assert known.expected(rung, asked()) == known.expected(rung, styled) == 4.5
    known.took(rung, styled, 6.0)
    assert (known.expected(rung, asked()), known.expected(rung, styled)) == (4.5, 6.0)
    for width in range(1, 400):
        known.took(plain, asked(width=128 + width), 1.0)
    assert len(known.taken) == 256 and known.expected(rung, asked()) == 4.5


def test_profiles_are_read_cheapest_first_and_by_a_name_of_their_own(tmp_path: Path):
    for name, mask in (("dear", MASKS[2]), ("cheap", MASKS[0])):
        cached_like(mask).save(tmp_path / f"{name}.safetensors")
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("dear", "cheap")]
    assert [rung.name for rung in read_rungs(paths)] == ["cheap", "dear", "none"]
    with pytest.raises(InvalidArgument, match=r"^two profiles are named 'dear' \('none' is no profile\); rename"):
        read_rungs([paths[0], paths[0]])


def jobs(*steps: int) -> list[Job]:
    return [Job(Order("a", {**DEFAULTS, "num_inference_steps": count}), Rung("none"), 0) for count in steps]


def test_the_queue_takes_equal_ones_together_and_forgets_the_cancelled():
    queue, (a, b, c, d) = JobQueue(4), jobs(5, 6, 5, 5)
    assert queue.put([a, b, c, d]) is None
    assert queue.put(jobs(5)) == "4 wait, and there is room for 4; ask again later"
    queue.cancel(c)
    assert (c.state, c.cancelled) == ("cancelled", True)
    assert queue.take(3) == [a, d] and queue.running == [a, d]
    queue.cancel(a)
    assert (a.state, a.cancelled) == ("queued", True)  # its run ends it
    queue.done([a, d])
    assert queue.take(1) == [b] and queue.running == [b]
    queue.close()
    assert b.cancelled and queue.take(1) == []
    assert queue.put(jobs(5)) == "this server is about to stop; ask again later"


def test_only_the_same_adapters_at_the_same_scales_go_together():
    queue, (a, b, c, d) = JobQueue(4), jobs(5, 5, 5, 5)
    for job, lora in ((a, (("x", 1.0),)), (b, ()), (c, (("x", 0.5),)), (d, (("x", 1.0),))):
        job.order = replace(job.order, lora=lora)
    assert queue.put([a, b, c, d]) is None
    assert [queue.take(4) for _ in range(3)] == [[a, d], [b], [c]]


def test_a_job_ends_once_and_is_at_100_percent_with_its_file_only():
    told: list[Any] = []
    job = replace(
        jobs(5)[0], tell=lambda kind, value: told.append((kind, value)), noted=lambda job: told.append(job.state)
    )
    assert job.progress == 0
    job.advance(5, 5)
    assert job.progress == 99
    job.end("completed")
    job.end("failed", "late", 500)
    assert (job.progress, job.error, told) == (100, None, [("step", 5), "completed", ("end", "completed")])


class Estimates(Controller):
    """x̂0 of every step beside the latent, and what the solver's class says of it."""

    def __init__(self) -> None:
        self.found: list[tuple[Tensor | None, Tensor, Tensor, float]] = []
        self.after: list[Tensor] = []

    def solve(self, run: Run, output: Tensor, x: Tensor) -> Tensor:
        at = float(read_grid(run.scheduler)[run.step])
        self.found.append((estimate(run.scheduler, run.step, output, x), x.clone(), output.clone(), at))
        self.scheduler = run.scheduler
        return output

    def end_step(self, run: Run, x_next: Tensor) -> None:
        self.after.append(x_next.clone())


def test_the_estimate_of_a_flow_is_where_one_step_to_the_end_leads(flux: Any):
    seen = Estimates()
    run_pipeline(flux, Prompts(("a",), 0), seen, {**CALL, "num_inference_steps": 4})
    for clean, x, output, at in seen.found:
        assert clean is not None and torch.equal(clean, x - at * output)
    assert clean is not None and torch.allclose(clean, seen.after[-1], atol=1e-6)  # the last step does end there
    picture = decode(flux, clean, 64, 64)
    whole = run_pipeline(flux, Prompts(("a",), 0), Controller(), {**CALL, "num_inference_steps": 4})
    assert torch.allclose(picture, whole, atol=1e-5)


def test_the_estimate_of_v_prediction_is_the_solvers_own():
    pipe, seen = cogvideox(), Estimates()
    run_pipeline(pipe, Prompts(("a",), 0), seen, {**VIDEO_CALL, "num_inference_steps": 4})
    for (clean, x, output, _), t in zip(seen.found, seen.scheduler.timesteps, strict=True):
        own = pipe.scheduler.step(output, t, x).pred_original_sample
        assert clean is not None and torch.allclose(clean, own, atol=1e-4)


def test_a_solver_whose_input_does_not_tell_the_picture_has_no_previews(flux: Any):
    """So that partial images are refused by name, and not left out."""
    vae = type("AutoencoderKL", (), {})()
    for scheduler, told in (
        (FlowMatchEulerDiscreteScheduler(), True),
        (DDIMScheduler(), True),
        (DDIMScheduler(prediction_type="v_prediction"), True),
        (EulerDiscreteScheduler(), False),
    ):
        assert can_preview(SimpleNamespace(vae=vae, scheduler=scheduler)) is told
    assert can_preview(flux)
    assert not can_preview(SimpleNamespace(vae=object(), scheduler=DDIMScheduler()))


def test_large_previews_are_small(flux: Any):
    assert decode(flux, torch.zeros(1, 32 * 64, 16), 64 * 4, 128 * 4).shape == (1, 3, 128, 256)


def test_a_profile_of_another_model_is_refused_before_the_server_starts(flux: Any):
    with pytest.raises(ProfileMismatch, match="model config"):
        Service("small", [flux], (Rung("other", make()), Rung("none")))
    service = Service("small", [flux], (Rung("own", cached.profile(flux, "output")), Rung("none")))
    assert service.ladder.defaults["num_inference_steps"] == 10 and not service.ready and not service.broken


def test_what_a_client_leaves_out_is_as_in_the_calibration(flux: Any):
    """Where that left it out as well, it is the pipeline's own, and not what the bundled model has of its own."""
    profile = cached.profile(flux, "output")
    rungs = (Rung("own", replace(profile, provenance=replace(profile.provenance, call={"num_inference_steps": 10}))),)
    with_profile, without = (Service("tiny-flux", [flux], (*own, Rung("none"))) for own in (rungs, ()))
    assert "guidance_scale" not in with_profile.ladder.defaults
    assert without.ladder.defaults["guidance_scale"] == 10.0


def test_the_command_refuses_what_it_can_before_the_model_is_loaded(monkeypatch: Any, capsys: Any, tmp_path: Path):
    monkeypatch.setattr("ertacache.pipelines.loading.load_pipeline", lambda *_: pytest.fail("it was loaded"))
    device = "--device is 'abacus', which torch does not know; use cpu, cuda or mps"
    for words, message in (
        (("tiny-fluks",), "no model 'tiny-fluks'; did you mean tiny-flux?"),
        (("tiny-flux", "--device", "cpu,abacus"), device),
        (("tiny-flux", "--device", "cpu,"), "--device is '', which torch does not know"),
        (("tiny-flux", "--api-key", ""), "--api-key is empty, or no header carries it"),
        (("tiny-flux", "--api-key", "two words"), "--api-key is empty, or no header carries it"),
        (("tiny-flux", "--lora", "ink"), "--lora is 'ink'; give NAME=PATH"),
        (("tiny-flux", "--host", "256.0.0.1"), "--host 256.0.0.1 with --port 8000 cannot be had ("),
        (("tiny-flux", "--profile", str(tmp_path / "none.safetensors")), "there is no profile at"),
    ):
        assert message in refused(monkeypatch, capsys, "serve", *words)
    for words, message in (
        (("tiny-fluks",), "no model 'tiny-fluks'; did you mean tiny-flux?"),
        (("tiny-flux", "--api-key", ""), "--api-key is empty, or no header carries it"),
        (("tiny-flux", "--profile", str(tmp_path / "none.safetensors")), "there is no profile at"),
        (("tiny-flux", "--ssl-certfile", str(tmp_path / "x.pem")), "--ssl-certfile: there is no file"),
        (("tiny-flux", "--ssl-keyfile", __file__), "--ssl-keyfile is given without --ssl-certfile; give both"),
    ):
        assert message in refused(monkeypatch, capsys, "split-server", *words)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refused(monkeypatch, capsys, "serve", "tiny-flux", "--port", port)
    assert f"--host 127.0.0.1 with --port {port} cannot be had (" in said
