"""The two parts of a run that is cut: until a step here, from that step on wherever its handover goes.

No loop is made again. The first part interrupts the pipeline's own after the step; the second lets the pipeline run its
own from the beginning, in which the steps that were made cost nothing, and puts the state in before the first other.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor

from ertacache.errors import InvalidArgument, SplitMismatch, UnsupportedPipeline
from ertacache.pipelines.denoiser_call import form_without, latent_of
from ertacache.runtime.pair import space_of
from ertacache.split import arguments
from ertacache.split.cut import Cut
from ertacache.split.encoded import Encoded, check_encoded
from ertacache.split.handover import Handover
from ertacache.split.matching import check_handover, source_of
from ertacache.split.solver_state import captured, check_solver, restore

#: How the texts get to the second side.
Texts = Literal["embeddings", "prompt"]


def first_part(pipe: Any, call: Mapping[str, Any], *, until: int, texts: Texts = "embeddings") -> Handover:
    """Run the first `until` solver steps of a pipeline call.

    Args:
        pipe: a diffusers pipeline, with or without an autoencoder: nothing is decoded.
        call: its arguments, as for `pipe(**call)`. Generators must be of the CPU where the solver draws noise.
        until: from 1 to the number of solver calls; then only the decoding is left. Heun needs an even number.
        texts: "embeddings" sends what the text encoders made, "prompt" the texts, to be encoded on the other side.

    Raises:
        InvalidArgument: an argument that cannot cross, or another `until` or `texts`.
        UnsupportedPipeline: the pipeline cannot be cut, or the state of its solver cannot be handed over.
        CacheConflict: a part of another run is under way on this pipeline.
    """
    if texts not in ("embeddings", "prompt"):
        raise InvalidArgument(f"texts is {texts!r}; choose 'embeddings' or 'prompt'")
    if type(until) is not int or until < 1:
        raise InvalidArgument(
            f"until is {until!r}; hand over after a whole number of steps from 1 on, and where it would be 0 call the "
            "second pipeline itself"
        )
    arguments.check_interruptible(pipe)
    check_solver(pipe.scheduler)
    if texts == "embeddings":
        check_encoded(pipe)
    shared = arguments.sent(pipe, call, texts=texts == "prompt")
    first = _First(pipe, until, call.get("generator"))
    with first:
        latent = pipe(**{**call, "output_type": "latent", "return_dict": True})[0]
    found = first.handover(latent)
    if any(call.get(name) is not None for name in ("sigmas", "timesteps")):  # which say how many steps there are
        shared["num_inference_steps"] = found.steps
    return replace(
        found, call={**shared, **first.encoded.sizes}, embeddings=first.encoded.embeddings if texts != "prompt" else {},
        space=space_of(pipe), source=source_of(pipe),
    )  # fmt: skip


def second_part(pipe: Any, handover: Handover, call: Mapping[str, Any] | None = None) -> Any:
    """Make the steps that a handover leaves, and decode.

    Args:
        pipe: a pipeline of the same kind with the same solver, whose denoiser may be another one.
        handover: from `first_part`, or `Handover.from_bytes`.
        call: arguments of this side: `output_type`, callbacks (which are called from the handover on), another weight
            of guidance, attention arguments.

    Returns:
        What the pipeline returns.

    Raises:
        InvalidArgument: an argument that comes with the handover, or values that no run leaves behind.
        SplitMismatch: the handover does not belong to this pipeline; nothing was computed.
        UnsupportedPipeline: as `first_part`.
        CacheConflict: as `first_part`.
    """
    handover.check()
    check_solver(pipe.scheduler)
    check_handover(handover, pipe)
    given = arguments.own(pipe, call or {})
    generators = [torch.Generator("cpu").set_state(state) for state in handover.generators]
    sent = {name: tuple(value) if name in arguments.PAIRS else value for name, value in handover.call.items()}
    device = getattr(pipe, "_execution_device", "cpu")
    full = {**sent, **{name: one.to(device) for name, one in handover.embeddings.items()}, **given}
    known = arguments.defaults_of(pipe)
    for name in full:
        if name not in known:
            raise SplitMismatch(
                f"{name}: the handover is of a {handover.source.get('pipeline')}, and {type(pipe).__name__} takes no "
                "such argument; use a pipeline of the same class"
            )
    if "generator" in known and generators:
        full["generator"] = generators if handover.listed else generators[0]
    if (callback := full.get("callback_on_step_end")) is not None:
        full["callback_on_step_end"] = _from(callback, handover.step)
    with _Second(pipe, handover, generators):
        return pipe(**full)


def _from(callback: Any, step: int) -> Any:
    """A function that is called from a step on; diffusers' own callbacks, which change the guidance, see every step."""
    if not callable(callback) or hasattr(callback, "tensor_inputs"):
        return callback

    def later(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        return cast("dict[str, Any]", callback(pipe, i, t, given)) if i >= step else {}

    return later


class _First(Cut):
    """Interrupts the pipeline after a step, and keeps what it has to remember."""

    def __init__(self, pipe: Any, until: int, generator: Any) -> None:
        super().__init__(pipe)
        self._until, self._memory = until, check_solver(pipe.scheduler)
        self._listed = isinstance(generator, list | tuple)
        self._generators: list[Any] = list(generator) if self._listed else [generator] if generator else []
        self._found: Handover | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        self.encoded = Encoded(self, self.pipe)
        return self

    def handover(self, latent: Tensor) -> Handover:
        """What was kept, with the latent that the pipeline would have gone on with."""
        if self._found is None:
            raise InvalidArgument(
                f"{type(self.pipe).__name__} was interrupted after {self.made} of {self._until} steps; nothing can be "
                "handed over"
            )
        return replace(self._found, latent=latent.detach().to("cpu", copy=True))

    def begun(self, scheduler: Any) -> None:
        steps = len(scheduler.timesteps)
        if self._until > steps or (self._memory.even and self._until % 2 and self._until < steps):
            places = f"2, 4, ... or all {steps}" if self._memory.even else f"1 to {steps}"
            raise InvalidArgument(
                f"until is {self._until} and {type(scheduler).__name__} makes {steps} steps here; "
                f"hand over after {places}"
            )

    def denoise(self, compute: Callable[[], Any], denoiser: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return compute()

    def advance(self, compute: Callable[[], Any], scheduler: Any, sample: Tensor, options: dict[str, Any]) -> Any:
        self._check_noise(scheduler, options)
        result = compute()
        if self.made + 1 == self._until:
            self._keep(scheduler, sample)
            self.pipe._interrupt = True
        return result

    def _check_noise(self, scheduler: Any, options: dict[str, Any]) -> None:
        """Noise that is drawn after the handover must be what this side would have drawn."""
        added = next((name for name in ("eta", "s_churn") if options.get(name)), None)
        if not (added or self._memory.draws(scheduler.config)):
            return
        name = f"{type(scheduler).__name__} with {added}={options[added]}" if added else type(scheduler).__name__
        if options.get("generator") is None:
            raise UnsupportedPipeline(
                f"{name} draws noise in every step, here from torch's global generator, which cannot be handed over; "
                "give generator=torch.Generator('cpu'), or use a solver that draws none where the pipeline passes none "
                "on"
            )
        if any(one.device.type != "cpu" for one in self._generators):
            raise UnsupportedPipeline(
                f"{name} draws noise from a generator on {self._generators[0].device.type}, whose state means nothing "
                "on another device; give generators of the CPU, which diffusers takes for every device"
            )

    def _keep(self, scheduler: Any, sample: Tensor) -> None:
        sigmas = getattr(scheduler, "sigmas", None) if self._memory.sigmas else None
        states = [one.get_state() for one in self._generators if one.device.type == "cpu"]
        self._found = Handover(
            step=self._until, calls=self.calls, latent=sample,
            timesteps=scheduler.timesteps.detach().to("cpu", copy=True),
            sigmas=None if sigmas is None else sigmas.detach().to("cpu", copy=True),
            solver=captured(scheduler, self._until), call={}, listed=self._listed,
            generators=tuple(states) if len(states) == len(self._generators) else (),
        )  # fmt: skip


class _Second(Cut):
    """Passes over the steps that were made, and puts the state in after the last of them."""

    def __init__(self, pipe: Any, handover: Handover, generators: list[torch.Generator]) -> None:
        super().__init__(pipe)
        self._handover, self._generators = handover, generators

    def begun(self, scheduler: Any) -> None:
        """Put the first side's grid in, whose places the pipeline iterates over from now on."""
        found = self._handover
        for name in ("timesteps", "sigmas"):
            sent, own = getattr(found, name), getattr(scheduler, name, None)
            if sent is None or not isinstance(own, Tensor):
                continue
            if sent.dtype != own.dtype or sent.shape != own.shape:
                raise SplitMismatch(
                    f"{name}: the handover has {list(sent.shape)} in {sent.dtype}, and {type(scheduler).__name__} "
                    f"{list(own.shape)} in {own.dtype}; use the same release of diffusers on both sides"
                )
            setattr(scheduler, name, sent.to(own.device, copy=True))

    def denoise(self, compute: Callable[[], Any], denoiser: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if self.made >= self._handover.step:
            return compute()
        x = latent_of(args, kwargs, denoiser)
        nothing = x.new_zeros((len(x), *self._handover.latent.shape[1:]))
        return form_without(kwargs.get("return_dict", True)).wrap(nothing, denoiser)

    def advance(self, compute: Callable[[], Any], scheduler: Any, sample: Tensor, options: dict[str, Any]) -> Any:
        found = self._handover
        if self.made >= found.step:
            return compute()
        latent = found.latent
        if self.made == 0 and (latent.shape != sample.shape or latent.dtype != sample.dtype):
            raise SplitMismatch(
                f"latent: the handover has {list(latent.shape)} in {latent.dtype}, and {type(self.pipe).__name__} "
                f"makes {list(sample.shape)} in {sample.dtype} of this call; use a model with the same latents, and "
                f"handover.to({sample.dtype}) for another dtype"
            )
        if self.made + 1 == found.step:
            sample = latent.to(sample.device, copy=True)
            restore(scheduler, found.solver, found.step, sample)
            for generator, state in zip(self._generators, found.generators, strict=True):
                generator.set_state(state)
        # A tuple, or what the pipeline reads its latent from.
        return (sample, sample) if options.get("return_dict") is False else _Result(sample)


class _Result:
    """What a solver step returns: the latent [B, *], where one is read from it by name."""

    def __init__(self, latent: Tensor) -> None:
        self.prev_sample = self.pred_original_sample = self.denoised = latent

    def __getitem__(self, place: int) -> Tensor:
        return self.prev_sample
