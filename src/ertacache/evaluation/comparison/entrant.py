"""Who takes part: a method with the cost it has to meet, and how it is kept in a file."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ertacache.baselines.baseline import Baseline, denoiser_class
from ertacache.errors import InvalidArgument
from ertacache.profile.profile import Profile


@dataclass(frozen=True)
class Entrant:
    """One line of the comparison.

    Attributes:
        id: unique in its comparison, such as "teacache@0.5".
        method: with the settings to start from.
        target: the cost to tune it to, as a share of the uncached run; None to take the settings as they are.
    """

    id: str
    method: Baseline
    target: float | None = None


@dataclass(frozen=True)
class Tuned:
    """An entrant that is ready to run, or the reason why it cannot.

    Attributes:
        cost: what it reached on calibration prompts; None where nothing was tuned.
    """

    entrant: Entrant
    method: Baseline
    cost: float | None = None
    refusal: str | None = None

    @property
    def id(self) -> str:
        return self.entrant.id


def entrants_at(methods: Sequence[Baseline], costs: Sequence[float]) -> list[Entrant]:
    """Every method at every cost.

    Raises:
        InvalidArgument: a cost outside of (0, 1), or one that comes twice.
    """
    for cost in costs:
        if not 0 < cost < 1:
            raise InvalidArgument(
                f"match_cost is {cost:g}; choose shares of the uncached run between 0 and 1, such as 0.5"
            )
    if len(set(costs)) < len(costs):
        raise InvalidArgument(f"match_cost is {', '.join(map(str, costs))}; give each share once")
    return [Entrant(f"{method.key}@{cost:g}", method, cost) for cost in costs for method in methods]


def published_entrants(methods: Sequence[Baseline], pipe: Any) -> list[Entrant]:
    """Every method at each of its published settings for this denoiser."""
    family = denoiser_class(pipe)
    return [
        Entrant(f"{method.key}:{name.replace(' ', '-')}", setting)
        for method in methods
        for name, setting in type(method).published().get(family, {}).items()
    ]


def to_json(tuned: Tuned, folder: Path) -> dict[str, Any]:
    """The facts of an entrant; a profile goes to a file of its own in `folder`/prepared."""
    method = tuned.method
    settings: dict[str, Any] = {}
    for field in dataclasses.fields(method):
        if not field.metadata.get("kept", True):
            continue
        value = getattr(method, field.name)
        if isinstance(value, Profile):
            path = folder / "prepared" / f"{tuned.id}.safetensors"
            value.save(path)
            value = {"file": f"prepared/{path.name}"}
        settings[field.name] = value
    return {
        "id": tuned.id,
        "method": method.key,
        "title": method.title,
        "paper": method.paper,
        "work": method.work,
        "batch": method.batch,
        "target": tuned.entrant.target,
        "tuned_cost": tuned.cost,
        "settings": settings,
        "refusal": tuned.refusal,
    }


def from_json(data: dict[str, Any], entrant: Entrant, folder: Path) -> Tuned:
    """The entrant as `to_json` kept it.

    Raises:
        InvalidArgument: it was kept for another method or cost.
    """
    if (data["method"], data["target"]) != (entrant.method.key, entrant.target):
        raise InvalidArgument(
            f"{folder} holds {data['method']} at cost {data['target']} under the name {data['id']!r}, not "
            f"{entrant.method.key} at {entrant.target}; choose another folder"
        )
    settings = {name: _value(value, folder) for name, value in data["settings"].items()}
    return Tuned(entrant, dataclasses.replace(entrant.method, **settings), data["tuned_cost"], data["refusal"])


def _value(value: Any, folder: Path) -> Any:
    if isinstance(value, dict) and "file" in value:
        return Profile.load(str(folder / value["file"]))
    if isinstance(value, list):
        return tuple(_value(item, folder) for item in value)
    return value
