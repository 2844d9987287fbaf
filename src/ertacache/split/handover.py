"""A run between two steps as one blob that another machine goes on from."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache.profile.checks import LARGEST_SIGMA
from ertacache.profile.sealed import short
from ertacache.split import wire
from ertacache.split.arguments import check_sent
from ertacache.split.solver_state import SolverState, memory_of

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Handover:
    """The state of a run after its first `step` steps.

    Made by `first_part`, used by `second_part`; `to_bytes` and `from_bytes` are the way over a wire or a file.

    Attributes:
        step: solver steps that were made. Heun's are two calls each, and count as two.
        calls: denoiser calls that they took.
        latent: [B, *] on the CPU, as the solver holds it: of FLUX packed tokens [B, N, C].
        timesteps: [S] all of the run. sigmas: [S + 1], of solvers that keep them. Sent, never computed again.
        solver: what the solver remembers.
        call: arguments that both sides must share: size, guidance, texts or the length of embeddings.
        embeddings: of texts, one for each sample: by argument of the pipeline, [B, *].
        generators: states [5056] uint8 of the CPU's generators, after the noise of these steps.
        listed: whether the call had a list of generators.
        space: what the second model must agree in: channels, widths of texts, factors of the autoencoder.
        source: pipeline, model, weights and releases of the first side.
    """

    step: int
    calls: int
    latent: Tensor
    timesteps: Tensor
    sigmas: Tensor | None
    solver: SolverState
    call: dict[str, Any]
    embeddings: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    generators: tuple[Tensor, ...] = ()
    listed: bool = False
    space: dict[str, Any] = field(default_factory=dict[str, Any])
    source: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return len(self.timesteps)

    @property
    def dtype(self) -> torch.dtype:
        """Of the latent."""
        return self.latent.dtype

    @property
    def packing(self) -> str:
        """`tokens` [B, N, C], as FLUX integrates them, or `grid` [B, C, *]."""
        return "tokens" if self.latent.ndim == 3 else "grid"

    def to(self, dtype: torch.dtype) -> Self:
        """The same with latent, solver state and embeddings in another dtype: smaller for the way, then back again.

        Raises:
            InvalidArgument: none of float32, float16 and bfloat16.
        """
        if dtype not in _DTYPES:
            raise InvalidArgument(f"dtype is {dtype}; hand over in float32, float16 or bfloat16")

        def moved(found: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: one.to(dtype) if one.dtype in _DTYPES and one.ndim else one for name, one in found.items()}

        solver = replace(self.solver, tensors=moved(self.solver.tensors))
        return replace(self, latent=self.latent.to(dtype), solver=solver, embeddings=moved(self.embeddings))

    def to_bytes(self) -> bytes:
        """One safetensors blob; see `docs/split.md` for the format. Equal handovers, equal bytes.

        Raises:
            InvalidArgument: it is over 256 MiB, or its texts over 1 MiB.
        """
        state = self.solver
        document = {
            "step": self.step, "calls": self.calls, "listed": self.listed, "protocol": wire.protocol(state.scheduler),
            "solver": {"scheduler": state.scheduler, "config": state.config, "counts": state.counts},
            "call": self.call, "source": self.source, "space": self.space,
        }  # fmt: skip
        tensors = {"latent": self.latent, "timesteps": self.timesteps}
        tensors |= {} if self.sigmas is None else {"sigmas": self.sigmas}
        tensors |= {f"state.{name}": tensor for name, tensor in state.tensors.items()}
        tensors |= {f"text.{name}": tensor for name, tensor in self.embeddings.items()}
        tensors |= {f"generator.{n}": tensor for n, tensor in enumerate(self.generators)}
        return wire.form().pack(document, tensors)

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "handover", *, cap: int = wire.SIZE_CAP) -> Self:
        """Read what a stranger may have written.

        Names, counts, dtypes and shapes are checked against what the solver of that name has after that step, before
        anything is allocated; nothing is unpickled or executed.

        Args:
            where: names the bytes in errors.
            cap: the most bytes to look at.

        Raises:
            HandoverInvalid: whatever is wrong, with field and remedy.
        """
        document, tensors = wire.unpacked(data, where, cap)
        solver = document["solver"]
        parts: dict[str, dict[str, Tensor]] = {"state": {}, "text": {}, "generator": {}}
        for name, tensor in tensors.items():
            kind, _, own = name.partition(".")
            if own:
                parts[kind][own] = tensor
        found = cls(
            step=document["step"], calls=document["calls"], listed=document["listed"], call=document["call"],
            space=document["space"], source=document["source"], latent=tensors["latent"],
            timesteps=tensors["timesteps"], sigmas=tensors.get("sigmas"), embeddings=parts["text"],
            solver=SolverState(solver["scheduler"], solver["config"], solver["counts"], parts["state"]),
            generators=tuple(parts["generator"][str(n)] for n in range(len(parts["generator"]))),
        )  # fmt: skip
        try:
            found.check()
        except InvalidArgument as error:
            raise wire.form(cap).invalid(where, "content", str(error)) from error
        return found

    def check(self) -> None:
        """Refuse values that no run leaves behind.

        Raises:
            InvalidArgument: naming the field.
        """
        row = memory_of(self.solver.scheduler)
        if row is None or not 1 <= self.step <= self.steps or (row.even and self.step % 2 and self.step < self.steps):
            raise InvalidArgument(
                f"step is {self.step} of {self.steps}, and a run of {self.solver.scheduler} is not cut there"
            )
        if not 0 <= self.calls < 2**31:
            raise InvalidArgument(f"calls is {short(self.calls)}, which no run makes")
        order = row.order_of(self.solver.config)
        bounds = {name: (low(self.step, order), high(self.step, order)) for name, low, high in row.counts}
        if self.solver.counts.keys() != bounds.keys():
            raise InvalidArgument(
                f"solver.counts holds {short(sorted(self.solver.counts))}, where {row.scheduler} has {sorted(bounds)}"
            )
        for name, (low, high) in bounds.items():
            value = self.solver.counts[name]
            if type(value) is not int or not low <= value <= high:
                raise InvalidArgument(
                    f"solver.counts.{name} is {short(value)} where {row.scheduler} has {low} to {high} after step "
                    f"{self.step}"
                )
        if self.sigmas is not None and not 0 <= float(self.sigmas.min()) <= float(self.sigmas.max()) <= LARGEST_SIGMA:
            raise InvalidArgument(f"sigmas reach out of 0 to {LARGEST_SIGMA:g}")
        check_sent(self.call)
        wire.check_generators(self.generators)
