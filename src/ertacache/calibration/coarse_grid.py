"""The solver's own grid of K steps as a plan of T: what it would compute is computed, and the rest is filled in."""

import torch
from torch import Tensor

from ertacache.calibration.begun import begun
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.held_out import shorter_call
from ertacache.core.schedule import Schedule
from ertacache.errors import UnsupportedPipeline
from ertacache.pipelines.solvers import check_free_grid


def coarse_grid(calibrator: Calibrator, K: int) -> tuple[Schedule, tuple[float, ...]]:
    """A schedule of K computed steps and the grid [T+1] on which these stand where the solver puts K steps.

    Predicted steps are spread evenly over its intervals and evenly spaced within each. The pipeline is called with
    one prompt and broken off before its denoiser runs.

    Raises:
        UnsupportedPipeline: the solver follows no other grid, another denoiser takes over on the way, or the pipeline
            makes no such run.
    """
    check_free_grid(calibrator.pipe.scheduler)
    if calibrator.reference.boundaries:
        raise UnsupportedPipeline("two denoisers share the steps by their sigmas; keep the grid")
    call = shorter_call(calibrator, K)

    def run() -> list[float]:
        try:
            return begun(calibrator.pipe, calibrator.parts.fitted.first(1), call)[0].tolist()
        except (IndexError, TypeError, ValueError) as error:  # what pipelines answer to an argument
            raise UnsupportedPipeline(f"the call with num_inference_steps={K} failed: {error}") from error

    nodes = calibrator.store.get(f"grid of {K} steps", run)
    if len(nodes) != K + 1:
        raise UnsupportedPipeline(f"num_inference_steps={K} made {max(0, len(nodes) - 1)} steps")
    return spread(nodes, calibrator.reference.sigmas)


def spread(nodes: list[float], sigmas: Tensor) -> tuple[Schedule, tuple[float, ...]]:
    """Between K+1 nodes, the last being the end, as many steps as the recorded run has; the nodes are computed.

    Args:
        sigmas: [T+1] of that run, in whose range the nodes must lie.

    Raises:
        UnsupportedPipeline: more nodes than steps, or one outside.
    """
    T, K = len(sigmas) - 1, len(nodes) - 1
    low, high = float(sigmas.min()), float(sigmas.max())
    slack = 1e-4 * (high - low)
    if not 1 <= K <= T or not all(low - slack <= node <= high + slack for node in nodes):
        raise UnsupportedPipeline(f"{K} nodes from {nodes[0]:g} to {nodes[-1]:g} lie not within the run of {T} steps")
    steps = [j * T // K for j in range(K + 1)]
    rows = zip(nodes, nodes[1:], steps, steps[1:], strict=False)
    grid = [torch.linspace(start, end, last - first + 1).double()[:-1] for start, end, first, last in rows]
    return Schedule.from_steps(T, steps[:-1]), (*torch.cat(grid).tolist(), nodes[-1])
