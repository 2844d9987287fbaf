"""One pipeline behind Ray Serve, with the profile of the budget that a request names.

serve run examples.ray_serve:app model=black-forest-labs/FLUX.1-dev profiles=half.safetensors,third.safetensors

A request is a JSON object: `prompt`, and where wanted `seed`, `budget` (the share of the steps to compute, 1 for all of
them) and arguments of the pipeline call. The answer is a PNG; its headers say what was computed. On a CPU:
`model=tiny-flux num_gpus=0`. Replicas are GPUs: `replicas=8`.
"""

import io
import json
from contextlib import nullcontext
from typing import Any

import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

import ertacache
from ertacache.pipelines.loading import call_arguments, load_pipeline


class Pictures:
    """A pipeline and its profiles, the cheapest first; one request at a time."""

    def __init__(self, model: str, profiles: list[str], device: str | None) -> None:
        self._pipe, self._model = load_pipeline(model, device), model
        loaded = [ertacache.Profile.load(path) for path in profiles]
        self._profiles = sorted(loaded, key=lambda one: one.schedule.K / one.schedule.T)

    async def __call__(self, request: Request) -> Response:
        order = json.loads(await request.body())
        if not isinstance(order.get("prompt"), str):
            return Response("prompt is missing; give a text", status_code=400)
        prompt, seed, budget = order.pop("prompt"), order.pop("seed", 0), order.pop("budget", 1.0)
        try:
            return self._answer(prompt, seed, budget, call_arguments(self._model, order))
        except (ertacache.ErtacacheError, TypeError, ValueError) as error:
            return Response(str(error), status_code=400)

    def _answer(self, prompt: str, seed: int, budget: float, call: dict[str, Any]) -> Response:
        profile = self._profile(budget)
        on = nullcontext() if profile is None else ertacache.apply(self._pipe, profile, on_mismatch="compute")
        with on as stats:
            generator = torch.Generator("cpu").manual_seed(seed)
            image = self._pipe(prompt=prompt, generator=generator, **call).images[0]
        file = io.BytesIO()
        image.save(file, "PNG")
        facts = {} if stats is None else {"x-predicted": str(stats.predicted.total()), "x-reason": stats.reason or ""}
        computed = "all" if stats is None else str(stats.computed.total())
        return Response(file.getvalue(), media_type="image/png", headers={"x-computed": computed, **facts})

    def _profile(self, budget: float) -> ertacache.Profile | None:
        """The dearest within the budget, else the cheapest; none where everything may be computed."""
        if budget >= 1 or not self._profiles:
            return None
        within = [one for one in self._profiles if one.schedule.K / one.schedule.T <= budget]
        return within[-1] if within else self._profiles[0]


def app(arguments: dict[str, str]) -> serve.Application:
    """What `serve run` starts: model, profiles separated by commas, num_gpus of each replica, replicas."""
    gpus = float(arguments.get("num_gpus", "1"))
    deployment = serve.deployment(
        Pictures,
        num_replicas=int(arguments.get("replicas", "1")),
        max_ongoing_requests=1,  # a profile is on the pipeline, and the next request may name another
        ray_actor_options={"num_gpus": gpus},
    )
    profiles = [path for path in arguments.get("profiles", "").split(",") if path]
    return deployment.bind(arguments["model"], profiles, None if gpus else "cpu")
