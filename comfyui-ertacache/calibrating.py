"""From recorded runs to a plan: schedule, closed-loop fit and time grid, measured on seeds that were not fitted."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ertacache.core.fit import RidgeSums, prompt_weights
from ertacache.core.history import History
from ertacache.core.interpolation import between
from ertacache.core.paths import cheapest
from ertacache.core.policy import l1_per_prompt
from ertacache.core.predictor import Predictor
from ertacache.core.run_gram import RunGrams, gram_of
from ertacache.core.schedule import Schedule
from ertacache.core.segment_costs import segment_costs
from ertacache.core.timesteps import adjust, phi
from ertacache.errors import CalibrationError, InvalidArgument

from .played_steps import TARGET, denoised_of, slope
from .recording import Answers, Recorder, each, kept, relative_errors
from .samplers import EULER, check_sampler

SCHEDULES = ("searched", "even")


@dataclass(frozen=True)
class Request:
    """The choices of a calibration.

    Args:
        compute_steps: K, how many of the T steps call the model.
        seeds: N, how many runs are recorded; holdout: how many of them are only measured on.
        schedule: 'searched' over the recorded runs, or 'even'.
        levels: how many of the last computed outputs a prediction uses.
        ridge: shrinkage toward repeating the last one.
        strength: γ of the timestep adjustment (Eq. 13-14); above 0 the plan has a time grid of its own.
    """

    compute_steps: int
    seeds: int = 6
    holdout: int = 2
    schedule: str = "searched"
    levels: int = 3
    ridge: float = 1e-3
    strength: float = 0.0

    def check(self, sampler: str, sigmas: Tensor) -> None:
        """Refuse what cannot work, before the first run.

        Raises:
            InvalidArgument: naming the value.
            UnsupportedPipeline, CacheConflict: a sampler that cannot be served.
        """
        T = len(sigmas) - 1
        check_sampler(sampler)
        if T < 2 or float(sigmas[-1]) != 0 or not bool((sigmas.diff() < 0).all()):
            raise InvalidArgument(
                f"sigmas are {T + 1} values from {float(sigmas[0]) if T >= 0 else 0.0:.4g} to "
                f"{float(sigmas[-1]) if T >= 0 else 0.0:.4g}; give a falling grid of 2 steps or more that ends at 0"
            )
        if not 2 <= self.compute_steps < T:
            raise InvalidArgument(f"compute_steps is {self.compute_steps} of {T} steps; choose from 2 to {T - 1}")
        if not 1 <= self.holdout < self.seeds:
            raise InvalidArgument(
                f"holdout is {self.holdout} of {self.seeds} seeds; keep 1 or more and leave 1 or more to fit"
            )
        if self.schedule not in SCHEDULES:
            raise InvalidArgument(f"schedule is {self.schedule!r}; choose one of {', '.join(SCHEDULES)}")
        if not 0 <= self.strength <= 1:
            raise InvalidArgument(f"strength is {self.strength}; choose from 0 (the sampler's grid) to 1 (the paper)")
        if self.strength and sampler != EULER:
            raise InvalidArgument(f"sampler is {sampler!r}, and a time grid of its own is stepped by euler; choose it")


@dataclass(frozen=True)
class Found:
    """What a calibration came to.

    Attributes:
        sigmas: [T+1] to run on. errors: relative RMS error of the final latent of each held-out seed, with the plan;
            fewer_steps: with K plain steps, which cost the same.
        calls: of the model, in all.
    """

    schedule: Schedule
    predictor: Predictor
    sigmas: Tensor
    errors: list[float]
    fewer_steps: list[float]
    calls: int


Sample = Callable[[Answers, Tensor, slice], None]
"""Makes one sampling run over a slice of the seeds on a time grid, answered by an `Answers`."""


def calibrate(request: Request, sampler: str, sigmas: Tensor, sample: Sample) -> Found:
    """Record, choose a schedule, fit it in closed loop, and compare it with fewer steps.

    Args:
        sigmas: [T+1] of the sampler.

    Raises:
        InvalidArgument, UnsupportedPipeline, CacheConflict: as `Request.check`.
        CalibrationError: the recorded runs hold NaN or infinity.
    """
    sigmas = sigmas.detach().cpu().float()
    request.check(sampler, sigmas)
    everyone, fitted = slice(0, request.seeds), request.seeds - request.holdout
    recorder = Recorder()
    sample(recorder, sigmas, everyone)
    if not all(bool(x.isfinite().all()) for x in (recorder.latents, recorder.slopes)):
        raise CalibrationError("the uncached runs hold NaN or infinity; load the model in a wider dtype")
    schedule = choose(request, recorder, fitted)
    grid, loops = sigmas, list[ClosedLoop]()
    if request.strength:
        loops.append(ClosedLoop(request, schedule, recorder.latents, sigmas, sigmas, truth=True))
        sample(loops[0], sigmas, everyone)
        grid = adjust(sigmas, schedule, loops[0].phis, request.strength).float()
    loops.append(ClosedLoop(request, schedule, recorder.latents, sigmas, grid, truth=sampler != EULER))
    sample(loops[-1], grid, everyone)
    fewer = Recorder()
    coarse = [*Schedule.uniform(schedule.T, schedule.K).computed_steps, schedule.T]
    sample(fewer, sigmas[coarse], slice(fitted, request.seeds))
    reference = recorder.latents[-1][fitted:]
    return Found(
        schedule,
        loops[-1].predictor(),
        grid,
        relative_errors(loops[-1].finals[fitted:], reference),
        relative_errors(fewer.latents[-1], reference),
        sum(part.calls for part in (recorder, *loops, fewer)),
    )


def calls_of(request: Request, sampler: str, T: int) -> int:
    """How many model calls a calibration makes, known before it starts."""
    closed = T if sampler != EULER else request.compute_steps
    adjusted = T if request.strength else 0
    return request.seeds * (T + adjusted + closed) + request.holdout * request.compute_steps


def choose(request: Request, recorded: Recorder, fitted: int) -> Schedule:
    """The schedule of K steps, from the runs of the first `fitted` seeds."""
    T, K = len(recorded.slopes), request.compute_steps
    if request.schedule == "even":
        return Schedule.uniform(T, K)
    grams = RunGrams.of((gram_of(recorded.latents[:, n], recorded.slopes[:, n]) for n in range(fitted)), T)
    return cheapest(segment_costs(grams, request.levels, 0, ridge=request.ridge), K)[0]


class ClosedLoop:
    """Walks the cached trajectory of all seeds and fits each predicted step before the next is reached.

    Under Euler a step is fitted to the slope that leads back to the recorded trajectory, which takes no model call;
    other samplers mix steps in ways of their own, and are fitted to the model's own output there.

    Args:
        latents: [T+1, N, *] of the recorded runs. sigmas, grid: [T+1] of those, and of this one.
        truth: whether the model is called at predicted steps too.

    Attributes:
        phis: φ of each predicted step (Eq. 13), where the truth is known. finals: [N, *].
    """

    def __init__(
        self, request: Request, schedule: Schedule, latents: Tensor, sigmas: Tensor, grid: Tensor, *, truth: bool
    ) -> None:
        self._request, self._schedule, self._truth = request, schedule, truth
        self._sigmas, self._grid, self._latents = sigmas, grid, latents
        self._history, self._before = History(request.levels), torch.zeros(())
        self._weights: dict[int, Tensor] = {}
        self.phis: dict[int, float] = {}
        self.finals, self.calls = torch.zeros(()), 0

    def step(self, i: int, x: Tensor, sigma: float, call: Callable[[int], Tensor]) -> Tensor:
        computed = self._schedule.computed[i]
        truth = denoised = None
        if computed or self._truth:
            denoised = each(len(x), call)
            self.calls += len(x)
            truth = slope(x, denoised, sigma)
        before, self._before = self._before, self._before if truth is None else truth
        if computed and truth is not None and denoised is not None:
            self._history.push(TARGET, truth)
            return denoised
        v = self._fitted(i, self._aim(i, x) if truth is None else truth)
        if truth is not None:
            error, change = (float(l1_per_prompt(part).sum()) for part in (v - truth, truth - before))
            self.phis[i] = phi(error, change)
        return denoised_of(x, v, sigma)

    def final(self, x: Tensor) -> None:
        self.finals = kept(x)

    def _aim(self, i: int, x: Tensor) -> Tensor:
        """The slope with which an Euler step lands on the recorded trajectory."""
        target = between(self._sigmas, self._latents, float(self._grid[i + 1])).to(x.device)
        return (target - x) / float(self._grid[i + 1] - self._grid[i])

    def _fitted(self, i: int, goal: Tensor) -> Tensor:
        features, fitted = self._history.outputs(TARGET), len(goal) - self._request.holdout
        left, sums = goal - features[0], RidgeSums(len(features))
        weights = prompt_weights(left[:fitted], goal[:fitted])
        sums.update([feature[:fitted] for feature in features], left[:fitted], weights)
        self._weights[i] = sums.solve(self._request.ridge)
        self._weights[i][0] += 1  # what was fitted is what repeating the last output leaves
        total = torch.zeros_like(goal)
        for weight, feature in zip(self._weights[i].tolist(), features, strict=True):
            total.add_(feature, alpha=weight)
        return total

    def predictor(self) -> Predictor:
        """The fitted coefficients as a table."""
        T = self._schedule.T
        a = torch.zeros(T, 1, 1, self._request.levels)
        for i, weights in self._weights.items():
            a[i, 0, 0, : len(weights)] = weights.float()
        return Predictor((TARGET,), (TARGET,), a, torch.zeros(T, 1), torch.zeros(T, 1))
