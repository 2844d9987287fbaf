"""The size of a rectifier with one coefficient per element: said before the first run, and kept to after it."""

import logging
import math
import warnings

import torch

from ertacache.calibration.first_steps import FirstSteps
from ertacache.calibration.solved import Solved
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.profile.profile import Activation, Rectifier, Site
from ertacache.profile.profile_file import SIZE_CAP

#: Of the file's size, what header, grids and the other tables may take.
_REST = 2**21
_ROOM = SIZE_CAP - _REST
_LOG = logging.getLogger(__name__)


def announce_price(seen: FirstSteps, site: Site, computed: int | None) -> int:
    """Say how many bytes an element-wise rectifier will take in the profile.

    Args:
        computed: number of computed steps; None where a threshold will decide, which may leave two.

    Returns:
        The bytes in the precision that it will be kept in.

    Raises:
        InvalidArgument: it is over the cap of the file format in half precision too.

    Warns:
        UserWarning: it is over the cap in float32 and will be kept in float16.
    """
    T, guided = seen.steps, site == "guided"
    targets, elements = (1, math.prod(seen.received)) if guided else (len(seen.outputs), seen.elements)
    steps = max(0, T - (2 if computed is None else computed))
    whole = 2 * 4 * steps * targets * elements
    what = (
        f"an element-wise rectifier takes {whole} bytes in float32 (κ and β of {elements} elements for {targets} "
        f"target(s) at {'up to ' * (computed is None)}{steps} predicted steps)"
    )
    if whole <= _ROOM:
        _LOG.info("%s", what)
        return whole
    if whole // 2 > _ROOM:
        least = T - _ROOM // (2 * 2 * targets * elements)
        enough = f"compute {least} of {T} steps or more, or " if least <= T - 1 else ""
        raise InvalidArgument(
            f"{what} and {whole // 2} in float16, where a profile has room for {_ROOM}; {enough}use rectifier='channel'"
        )
    warnings.warn(
        f"{what}, where a profile has room for {_ROOM}: it is kept in float16, {whole // 2} bytes, which rounds each "
        "coefficient by up to 0.05 %",
        stacklevel=3,
    )
    return whole // 2


def rectifier_tables(solved: Solved, schedule: Schedule, targets: tuple[str, ...], activation: Activation) -> Rectifier:
    """What a fit solved as tables [T, targets, *coef], zero at computed steps."""
    shape = next(iter(solved.affine.values())).kappa.shape
    kappa = torch.zeros(schedule.T, len(targets), *shape)
    beta = torch.zeros_like(kappa)
    for (i, target), affine in solved.affine.items():
        kappa[i, targets.index(target)] = affine.kappa
        beta[i, targets.index(target)] = affine.beta
    return Rectifier(kappa, beta, activation)


def with_room(rectifier: Rectifier, schedule: Schedule) -> Rectifier:
    """The rectifier as it is where a profile has room for it, otherwise in float16; see `announce_price`."""
    row = rectifier.kappa[0].nbytes + rectifier.beta[0].nbytes
    return rectifier if len(schedule.predicted_steps) * row <= _ROOM else rectifier.half()
