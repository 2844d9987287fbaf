"""Curves in a space of many dimensions, seen in the plane in which they spread most."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ertacache.core.run_gram import inner_products


def principal_plane(curves: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """All points of several curves in the plane of their common first two principal components.

    From the inner products of the points, so that memory does not grow with the dimension. Signs are such that the
    first curve ends to the right of its beginning, and above it.

    Args:
        curves: each [n, *], of one shape but for n.

    Returns:
        For each curve [n, 2] float64 in the unit of the points, with their common mean at the origin; and the shares
        [2] of their variance along both axes.
    """
    gram = inner_products([curve.flatten(1) for curve in curves])
    centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    # Its eigenvectors are the left singular vectors of the centred points, its eigenvalues their squared values.
    values, vectors = torch.linalg.eigh(centred)
    values = values.clamp_min(0)
    places = vectors[:, [-1, -2]] * values[[-1, -2]].sqrt()
    first = len(curves[0])
    places = torch.where(places[first - 1] < places[0], -places, places)
    shares = values[[-1, -2]] / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    ends = accumulate(map(len, curves))
    return [places[end - len(curve) : end] for curve, end in zip(curves, ends, strict=True)], shares
