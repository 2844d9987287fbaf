"""A pipeline of diffusers around a denoiser of one line, for whose call is whose: it runs in milliseconds."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

import ertacache.runtime.apply as ertacache
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.pipelines.solvers import read_grid
from ertacache.profile.profile import Profile, Provenance, Site
from ertacache.runtime.identity import identity_of

T, MASK = 8, "#.#..#.#"
COMPUTED, PREDICTED = MASK.count("#"), MASK.count(".")
SITES: tuple[Site, ...] = ("output", "guided")


class Field(nn.Module):
    """v = x / 2 + tanh(x) t / 1000 on [B, 2, 4]; counts what really runs, and raises in call number `fail_at`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.config, self.fail_at = dict[str, Any](), -1
        self.counter: list[int] = []  # appended to, which is one operation whichever thread does it
        self.error: type[BaseException] = RuntimeError

    @property
    def calls(self) -> int:
        return len(self.counter)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        self.counter.append(1)
        if self.calls == self.fail_at:
            raise self.error("the machine went away")
        return (self.truth(x, t),)

    @torch.no_grad()
    def truth(self, x: Tensor, t: Tensor) -> Tensor:
        return x * self.weight + x.tanh() * t.view(-1, 1, 1) / 1000


class Requests(DiffusionPipeline):
    """Euler on latents [1, 2, 4] drawn from a seed."""

    def __init__(self, scheduler: Any, transformer: nn.Module) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler, transformer=transformer)
        self._interrupt = False

    @torch.no_grad()
    def __call__(
        self, seed: int = 0, num_inference_steps: int = T, callback: Callable[..., Any] | None = None, end: int = T
    ) -> Tensor:
        self._interrupt = False
        x = latent(seed)
        self.scheduler.set_timesteps(num_inference_steps)
        for i, t in enumerate(self.scheduler.timesteps[:end]):
            if self._interrupt:
                continue
            output = self.transformer(x, t.expand(1))[0]
            x = self.scheduler.step(output, t, x, return_dict=False)[0]
            if callback is not None:
                callback(self, i, t, x)
        return x


def latent(seed: int) -> Tensor:
    return torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def requests(**scheduler: Any) -> Any:
    return Requests(FlowMatchEulerDiscreteScheduler(shift=2.0, **scheduler), Field())


def view(pipe: Any) -> Any:
    """For one request, as in diffusers' guide for servers: everything shared but the scheduler."""
    own = copy.copy(pipe)
    own.scheduler = copy.deepcopy(pipe.scheduler)
    return own


def profile(pipe: Any, site: Site = "output", grid: Callable[[Tensor], Tensor] = lambda sigmas: sigmas) -> Profile:
    """Residual reuse at a site, on `grid` of the scheduler's own."""
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(T)
    schedule, sigmas = Schedule.from_mask(MASK), read_grid(scheduler)
    facts = Provenance(
        **identity_of(pipe),
        num_inference_steps=T, contexts=("call0",), guidance_weight=None, embedded_guidance=None,
        call={"num_inference_steps": T}, latent_shape=(2, 4), channel_axis=1, dtype="torch.float64", prompt_count=1,
        prompt_hash="0" * 16, holdout_count=1, seed=0, method={}, versions={}, heldout={},
    )  # fmt: skip
    predictor = Predictor.residual_reuse(schedule, ("guided",) if site == "guided" else ("call0",))
    return Profile(schedule, site, predictor, sigmas, grid(sigmas), None, facts)


def alone(pipe: Any, wanted: Profile, *seeds: int) -> list[Tensor]:
    """What each request gives by itself under the profile; its latents."""
    with ertacache.apply(pipe, wanted):
        return [pipe(seed) for seed in seeds]


def by_hand(model: Any, scheduler: Any, seed: int) -> Any:
    """A loop that hands over after each denoiser call and after each step; yields the latent."""
    x = latent(seed)
    scheduler.set_timesteps(T)
    for t in scheduler.timesteps:
        output = model(x, t.expand(1))[0]
        yield None
        x = scheduler.step(output, t, x, return_dict=False)[0]
        yield x


class Case:
    """A pipeline, its profile, and what seeds 0 to 3 give without and with it."""

    def __init__(self, site: Any) -> None:
        self.pipe = requests()
        self.profile: Profile = profile(self.pipe, site)
        self.plain = [self.pipe(seed) for seed in range(4)]
        self.cached = alone(self.pipe, self.profile, *range(4))
        self.model = self.pipe.transformer
        self.model.counter.clear()

    def applied(self) -> Any:
        return ertacache.apply(self.pipe, self.profile)

    def check_direct(self, x: Tensor | None = None) -> None:
        """A direct call is computed, whatever is under way."""
        x, t, before = latent(9) if x is None else x, torch.tensor([500.0], dtype=torch.float64), self.model.calls
        assert torch.equal(self.model(x, t)[0], self.model.truth(x, t))
        assert self.model.calls == before + 1

    def other(self) -> Any:
        """A second pipeline on the same denoiser, with a scheduler that the profile does not know."""
        return Requests(type(self.pipe.scheduler).from_config(self.pipe.scheduler.config), self.model)
