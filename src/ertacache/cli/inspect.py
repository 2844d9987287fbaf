"""`ertacache inspect`: what a profile holds."""

from pathlib import Path
from typing import Annotated, Any

import typer


def inspect(
    profile: Annotated[str, typer.Argument(help="Profile file or Hub id.")],
    picture: Annotated[
        Path | None, typer.Option(help="Also draw schedule, grid, coefficients and figures to this PNG, SVG or PDF.")
    ] = None,
) -> dict[str, Any]:
    """Print what a profile holds and where it comes from."""
    from ertacache.files import check_output
    from ertacache.profile.profile import Profile
    from ertacache.profile.profile_summary import summary_facts

    if picture is not None:
        check_output(picture, "picture")
    loaded = Profile.load(profile)
    text = loaded.summary()
    if picture is not None:
        loaded.plot(picture)
        text += f"\ndrawn to {picture}"
    return {**summary_facts(loaded), "text": text}
