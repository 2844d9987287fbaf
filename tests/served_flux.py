"""tiny-flux behind a server, with two profiles of ten steps that were made without calibration."""

from dataclasses import replace
from typing import Any

import cached
from ertacache.pipelines.loading import load_pipeline
from ertacache.serving.ladder import Rung
from ertacache.serving.order import Limits
from ertacache.serving.service import Service

#: Five and three of ten steps.
MASKS = {"half": cached.MASK, "third": "#...#....#"}


def rungs(pipe: Any) -> tuple[Rung, ...]:
    """The cheapest first; one of them was judged."""
    made = {
        "half": cached.profile(pipe, "output", MASKS["half"]),
        "third": cached.fitted(pipe, "output", MASKS["third"]),
    }
    facts = replace(made["half"].provenance, heldout={"psnr": {"mean": 31.5}})
    half = replace(made["half"], provenance=facts)
    return Rung("third", made["third"]), Rung("half", half), Rung("none")


def service(pipe: Any = None, **changes: Any) -> Service:
    """Of tiny-flux, loaded where it is not given."""
    pipe = load_pipeline("tiny-flux") if pipe is None else pipe
    own = {"limits": Limits(pixels=128 * 128, steps=50, characters=200, images=3, queue=6), **changes}
    return Service("tiny-flux", [pipe], rungs(pipe), **own)
