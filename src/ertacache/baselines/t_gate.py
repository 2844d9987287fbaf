"""T-GATE: after a gate step cross-attention is reused and guidance dropped."""

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ertacache.baselines.baseline import Baseline, Knob
from ertacache.errors import CacheConflict, InvalidArgument
from ertacache.pipelines.branches import branch_count
from ertacache.pipelines.denoiser_call import latent_of, read_output
from ertacache.pipelines.models import AttentionKind, attention_kinds, attention_modules, blocks_of, denoiser_of
from ertacache.pipelines.overrides import Overrides
from ertacache.runtime.hooks import Attachment, attached
from ertacache.runtime.run import Controller, Run


@dataclass(frozen=True)
class TGate(Baseline):
    """Cross-attention runs up to the gate step m and is reused from there on, by one branch instead of two.

    Steps before m: both branches run, cross-attention is computed, self-attention in every step up to `warm_up`, then
    in every `sp_interval`-th; step m − 1 computes all. From m on the first call of a step runs alone, with the mean of
    what the cross-attention of both branches gave in step m − 1; the other call returns the same output, so that
    u + w (c − u) is that output. Where both branches come in one batch, its first half runs alone. Self-attention is
    computed in every `fi_interval`-th step. The original feeds the empty prompt to the branch that is left; where text
    enters by cross-attention alone, that is the same.

    The defaults are those published for Open-Sora (m = 12 of 30, k = 2; SDXL has the same gate); nothing is published
    for Wan. Under guidance the cost is at least one branch without its cross-attention, somewhat below one half, unless
    `fi_interval` is raised; without guidance only the attention modules are saved.

    Args:
        gate: m as a share of the steps, in [0, 1]; m is at least 1, and at 1 the gate never comes.
        sp_interval: of self-attention before the gate, at least 1.
        fi_interval: of self-attention after the gate, at least 1.
        warm_up: last of the first steps that compute everything.

    Raises:
        InvalidArgument: a setting out of its range.
    """

    key: ClassVar[str] = "t-gate"
    title: ClassVar[str] = "T-GATE"
    paper: ClassVar[str] = "arXiv 2404.02747"
    work: ClassVar[str] = "one branch after the gate: all of it but cross-attention and reused self-attention"
    knob: ClassVar[Knob] = Knob("gate", 1.0, 0.0)

    gate: float = 0.4
    sp_interval: int = 2
    fi_interval: int = 1
    warm_up: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.gate <= 1:
            raise InvalidArgument(f"{self.key}: gate is {self.gate:g}; choose a share of the steps from 0 to 1")
        for name, value in (("sp_interval", self.sp_interval), ("fi_interval", self.fi_interval)):
            if value < 1:
                raise InvalidArgument(f"{self.key}: {name} is {value}; choose 1 (compute always) or more")

    @classmethod
    def published(cls) -> Mapping[str, Mapping[str, Self]]:
        """What PAB's authors ran."""
        return {"STDiT3Transformer3DModel": {"videosys": cls()}}

    def refusal(self, pipe: Any, call: Mapping[str, Any]) -> str | None:
        denoiser = denoiser_of(pipe)
        if not blocks_of(denoiser):
            return "its blocks are not known"
        if "cross" not in attention_kinds(denoiser):
            return "its attention is joint: there is no cross-attention to gate"
        return None

    def gate_step(self, T: int) -> int:
        """m: the first step of one branch."""
        return max(1, round(self.gate * T))

    def computes(self, kind: AttentionKind, step: int, gate_step: int) -> bool:
        """Whether the attention of a step is computed; one along the frames is self-attention."""
        if step >= gate_step:
            return kind != "cross" and step % self.fi_interval == 0
        return kind == "cross" or step <= self.warm_up or step % self.sp_interval == 0 or step == gate_step - 1

    def applied(self, pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[Attachment]:
        return _gated(self, pipe)


@contextmanager
def _gated(method: TGate, pipe: Any) -> Generator[Attachment]:
    gate, inside = _Gate(method), Overrides()
    inside.replace_call(denoiser_of(pipe), gate.one_branch)  # below whatever asks the gate
    try:
        with attached(pipe, gate) as attachment:
            yield attachment
    finally:
        inside.remove()


class _Gate(Controller):
    """Keeps the attention outputs of a run: per module, per context."""

    several = False

    def __init__(self, method: TGate) -> None:
        self._method = method
        self._gate_step = 1
        self._halves, self._merged = 1, False
        self._modules: list[nn.Module] = []
        self._kept: dict[nn.Module, dict[str, Tensor]] = {}
        self._step = 0
        self._context = ""
        self._passed = 0
        self._output: Tensor | None = None

    def install(self, overrides: Overrides, denoiser: nn.Module) -> None:
        for module, kind in attention_modules(denoiser):
            self._modules.append(module)
            overrides.replace_part(module, self._wrapper(kind))

    def begin(self, run: Run) -> None:
        self._kept.clear()
        self._output, self._merged = None, False
        self._gate_step = self._method.gate_step(run.T)

    def call(self, run: Run, context: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        gated = run.step >= self._gate_step
        if self._output is not None and gated:
            return self._output.clone()  # a pipeline may combine the branches in place
        self._step, self._context, self._passed = run.step, context, 0
        self._halves = branch_count(x, run.batch) if gated else 1
        if gated and not self._merged:
            self._merge()
        try:
            output = compute()
        finally:
            self._halves = 1
        if self._passed != len(self._modules):
            raise CacheConflict(
                "attention modules ran without passing by T-GATE; leave its `with` block, finish changing the denoiser "
                "(compile, offload), then apply it again"
            )
        self._output = output
        return output

    def end_step(self, run: Run, x_next: Tensor) -> None:
        self._output = None
        if run.step == run.T - 1:
            self._kept.clear()  # the decoder may need the room

    def one_branch(self, original: Callable[..., Any], denoiser: Any, *args: Any, **kwargs: Any) -> Any:
        """From the gate on, a call with the first half of a batch of both branches in place of both."""
        if (count := self._halves) == 1:
            return original(*args, **kwargs)
        x = latent_of(args, kwargs, denoiser)

        def half(value: Any) -> Any:
            whole = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(x)
            return value.chunk(count)[0] if whole else value

        result = original(*map(half, args), **{name: half(value) for name, value in kwargs.items()})
        output, form = read_output(result, half(x), denoiser)
        return form.wrap(torch.cat([output] * count), denoiser)

    def _merge(self) -> None:
        """At the gate: the mean over the branches in place of what each of them had."""
        for module, kept in self._kept.items():
            branches = [half for output in kept.values() for half in output.chunk(self._halves)]
            self._kept[module] = {self._context: torch.stack(branches).mean(0)} if branches else {}
        self._merged = True

    def _wrapper(self, kind: AttentionKind) -> Callable[..., Any]:
        reused = kind == "cross" or max(self._method.sp_interval, self._method.fi_interval) > 1

        def call(original: Callable[..., Tensor], module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
            self._passed += 1
            kept = self._kept.setdefault(module, {})
            if not self._method.computes(kind, self._step, self._gate_step):
                if self._context in kept:
                    return kept[self._context]
            output = original(*args, **kwargs)
            if reused:
                kept[self._context] = output.clone()  # a CUDA graph overwrites it in its next call
            return output

        return call
