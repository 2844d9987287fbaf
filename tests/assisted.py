"""Plans on the mixture pipeline with a small model beside it."""

from typing import Any

import pytest
import torch
from torch import Tensor

import ertacache
from dummies import GaussianMixture
from dummy_pipeline import PROMPTS, DummyPipeline, NamedMixtureModule
from ertacache.calibration.method import Method
from ertacache.core.schedule import Schedule
from ertacache.profile.profile import Profile

#: Of these plans, which are small ones and judged on few prompts.
FEW_PROMPTS = pytest.mark.filterwarnings(
    "ignore:.*judged prompts cannot tell", "ignore:.*loses to", "ignore:.*far from the"
)
#: What the fixture `assisted_plan` is.
Plan = tuple[DummyPipeline, NamedMixtureModule, Profile]
MASK, T, W, SEED = "#..#.#...#.#.#", 14, 7.0, 5
ALL = tuple(i for i, mark in enumerate(MASK) if mark == ".")
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": W}


def method(small: tuple[int, ...] = ALL, mask: str = MASK, **choices: Any) -> Method:
    own: dict[str, Any] = {"levels": 3, "directions": 2, "ridge": 1e-3, "aim": "trajectory", **choices}
    return Method("fitted", own.pop("site", "guided"), Schedule.from_mask(mask), small=small, **own)


def other(seed: int = 0, shift: float = 0.05) -> NamedMixtureModule:
    """A model that is a little off the large one."""
    mixture = GaussianMixture(seed=seed)
    mixture.means = mixture.means + shift
    return NamedMixtureModule(mixture)


def calibrated(pipe: Any, small: Any, how: Method | None = None, **options: Any) -> Profile:
    given = {"show_progress": False, **CALL, **options}
    return ertacache.calibrate(pipe, PROMPTS, predictor=small, method=how or method(), seed=SEED, **given)


def drawn(pipe: DummyPipeline, **call: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(40 + n) for n in range(3)]
    return pipe(PROMPTS[:3], generator=generators, output_type="latent", **{**CALL, **call})[0]
