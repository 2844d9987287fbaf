"""Arguments of the pipeline that have the name of one of `calibrate`'s: no call of either is out of reach."""

from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

import ertacache
import small_images
from dummy_pipeline import PROMPTS, DummyPipeline, mixture_pipeline, untimed
from ertacache.calibration.calibrate import calibrate
from ertacache.errors import InvalidArgument, ProfileMismatch
from supported import Small

CALL: dict[str, Any] = {"num_inference_steps": 9, "guidance_scale": 5.0}
CHOICES: dict[str, Any] = {"compute_steps": 4, "history": 2, "aim": "step", "show_progress": False}
#: "Align Your Steps" for SDXL, as diffusers has it.
LIST = [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]


class Colliding(DummyPipeline):
    """With arguments that have the names of ours; keeps what it was given."""

    def __call__(self, *args: Any, timesteps: Any = None, seed: Any = 7, threshold: Any = None, **more: Any) -> Any:
        self.given.append((timesteps, seed, threshold))
        return super().__call__(*args, **more)


class Described(Colliding):
    """Says so in its signature."""

    def __call__(
        self, prompt: Any, num_inference_steps: int = 30, guidance_scale: float = 7.0, generator: Any = (),
        output_type: str = "pil", timesteps: Any = None, seed: Any = 7, threshold: Any = None,
    ) -> Any:  # fmt: skip
        return super().__call__(
            prompt, num_inference_steps, guidance_scale, generator, output_type=output_type, timesteps=timesteps,
            seed=seed, threshold=threshold,
        )  # fmt: skip


def described() -> Described:
    pipe = Described(mixture_pipeline().transformer, (4, 4), branches=True)
    pipe.given = []
    return pipe


def test_the_dictionary_and_keywords_are_one_call():
    profiles = [
        calibrate(mixture_pipeline(), PROMPTS, **CHOICES, **given)
        for given in (CALL, {"call": CALL}, {"call": {"guidance_scale": 5.0}, "num_inference_steps": 9})
    ]
    assert untimed(profiles[0]) == untimed(profiles[1]) == untimed(profiles[2])
    assert profiles[1].provenance.call == CALL


def test_names_that_both_have_go_to_each_by_its_place():
    pipe = described()
    call = {**CALL, "timesteps": [3, 2, 1], "seed": 11, "threshold": [0.5]}
    profile = calibrate(pipe, PROMPTS, **CHOICES, seed=5, timesteps="none", call=call)
    assert {tuple(map(str, one)) for one in pipe.given} == {("[3, 2, 1]", "11", "[0.5]")}
    assert profile.provenance.seed == 5 and profile.provenance.call == call
    pipe.given.clear()
    assert calibrate(pipe, PROMPTS, **CHOICES, seed=5, call=CALL).provenance.seed == 5  # ours, as ever
    assert set(pipe.given) == {(None, 7, None)}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"call": {"guidance_scale": 4.0}, "guidance_scale": 5.0}, "'guidance_scale' is given in call and as a keyword"),
    ({"call": [("seed", 4)]}, r"call is \[\('seed', 4\)\]; give the pipeline's own arguments by name: call="),
    ({"call": {3: 4}}, r"call is {3: 4}; give the pipeline's own arguments by name"),
    ({"call": {"gidance_scale": 4}}, "no argument 'gidance_scale'.*guidance_scale"),
    ({"call": {"prompt": "x"}}, "'prompt' is set by this package for each prompt; leave it out"),
    ({"timesteps": [999, 1]}, r"timesteps is \[999, 1\], which is for Described's argument of that name, not for "
     r"calibrate's; pass it in call={'timesteps': ...}"),
    ({"timesteps": torch.tensor([999, 1])}, r"timesteps is tensor.* pass it in call={'timesteps': ...}"),
    ({"threshold": (0.1, 0.2)}, r"threshold is \(0.1, 0.2\), which is for Described's argument"),
    ({"seed": [1, 2]}, r"seed is \[1, 2\], which is for Described's .*; pass it in call={'seed': ...}"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_meant_for_the_other_is_refused_before_any_run(options: dict[str, Any], message: str):
    pipe = described()
    with pytest.raises(InvalidArgument, match=message):
        calibrate(pipe, PROMPTS, **CHOICES, **options)
    assert pipe.calls == 0


def test_a_list_that_the_pipeline_has_no_name_for_is_refused_as_ours():
    with pytest.raises(InvalidArgument, match=r"timesteps is \[999, 1\]"):
        calibrate(mixture_pipeline(), PROMPTS, **CHOICES, timesteps=[999, 1], **CALL)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sdxl() -> Small:
    made = small_images.stable_diffusion_xl()
    config = made.pipe.scheduler.config
    made.pipe.scheduler = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++")
    return made


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("place", ["call", "inputs"])
def test_a_list_of_timesteps_is_calibrated_and_served(sdxl: Small, place: str):
    call = {name: value for name, value in sdxl.call.items() if name != "num_inference_steps"}
    options: dict[str, Any] = {"schedule": "##.#.#.#.#", "basis": "residual", "holdout": 1 / 3, "show_progress": False}
    given = (
        {"call": {**call, "timesteps": LIST}}
        if place == "call"
        else {"call": call, "inputs": [{"timesteps": LIST}] * 3, "batch_size": 1}
    )
    profile = calibrate(sdxl.pipe, sdxl.prompts, **options, **given)
    assert profile.provenance.num_inference_steps == 10 and profile.schedule.K == 6
    assert "fewer_steps" not in profile.provenance.heldout
    plain = {**call, "prompt": sdxl.prompts[0], "output_type": "latent"}
    with ertacache.apply(sdxl.pipe, profile) as stats, torch.no_grad():
        sdxl.pipe(**plain, timesteps=LIST, generator=torch.Generator().manual_seed(0))
        assert (sum(stats.computed.values()), sum(stats.predicted.values())) == (6, 4)
        with pytest.raises(ProfileMismatch, match="time grid"):
            sdxl.pipe(**plain, num_inference_steps=10, generator=torch.Generator().manual_seed(0))
