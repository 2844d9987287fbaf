"""Coefficients that fit a latent, and those that a call's longer output has."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import ertacache.runtime.apply as ertacache
from cached import T, latents, profile, provenance
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument, ProfileMismatch
from ertacache.profile.profile import Profile, Rectifier
from profile_maker import facts, make

MASK = Schedule.from_mask("#.#.#")


def with_coefficients(site: Any, *shape: int, **changes: Any) -> Profile:
    """Residual reuse with coefficients of a shape."""
    targets = ("guided",) if site == "guided" else ("cond", "uncond")
    plain = Predictor.residual_reuse(MASK, targets)
    spread = (1,) * len(shape)
    tables = [
        table.reshape(*table.shape, *spread).expand(*table.shape, *shape).contiguous()
        for table in (plain.a, plain.d, plain.b)
    ]
    return make(site, predictor=Predictor(targets, targets, *tables), provenance=facts(**changes))


@pytest.mark.parametrize("shape", [(), (1, 1), (1, 3), (3,), (16, 1), (16, 3)])
@pytest.mark.parametrize("site", ["guided", "output"])
def test_what_broadcasts_against_the_latent_is_taken(site: str, shape: tuple[int, ...]) -> None:
    found = with_coefficients(site, *shape)
    assert Profile.from_bytes(found.to_bytes()).predictor.coef_shape == shape


@pytest.mark.parametrize("shape", [(1, 6), (20, 3), (20, 6)])
def test_what_a_call_returns_may_be_more_than_the_latent(shape: tuple[int, ...]) -> None:
    """A learned variance doubles the channels, reference tokens lengthen the sequence."""
    assert with_coefficients("output", *shape).predictor.coef_shape == shape


def test_channels_are_where_the_profile_says() -> None:
    """[C, F, H, W] with twice the channels at a call, but not twice the frames' height halved."""
    video: dict[str, Any] = {"latent_shape": (4, 3, 8, 8), "channel_axis": 1}
    assert with_coefficients("output", 8, 1, 1, 1, **video).predictor.coef_shape == (8, 1, 1, 1)
    with pytest.raises(ValueError, match=r"coefficients of shape \[6, 1, 1, 1\], which do not broadcast"):
        with_coefficients("output", 6, 1, 1, 1, **video)
    with pytest.raises(ValueError, match=r"coefficients of shape \[4, 1, 4, 1\], which do not broadcast"):
        with_coefficients("output", 4, 1, 4, 1, **video)


@pytest.mark.parametrize("site", ["output", "hidden"])
def test_a_call_that_returns_another_shape_is_refused_in_its_first_step(flux: Any, site: Any) -> None:
    kappa = torch.zeros(T, 1, 1, 32)  # twice the channels, which this model's calls do not have
    wanted = profile(flux, site, rectifier=Rectifier(kappa, kappa), provenance=provenance(flux))
    message = r"coefficients: the profile has them of shape \[1, 32\], call 'cond' returns \[64, 16\]; use the size"
    with pytest.raises(ProfileMismatch, match=message), ertacache.apply(flux, wanted) as stats:
        latents(flux)
    assert stats.runs == 0  # it made no step


def test_the_direction_is_a_source_at_site_guided_only() -> None:
    profile = make()
    kept = replace(profile, predictor=replace(profile.predictor, sources=("guided", "direction")))
    assert Profile.from_bytes(kept.to_bytes()) == kept and kept.predictor.sources == ("guided", "direction")
    for site in ("output", "hidden"):
        other = make(site)
        with pytest.raises(InvalidArgument, match=rf"no history of 'direction' is kept at site '{site}'"):
            replace(other, predictor=replace(other.predictor, sources=("cond", "direction")))
