"""A profile on and off a pipeline: `apply`, `enable` and `disable`."""

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ertacache.core.offload import Offload
from ertacache.errors import InvalidArgument
from ertacache.profile.profile import Profile
from ertacache.runtime.even_run import EvenPlayer
from ertacache.runtime.hooks import Attachment, attachment_of
from ertacache.runtime.identity import check_pipeline, warn_of_weights
from ertacache.runtime.plain_run import OnMismatch
from ertacache.runtime.player import Player
from ertacache.runtime.run_stats import RunStats
from ertacache.runtime.small_model import SmallModel

#: A profile, or the file, folder or Hub id that `Profile.load` reads one from.
ProfileSource = Profile | str | os.PathLike[str]


def enable(
    pipe: Any,
    profile: ProfileSource | None = None,
    *,
    speedup: float | None = None,
    offload_history: Offload = None,
    retarget: bool = False,
    on_mismatch: OnMismatch = "refuse",
    predictor: Any = None,
) -> RunStats:
    """Apply a profile to a pipeline until `disable`.

    Only the denoiser calls of the pipeline's own runs are predicted; whoever else calls the denoiser (a callback,
    another pipeline, a loop of one's own) has it computed. Requests that share the denoiser, each with a copy of the
    pipeline and a deep copy of its scheduler, may be under way at once, in threads or in turns.

    Args:
        pipe: a diffusers pipeline; nothing but its scheduler and denoiser instances is touched.
        profile: from `calibrate` or `Profile.load`, or the path or Hub id to load it from.
        speedup: instead of a profile: compute T / speedup steps, evenly spaced, and predict the others. Nothing was
            measured then, as `stats.advice` says; see `docs/uncalibrated.md`.
        offload_history: "cpu" keeps histories in the host's memory (pinned, for a CUDA device) and brings them back on
            predicted steps; None keeps them on the device.
        retarget: in calls with another number of steps than the calibration's, run what `retarget.retargeted` makes of
            the profile, with a warning that says what this cost where it was measured.
        on_mismatch: "refuse" raises ProfileMismatch in a call that the profile does not belong to; "compute" runs
            that call, or the rest of it, without the profile, logs each cause once and leaves it in `stats.reason`.
        predictor: the small model, a pipeline or its denoiser, of a profile that was calibrated with one; on the same
            device as the pipeline's.

    Returns:
        Counters that follow the runs.

    Raises:
        InvalidArgument: another `offload_history` or `on_mismatch`, nothing to load, no speed-up above 1, not one of
            `profile` and `speedup`, or a `predictor` that is no model, or without a profile.
        ProfileInvalid: what was loaded is no sound profile.
        ProfileMismatch: the pipeline, or the predictor, is not the one that the profile was made for. Step count,
            guidance, call names and channels show only in a call, which then raises the same.
        SplitMismatch: the predictor has other latents or texts than the pipeline.
        CacheConflict: a profile or another cache is on already.
        UnsupportedPipeline: nothing can be predicted for this pipeline.
    """
    return _attach(pipe, profile, speedup, offload_history, retarget, on_mismatch, predictor)[1]


def _attach(
    pipe: Any,
    source: ProfileSource | None,
    speedup: float | None,
    offload_history: Offload,
    retarget: bool,
    on_mismatch: OnMismatch,
    predictor: Any,
) -> tuple[Attachment, RunStats]:
    stats = RunStats()
    if (source is None) == (speedup is None):
        given = "neither" if source is None else "both"
        raise InvalidArgument(f"{given} of profile and speedup is given; pass a profile, or speedup=2.0 to do without")
    if speedup is not None:
        if predictor is not None:
            raise InvalidArgument("predictor serves a profile that was calibrated with it; give that, and no speedup")
        return Attachment(pipe, EvenPlayer(speedup, stats, offload_history, on_mismatch), hidden=False), stats
    profile = read_profile(source)
    check_pipeline(profile, pipe)
    warn_of_weights(profile, pipe)
    small = None if predictor is None else SmallModel(pipe, predictor)
    player = Player(profile, stats, offload_history, retarget=retarget, on_mismatch=on_mismatch, small=small)
    return Attachment(pipe, player, hidden=profile.site == "hidden"), stats


def read_profile(source: Any) -> Profile:
    """The profile itself, or the one at a path or Hub id.

    Raises:
        InvalidArgument: something else, or nothing to load. ProfileInvalid: what was loaded is no sound profile.
    """
    profile = Profile.load(source) if isinstance(source, str | os.PathLike) else source
    if not isinstance(profile, Profile):
        raise InvalidArgument(f"profile is a {type(profile).__name__}; pass a Profile, or the path or Hub id of one")
    return profile


def disable(pipe: Any) -> None:
    """Take the profile off: the pipeline is bit for bit what it was.

    In the middle of a pipeline call (a callback, another thread) it stays on until that run has ended.

    Warns:
        UserWarning: no profile is applied, so that nothing is done.
    """
    attachment = attachment_of(pipe)
    if attachment is None:
        warnings.warn(f"no profile is applied to this {type(pipe).__name__}; nothing to disable", stacklevel=2)
        return
    attachment.detach()


@contextmanager
def apply(
    pipe: Any,
    profile: ProfileSource | None = None,
    *,
    speedup: float | None = None,
    offload_history: Offload = None,
    retarget: bool = False,
    on_mismatch: OnMismatch = "refuse",
    predictor: Any = None,
) -> Generator[RunStats]:
    """`enable` for the length of a `with` block, `disable` at its end, also when it raises."""
    attachment, stats = _attach(pipe, profile, speedup, offload_history, retarget, on_mismatch, predictor)
    try:
        yield stats
    finally:
        # Ours, whatever the pipeline has by now; nothing to do if `disable` was called inside the block.
        if attachment.active:
            attachment.detach()
