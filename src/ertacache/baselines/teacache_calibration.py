"""TeaCache's polynomial fitted on one's own model, with the measurements that it came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from ertacache.baselines.baseline import Bench
from ertacache.baselines.teacache_signal import SignalController, distance
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.runtime.run import Run

DEGREE = 4
Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What TeaCache fits (arXiv 2411.19108, Fig. 2a): how far the output moves, from the signal.

    Column i − 1 of each array belongs to the change from step i − 1 to step i of the uncached run.

    Attributes:
        coefficients: of the polynomial, highest degree first; one for all contexts.
        distances: context -> [N, T-1] float64, relative L1 distance of the signal per prompt.
        truth: context -> [N, T-1] float64, relative L1 distance of the denoiser's output per prompt.
    """

    coefficients: tuple[float, ...]
    distances: Mapping[str, Tensor]
    truth: Mapping[str, Tensor]

    @property
    def predicted(self) -> dict[str, Tensor]:
        """Context -> [N, T-1] float64: what the polynomial makes of `distances`."""
        return {context: polynomial(self.coefficients, d) for context, d in self.distances.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists; `predicted` is for the reader."""
        tables = {"distances": self.distances, "truth": self.truth, "predicted": self.predicted}
        contexts = {
            context: {name: table[context].tolist() for name, table in tables.items()} for context in self.distances
        }
        return {"coefficients": list(self.coefficients), "contexts": contexts}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """What `to_json` wrote.

        Raises:
            InvalidArgument: a field is missing or has another form.
        """
        try:
            arrays = [
                {str(context): torch.tensor(t[name], dtype=torch.float64) for context, t in value["contexts"].items()}
                for name in ("distances", "truth")
            ]
            return cls(tuple(float(c) for c in value["coefficients"]), *arrays)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidArgument(f"this is no TeaCache calibration ({error}); calibrate again") from error


def polynomial(coefficients: tuple[float, ...], x: Number) -> Number:
    """Value at `x`, a number or a tensor, of the polynomial with these coefficients, highest degree first."""
    total = 0.0 * x
    for coefficient in coefficients:
        total = total * x + coefficient
    return total


def fit_polynomial(x: Tensor, y: Tensor) -> tuple[float, ...]:
    """Least-squares polynomial of degree 4 through points x, y [n], in float64.

    Fitted on x mapped to [-1, 1] and then converted: powers of distances near 0.01 alone would be worthless numbers.

    Returns:
        Five coefficients, highest degree first.

    Raises:
        CalibrationError: a value is not finite, or there are fewer than five different x.
    """
    if not (x.isfinite().all() and y.isfinite().all()):
        raise CalibrationError("the uncached run has a NaN or infinite distance; run the pipeline in a wider dtype")
    fitted, (_, rank, _, _) = Polynomial.fit(x.double().numpy(), y.double().numpy(), DEGREE, full=True)
    if rank <= DEGREE:
        raise CalibrationError(
            f"a polynomial of degree {DEGREE} needs {DEGREE + 1} different signal distances, and there are "
            f"{len(x.unique())}; calibrate with more steps"
        )
    found = [float(c) for c in fitted.convert().coef]
    return tuple(reversed(found + [0.0] * (DEGREE + 1 - len(found))))


def calibrate_teacache(bench: Bench, *, prompts: int = 8, ret_steps: bool = False) -> Calibration:
    """Run the first calibration prompts uncached, one by one, and fit the polynomial to all steps and contexts.

    Args:
        prompts: how many of the bench's calibration prompts.
        ret_steps: read the signal of that variant of the method.

    Raises:
        CalibrationError: too few steps, or distances that are not finite.
    """
    if bench.T < DEGREE + 2:
        raise CalibrationError(f"num_inference_steps is {bench.T}; TeaCache's fit needs at least {DEGREE + 2}")
    distances, truth = record_changes(bench, prompts, ret_steps=ret_steps)
    flat = (torch.cat([values.flatten() for values in side.values()]) for side in (distances, truth))
    return Calibration(fit_polynomial(*flat), distances, truth)


def record_changes(bench: Bench, prompts: int, *, ret_steps: bool = False) -> tuple[dict[str, Tensor], ...]:
    """`distances` and `truth` of a `Calibration`, from uncached runs of the bench's first prompts, one by one."""
    recorder = _Recorder(ret_steps)
    bench.record(recorder, prompts, hidden=True)
    distances, truth = (
        {context: torch.tensor([row[context] for row in rows], dtype=torch.float64) for context in rows[0]}
        for rows in (recorder.distances, recorder.truth)
    )
    return distances, truth


class _Recorder(SignalController):
    """Watches uncached runs: one dictionary per run, context -> distances of steps 1 to T-1."""

    def __init__(self, projection: bool) -> None:
        super().__init__(projection)
        self.distances: list[dict[str, list[float]]] = []
        self.truth: list[dict[str, list[float]]] = []

    def reset(self) -> None:
        super().reset()
        self._signals: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}

    def begin(self, run: Run) -> None:
        super().begin(run)
        self.distances.append({})
        self.truth.append({})

    def entered(self, run: Run, context: str, signal: Tensor) -> Tensor | None:
        _follow(self._signals, self.distances[-1], context, signal)
        return None

    def computed(self, context: str, residual: Tensor, output: Tensor) -> None:
        _follow(self._outputs, self.truth[-1], context, output)


def _follow(held: dict[str, Tensor], rows: dict[str, list[float]], context: str, new: Tensor) -> None:
    previous, held[context] = held.get(context), new.clone()
    row = rows.setdefault(context, [])
    if previous is not None:
        row.append(distance(new, previous))
