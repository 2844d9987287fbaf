"""What a pipeline run really executed, seen from below every cache and from outside every method."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ertacache.errors import CalibrationError, UnsupportedPipeline
from ertacache.pipelines.models import QUERIES, blocks_of, denoisers_of, unwrapped
from ertacache.pipelines.overrides import Overrides
from ertacache.pipelines.solvers import STEP_ARGUMENTS, check_scheduler, read_grid
from ertacache.runtime.flops import FlopCounter


@dataclass
class Executed:
    """One run of the denoising loop; lists have one entry per solver step.

    Attributes:
        sigmas: [T+1] the grid that was integrated on.
        denoiser_calls: calls that reached the denoiser.
        block_calls: blocks whose inside ran.
        attention_calls: attention modules whose query projection ran.
        elements: batch entries that the first block saw; a method that drops half of a batch shows here.
        flops: operations of the denoiser, where they were counted.
        outputs: what the solver received, each [B, *] float32 on the CPU, where they were kept.
        latents: [B, *] float32 on the CPU, after the last step.
        seconds: from `set_timesteps` to the end of the last step.
        computed_calls: denoiser calls that reached its first block; a hidden residual is reused before it.
    """

    sigmas: Tensor
    denoiser_calls: list[int] = field(default_factory=list[int])
    block_calls: list[int] = field(default_factory=list[int])
    attention_calls: list[int] = field(default_factory=list[int])
    elements: list[int] = field(default_factory=list[int])
    flops: list[int] = field(default_factory=list[int])
    outputs: list[Tensor] = field(default_factory=list[Tensor])
    latents: Tensor = field(default_factory=lambda: torch.zeros(0))
    seconds: float = 0.0
    computed_calls: list[int] = field(default_factory=list[int])

    @property
    def signature(self) -> tuple[tuple[int, ...], ...]:
        """Runs of one signature execute the same parts in the same steps: one count of flops prices them all."""
        return tuple(zip(self.denoiser_calls, self.block_calls, self.attention_calls, self.elements, strict=True))


class Watch(Overrides):
    """Follows every run of a pipeline from innermost: put it on before the method that is watched.

    Args:
        flops: count operations as well; the run is then several times slower and its time means nothing.
        keep_outputs: keep what the solver received in every step.
        one_run: refuse a second run, of which only the last would be counted.

    Raises:
        UnsupportedPipeline: no denoiser, or a solver whose steps cannot be followed.
    """

    def __init__(self, pipe: Any, *, flops: bool = False, keep_outputs: bool = False, one_run: bool = False) -> None:
        super().__init__()
        self._flops, self._keep, self._one_run = flops, keep_outputs, one_run
        self._executed: Executed | None = None
        self._tick: dict[str, int] = {}
        self._handles: list[Any] = []
        denoisers = denoisers_of(pipe)
        check_scheduler(pipe.scheduler)
        self.replace(pipe.scheduler, "set_timesteps", self._set_timesteps)
        self.replace(pipe.scheduler, "step", self._step)
        for denoiser in denoisers:
            self._count(unwrapped(denoiser))

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self.remove()

    @property
    def executed(self) -> Executed:
        """The run that was made last.

        Raises:
            CalibrationError: there was none.
        """
        if self._executed is None:
            raise CalibrationError("the pipeline made no run: it never called scheduler.set_timesteps and step")
        return self._executed

    def _count(self, denoiser: nn.Module) -> None:
        # Inside the modules, not at them: a cache answers for a module by replacing its forward, below the hooks of
        # the module itself, and whoever is passed over has no inside that runs.
        blocks = blocks_of(denoiser)
        for block in blocks:
            self._on_call(_first_leaf(block), "block_calls")
        for part in attentions_of(denoiser):
            self._on_call(part, "attention_calls")
        self._on_call(_first_leaf(denoiser), "denoiser_calls")
        entry = _first_leaf(blocks[0] if blocks else denoiser)
        self._on_call(entry, "computed_calls")
        self._handles.append(entry.register_forward_pre_hook(self._entered, with_kwargs=True))
        if self._flops:
            self.replace_call(denoiser, self._counted_call)

    def _on_call(self, module: nn.Module, name: str) -> None:
        def add(_: nn.Module, args: Any) -> None:
            self._tick[name] = self._tick.get(name, 0) + 1

        self._handles.append(module.register_forward_pre_hook(add))

    def _entered(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        self._tick["elements"] = self._tick.get("elements", 0) + next((len(t) for t in tensors if t.ndim), 1)

    def _counted_call(self, original: Callable[..., Any], _: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with FlopCounter() as counter:
            result = original(*args, **kwargs)
        self._tick["flops"] = self._tick.get("flops", 0) + counter.total
        return result

    def _set_timesteps(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        if self._one_run and self._executed is not None and self._executed.denoiser_calls:
            raise UnsupportedPipeline(
                "the pipeline runs its solver again within one call (sections, windows or segments), which cannot be "
                "compared; compare on a call with one section"
            )
        result = original(*args, **kwargs)
        self._executed = Executed(read_grid(scheduler))
        self._tick = {}
        self._start = now()
        return result

    def _step(self, original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        run = self.executed
        for name in ("denoiser_calls", "computed_calls", "block_calls", "attention_calls", "elements"):
            getattr(run, name).append(self._tick.get(name, 0))
        if self._flops:
            run.flops.append(self._tick.get("flops", 0))
        self._tick = {}
        if self._keep:
            bound = {**dict(zip(STEP_ARGUMENTS, args, strict=False)), **kwargs}
            run.outputs.append(bound["model_output"].clone())
        if len(run.denoiser_calls) == len(run.sigmas) - 1:
            run.seconds = now() - self._start
            run.sigmas = read_grid(scheduler)  # a method may have changed it after set_timesteps
            run.outputs = [output.float().cpu() for output in run.outputs]  # after the time was taken
            run.latents = (result[0] if isinstance(result, tuple) else result.prev_sample).float().cpu()
        return result


def attentions_of(denoiser: nn.Module) -> Iterator[nn.Module]:
    """The query projection of every attention module."""
    for module in denoiser.modules():
        part = getattr(module, "to_qkv", None) if getattr(module, "fused_projections", False) else None
        parts = (part, *(getattr(module, name, None) for name in QUERIES))
        yield from [part for part in parts if isinstance(part, nn.Module)][:1]


def now() -> float:
    """Seconds, when everything that was sent to an accelerator is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _first_leaf(module: nn.Module) -> nn.Module:
    return next(part for part in module.modules() if not any(part.children()))
