"""Profiles whose parts do not fit together, as files with a sound checksum and as objects in memory."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.profile.profile import Profile, Provenance, Rectifier
from hostile_identities import IDENTITIES
from profile_maker import FACTS, make, parts_of, sealed

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One change to a sound profile, and what the refusal must say.

    Attributes:
        document: of targets, sources and site.
        tables: by tensor name, on tables with a row for every step.
    """

    message: str
    site: str = "guided"
    activation: str | None = None
    document: dict[str, Any] = field(default_factory=dict[str, Any])
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    tables: dict[str, Edit] = field(default_factory=dict[str, Edit])

    def _parts(self) -> tuple[Profile, dict[str, Any], dict[str, Tensor]]:
        sound = make(self.site, self.activation)
        document = {"targets": list(sound.predictor.targets), "sources": list(sound.predictor.sources)}
        tables = {f"predictor.{name}": getattr(sound.predictor, name) for name in "abd"}
        if sound.rectifier is not None:
            tables |= {"rectifier.beta": sound.rectifier.beta, "rectifier.kappa": sound.rectifier.kappa}
        for name, edit in self.tables.items():
            tables[name] = edit(tables[name].clone())
        return sound, {"site": self.site, **document, **self.document}, tables

    def in_memory(self) -> Profile:
        """Raises InvalidArgument."""
        sound, document, tables = self._parts()
        rectifier: Any = (tables["rectifier.kappa"], tables["rectifier.beta"]) if self.activation else None
        return Profile(
            schedule=sound.schedule,
            site=document["site"],
            predictor=Predictor(
                tuple(document["targets"]),
                tuple(document["sources"]),
                *(tables[f"predictor.{name}"] for name in "adb"),
            ),
            base_sigmas=sound.base_sigmas,
            sigmas=sound.sigmas,
            rectifier=Rectifier(*rectifier, self.activation) if rectifier else None,  # type: ignore[arg-type]
            provenance=Provenance(**{**FACTS, **self.facts}),
        )

    def in_file(self) -> bytes:
        """The same with a sound checksum."""
        sound, changed, tables = self._parts()
        header, document, _ = parts_of(sound.to_bytes())
        document = {**document, **changed, "provenance": {**document["provenance"], **self.facts}}
        tensors = {name: table[[1, 3]].clone() for name, table in tables.items()}
        tensors |= {"base_sigmas": sound.base_sigmas, "sigmas": sound.sigmas}
        header, _, blob = parts_of(save_tensors(tensors, {"ertacache": json.dumps(document)}))
        return sealed(header, blob)


def coefficients(*shape: int) -> dict[str, Edit]:
    """All three tables of the predictor with coefficients of one shape."""
    rows = Schedule.from_mask("#.#.#")

    def widened(table: Tensor, lead: int) -> Tensor:
        made = torch.ones(*table.shape[:lead], *shape)
        made[list(rows.computed_steps)] = 0
        if lead == 4:
            made[1, :, :, 1] = 0
        return made

    return {
        "predictor.a": lambda table: widened(table, 4),
        "predictor.b": lambda table: widened(table, 2),
        "predictor.d": lambda table: widened(table, 2),
    }


def rectifiers(*shape: int) -> dict[str, Edit]:
    def widened(table: Tensor) -> Tensor:
        made = torch.ones(*table.shape[:2], *shape)
        made[[0, 2, 4]] = 0
        return made

    return {"rectifier.kappa": widened, "rectifier.beta": widened}


def holding(value: float) -> Edit:
    def edit(table: Tensor) -> Tensor:
        table[3].view(-1)[-1] = value
        return table

    return edit


def emptied(table: Tensor) -> Tensor:
    table[3] = 0
    return table


def told(**method: str) -> dict[str, Any]:
    return {"method": {**FACTS["method"], **method}}


def swapped(before: str, after: str) -> Case:
    """Another site in the document of a profile whose provenance still tells of the first."""
    message = "targets are" if "guided" in (before, after) else f"site is '{after}' and provenance.method.site is"
    tables: dict[str, Edit] = {}
    if after == "hidden" and before == "output":  # plain reuse, whose numbers would do at either site
        tables = coefficients() | {"predictor.d": lambda d: torch.zeros(d.shape[:2])}
    return Case(message, before, document={"site": after}, facts=told(site=before), tables=tables)


BEYOND = r"holds 1e\+30 at step 3, beyond ±10000, where rounding drowns a prediction; fit it again with"
SHAPE = r"coefficients of shape \[{}\], which do not broadcast against provenance.latent_shape \[16, 3\] with channels"

INCONSISTENT: dict[str, Case] = {
    "channel axis out of the latent": Case(
        r"channel_axis is 99 where provenance.latent_shape has 2 axes; count .* choose 1 to 2, or -1 to -2",
        facts={"channel_axis": 99},
    ),
    "channel axis before the latent": Case(r"channel_axis is -3 where", facts={"channel_axis": -3}),
    "channel axis of the batch": Case(r"channel_axis is 0 where", facts={"channel_axis": 0}),
    "latent without axes": Case(r"latent_shape is \[\]; give the sizes", facts={"latent_shape": ()}),
    "coefficients unlike the latent": Case("predictor has " + SHAPE.format("5"), tables=coefficients(5)),
    "coefficients unlike an output": Case("predictor has " + SHAPE.format("5"), "output", tables=coefficients(5)),
    "coefficients longer than the latent": Case(SHAPE.format("32, 3"), tables=coefficients(32, 3)),
    "coefficients shorter than an output": Case(SHAPE.format("8, 3"), "output", tables=coefficients(8, 3)),
    "coefficients of more axes than the latent": Case(SHAPE.format("1, 1, 3"), tables=coefficients(1, 1, 3)),
    "rectifier unlike the latent": Case(
        "rectifier has " + SHAPE.format("5"), activation="linear", tables=rectifiers(5)
    ),
    "rectifier unlike an output": Case(
        "rectifier has " + SHAPE.format("1, 4"), "hidden", "linear", tables=rectifiers(1, 4)
    ),
    "coefficients by channel at site hidden": Case(
        r"predictor has coefficients of shape \[1, 3\] at site 'hidden', whose residuals have no channels",
        "hidden",
        tables=coefficients(1, 3) | {"predictor.d": lambda d: torch.zeros(*d.shape[:2], 1, 3)},
    ),
    "sources renamed": Case(
        r"sources are \['cond', 'uncnod'\], and no history of 'uncnod' is kept at site 'guided'; name cond, direct",
        document={"sources": ["cond", "uncnod"]},
    ),
    "sources of another site": Case(
        r"no history of 'guided' is kept at site 'output'; name cond, uncond",
        "output",
        document={"sources": ["cond", "guided"]},
    ),
    "sources of a batch with a gap": Case(
        r"sources are \['cond:0', 'cond:2'\]; name the parts of the batch 'cond' in full, 'cond:0' to the last",
        document={"sources": ["cond:0", "cond:2"]},
    ),
    "sources of a batch beside it": Case(
        r"sources are \['cond', 'cond:0'\]; name the parts of the batch",
        document={"sources": ["cond", "cond:0"]},
    ),
    "calls named as the direction": Case(
        r"provenance.contexts has a call 'direction', which is also the name of a history at site 'guided'",
        document={"sources": ["cond", "guided"]},
        facts={"contexts": ("cond", "direction")},
    ),
    "calls named as what is guided": Case(
        r"provenance.contexts has a call 'guided', which is also the name of a history at site 'guided'",
        facts={"contexts": ("cond", "guided")},
    ),
    "targets renamed": Case(
        r"targets are \['gided'\] where site 'guided' and the calls \['cond', 'uncond'\] .* predict \['guided'\]",
        document={"targets": ["gided"]},
    ),
    "targets renamed at site output": Case(
        r"targets are \['cond', 'unkond'\] where site 'output'", "output", document={"targets": ["cond", "unkond"]}
    ),
    "calls renamed": Case(
        r"targets are \['cond', 'uncond'\] where site 'output' and the calls \['a', 'b'\]",
        "output",
        facts={"contexts": ("a", "b")},
    ),
    "calls none": Case(r"provenance.contexts is \[\]; name each call", facts={"contexts": ()}),
    "calls twice": Case(r"provenance.contexts is \['cond', 'cond'\]; name", facts={"contexts": ("cond", "cond")}),
    "calls without a name": Case(r"provenance.contexts is \['cond', ''\]; name", facts={"contexts": ("cond", "")}),
    "guidance of three calls": Case(
        r"guidance weights \(7.0,\) and the 3 calls \['cond', 'uncond', 'skip'\]; write None",
        facts={"contexts": ("cond", "uncond", "skip")},
    ),
    **{name: Case(message, facts=facts) for name, (message, facts) in IDENTITIES.items()},
    "guided as output": swapped("guided", "output"),
    "guided as hidden": swapped("guided", "hidden"),
    "output as guided": swapped("output", "guided"),
    "output as hidden": swapped("output", "hidden"),
    "hidden as guided": swapped("hidden", "guided"),
    "hidden as output": swapped("hidden", "output"),
    "schedule of another calibration": Case(
        r"schedule is '#.#.#' and provenance.method.schedule is '#.##.'; calibrate for the schedule you want",
        facts=told(schedule="#.##."),
    ),
    "steps of another calibration": Case(
        r"provenance.num_inference_steps is 6 and the schedule '#.#.#' has 5 steps; calibrate for the step count",
        facts={"num_inference_steps": 6},
    ),
    "steps none": Case(r"num_inference_steps is 0; it must be 1 or more", facts={"num_inference_steps": 0}),
    "prompts below none": Case(r"prompt_count is -1; it must be 0 or more", facts={"prompt_count": -1}),
    "held-out prompts below none": Case(r"holdout_count is -1; it must be 0 or more", facts={"holdout_count": -1}),
    "huge weight of the past": Case("a " + BEYOND, tables={"predictor.a": holding(1e30)}),
    "huge weight of the latent": Case("d " + BEYOND, tables={"predictor.d": holding(1e30)}),
    "huge constant": Case("b " + BEYOND, tables={"predictor.b": holding(1e30)}),
    "just over the cap": Case(r"b holds -1e\+04 at step 3, beyond", tables={"predictor.b": holding(-10001)}),
    "huge slope": Case("rectifier.kappa " + BEYOND, activation="linear", tables={"rectifier.kappa": holding(1e30)}),
    "huge offset": Case("rectifier.beta " + BEYOND, "hidden", "sigmoid", tables={"rectifier.beta": holding(1e30)}),
    "predicted from nothing": Case(
        r"predictor.a, d and b are 0 for 'guided' at step 3, which is predicted; compute that step",
        tables={f"predictor.{name}": emptied for name in "abd"},
    ),
}
