"""Curves in their principal plane, against curves that were laid into a plane by hand."""

import torch

from ertacache.evaluation.reproduce.principal_plane import principal_plane


def test_curves_of_a_plane_are_recovered_exactly():
    """Their spread is 3 along one axis and 1 along the other, and the axes are not correlated."""
    flat = torch.tensor([[[-3.0, -1.0], [3.0, 1.0]], [[-3.0, 1.0], [3.0, -1.0]]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(60, 2, dtype=torch.float64, generator=generator))[0].T
    for signs in ((1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)):
        laid = flat @ (torch.tensor(signs)[:, None] * plane) + 5 * torch.randn(60, dtype=torch.float64)
        found, shares = principal_plane([curve.reshape(2, 3, 4, 5) for curve in laid])
        # The first curve ends right of its beginning and above it, whatever the signs of the axes.
        torch.testing.assert_close(torch.stack(found), flat, rtol=0, atol=1e-12)
        torch.testing.assert_close(shares, torch.tensor([0.9, 0.1], dtype=torch.float64), rtol=0, atol=1e-12)


def test_distances_are_kept_by_curves_of_different_lengths():
    generator = torch.Generator().manual_seed(1)
    flat = [torch.randn(n, 2, dtype=torch.float64, generator=generator) for n in (7, 4)]
    plane = torch.linalg.qr(torch.randn(30, 2, dtype=torch.float64, generator=generator))[0].T
    found, shares = principal_plane([curve @ plane for curve in flat])
    assert [len(curve) for curve in found] == [7, 4]
    torch.testing.assert_close(
        torch.cdist(torch.cat(found), torch.cat(found)), torch.cdist(torch.cat(flat), torch.cat(flat))
    )
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert float(torch.cat(found).mean(0).abs().max()) < 1e-12


def test_points_that_are_all_the_same_have_no_spread():
    found, shares = principal_plane([torch.ones(3, 8), torch.ones(3, 8)])
    assert torch.equal(torch.cat(found), torch.zeros(6, 2, dtype=torch.float64)) and shares.tolist() == [0, 0]
