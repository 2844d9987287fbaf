"""A split run is the unsplit run, bit for bit, where both models are the same: for every solver that can be cut."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from ertacache.errors import InvalidArgument, UnsupportedPipeline
from ertacache.split import Handover, first_part, second_part, split
from ertacache.split.solver_state import MEMORIES, check_solver
from small_images import stable_diffusion
from split_peer import receive, send
from split_solvers import PROMPTS, SOLVERS, call, pipeline

#: Of diffusers' own: numpy's arrays of tensors, and configurations that Stable Diffusion wants otherwise.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]


@pytest.fixture(scope="module")
def peer() -> Iterator[socket.socket]:
    """A process that makes first parts, at the other end of a socket."""
    folder = Path(__file__).parent
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
        command = [sys.executable, str(folder / "split_peer.py"), str(server.getsockname()[1])]
        with subprocess.Popen(command, env=environment) as process:
            server.settimeout(120)
            connection, _ = server.accept()
            with connection:
                yield connection
            process.wait(60)


@pytest.mark.parametrize("name", SOLVERS)
def test_over_a_socket_and_in_one_process(name: str, peer: socket.socket) -> None:
    pipe, until = pipeline(name), SOLVERS[name][2]
    whole = pipe(**call(output_type="pt")).images
    send(peer, json.dumps([name, until]).encode())
    handover = Handover.from_bytes(receive(peer))
    assert (handover.step, handover.calls) == (until, until)
    assert torch.equal(second_part(pipe, handover, {"output_type": "pt"}).images, whole)
    with split(pipe, pipeline(name), switch=until) as stats:
        assert torch.equal(pipe(**call(output_type="pt")).images, whole)
    assert stats.calls == [until, handover.steps - until]


@pytest.mark.parametrize("name", ["DPM-Solver++ 2M", "UniPC", "PNDM", "LMS", "DEIS"])
def test_without_its_history_the_run_is_another(name: str) -> None:
    """What the equality above rests on."""
    pipe = pipeline(name)
    made = first_part(pipe, call(), until=SOLVERS[name][2])
    whole = second_part(pipe, made, {"output_type": "latent"}).images
    empty = {key: torch.zeros_like(value) for key, value in made.solver.tensors.items()}
    without = replace(made, solver=replace(made.solver, tensors=empty))
    assert not torch.equal(second_part(pipe, without, {"output_type": "latent"}).images, whole)


@pytest.mark.parametrize("name", ["PNDM", "UniPC of order 3"])
def test_every_place_of_a_history_that_grows(name: str) -> None:
    pipe = pipeline(name)
    whole = pipe(**call(output_type="latent")).images
    for until in (1, 2, len(pipe.scheduler.timesteps)):
        made = Handover.from_bytes(first_part(pipe, call(), until=until).to_bytes())
        assert torch.equal(second_part(pipe, made, {"output_type": "latent"}).images, whole), until


def test_heun_is_cut_between_its_steps_only() -> None:
    with pytest.raises(InvalidArgument, match=r"until is 3 and Heun.* makes 11 steps here; hand over after 2, 4, "):
        first_part(pipeline("Heun"), call(), until=3)


def test_noise_with_eta_goes_on_where_it_stopped() -> None:
    pipe = pipeline("DDIM")
    whole = pipe(**call(eta=0.7, output_type="latent")).images
    made = first_part(pipe, call(eta=0.7), until=3)
    assert made.call["eta"] == 0.7 and len(made.generators) == len(PROMPTS)
    assert torch.equal(second_part(pipe, made, {"output_type": "latent"}).images, whole)


def test_one_generator_for_a_batch() -> None:
    pipe = pipeline("LCM")
    whole = pipe(**call(generator=torch.Generator().manual_seed(3), output_type="latent")).images
    made = first_part(pipe, call(generator=torch.Generator().manual_seed(3)), until=2)
    assert not made.listed and len(made.generators) == 1
    again = Handover.from_bytes(made.to_bytes())
    assert torch.equal(second_part(pipe, again, {"output_type": "latent"}).images, whole)


@pytest.mark.parametrize("name", ["LCM", "Euler, ancestral", "DPM-Solver++ 2M, SDE"])
def test_noise_from_the_global_generator_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedPipeline, match=r"draws noise in every step, here from torch's global generator"):
        first_part(pipeline(name), call(generator=None), until=3)


def test_noise_of_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        device = torch.device("cuda")

    from ertacache.split.parts import _First  # pyright: ignore[reportPrivateUsage]

    pipe = pipeline("LCM")
    first = _First(pipe, 2, Elsewhere())
    with pytest.raises(UnsupportedPipeline, match="draws noise from a generator on cuda, whose state means nothing"):
        first._check_noise(pipe.scheduler, {"generator": object()})  # pyright: ignore[reportPrivateUsage]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "CogVideoXDPMScheduler": ({}, "its last prediction lives in a variable of the pipeline"),
    "DPMSolverSinglestepScheduler": ({}, "its order changes from step to step"),
    "KDPM2DiscreteScheduler": ({}, "a step is two calls of another kind than Heun's"),
    "KDPM2AncestralDiscreteScheduler": ({}, "a step is two calls with noise between them"),
    "FlowMatchHeunDiscreteScheduler": ({}, "a step is two calls, and its state between them was not tried"),
    "SASolverScheduler": ({}, "its predictor, its corrector and its noise each have a history"),
    "TCDScheduler": ({}, "what it keeps from step to step is not known"),
    "PNDMScheduler": ({}, "its Runge-Kutta steps keep half-made sums: set skip_prk_steps=True"),
    "UniPCMultistepScheduler": ({"solver_p": diffusers.DDIMScheduler()}, "solver_p is a solver with a memory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_every_other_solver_is_refused_by_name(name: str) -> None:
    config, reason = REFUSED[name]
    message = rf"the state of {name} cannot be handed over: {reason}.* Solvers that can: FlowMatchEuler.*, PNDMSch"
    with pytest.raises(UnsupportedPipeline, match=message):
        check_solver(getattr(diffusers, name)(**config))


@pytest.mark.parametrize("name", ["DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"])
def test_a_brownian_tree_is_refused_by_name(name: str) -> None:
    scheduler = type(name, (), {})()  # the class needs a package that is not installed
    with pytest.raises(UnsupportedPipeline, match="its noise is a Brownian tree"):
        check_solver(scheduler)


def test_every_row_is_tested() -> None:
    assert {row.scheduler for row in MEMORIES} == {scheduler for scheduler, _, _ in SOLVERS.values()}


def test_a_refused_solver_may_still_be_split_in_one_process() -> None:
    """One scheduler is carried on: nothing of it has to be known."""
    scheduler = diffusers.TCDScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipe = stable_diffusion(scheduler).pipe
    whole = pipe(**call(output_type="latent")).images
    with split(pipe, pipeline("DDIM"), switch=2):
        assert torch.equal(pipe(**call(output_type="latent")).images, whole)
