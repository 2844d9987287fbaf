"""What the plug-ins of the engines share: the profile on the loaded pipeline, and which releases were run.

An engine loads its plug-ins in every process; torch comes with the work, not with this module.
"""

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ertacache.profile.profile import Profile

logger = logging.getLogger(__name__)


def load(source: Any) -> "Profile":
    """The profile of a path or Hub id.

    Raises:
        InvalidArgument: there is nothing to load.
        ProfileInvalid: what is there is no sound profile.
    """
    from ertacache.profile.profile import Profile

    return Profile.load(source)


def attach(pipe: Any, profile: "Profile", source: Any) -> None:
    """Apply a profile to the pipeline that an engine has loaded; nothing is done where one is on already.

    Requests that do not suit the profile are computed without it, each cause logged once: an engine's users choose
    steps, sizes and guidance, and its own warm-up takes a step or two.

    Args:
        pipe: a diffusers pipeline, with its weights.
        source: where the profile came from, for the log.

    Raises:
        ProfileMismatch: the profile is of another model or solver.
        CacheConflict: another cache is on.
        UnsupportedPipeline: nothing can be predicted for this pipeline.
    """
    from ertacache.runtime.apply import enable
    from ertacache.runtime.hooks import attachment_of

    if attachment_of(pipe) is not None:
        return
    enable(pipe, profile, on_mismatch="compute")
    schedule = profile.schedule
    logger.info("%s on %s: %d of %d steps are computed", source, type(pipe).__name__, schedule.K, schedule.T)


def warn_of_release(distribution: str, run: str) -> None:
    """Log a warning where an engine is of another release than the one that its plug-in was run with."""
    found = release(distribution)
    if found != run:
        logger.warning(
            "%s is %s, and ertacache was run inside %s: if no line of the log says how many steps are computed, no "
            "profile is applied; then pip install %s==%s",
            *(distribution, found, run, distribution, run),
        )


def release(distribution: str) -> str:
    """The version of an installed distribution; "unknown" for one that runs from a folder of sources."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
