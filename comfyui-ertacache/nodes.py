"""The nodes; all that they do lies in the modules beside this one, which know ComfyUI's objects by what they have."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import comfyui_version
import folder_paths
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import ComfyExtension, io, ui
from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache.profile.profile import Profile

from .calibrating import SCHEDULES, Request, calibrate, calls_of
from .identity import check_made_here, identity_of
from .own_sampler import sampler_function
from .playing import KEY, Playing, check_unplayed
from .profile_files import existing, writable
from .profile_of import profile_of, report
from .recording import Answers, Watcher
from .samplers import sampler_name

CATEGORY = "ertacache"
_SEEDS = 2**64 - 1
_NAME = "A file of models/ertacache, with or without .safetensors."


def profiles_folder() -> Path:
    """Where profiles lie: models/ertacache of this ComfyUI."""
    return Path(folder_paths.models_dir) / "ertacache"


@dataclass(frozen=True)
class Sampling:
    """What the runs of a calibration have in common; `noise` and `latent` hold one entry for each seed."""

    model: Any
    positive: Any
    negative: Any
    cfg: float
    sampler: Any
    noise: Tensor
    latent: Tensor
    seed: int
    on_call: Callable[[], object]

    def run(self, answers: Answers, sigmas: Tensor, seeds: slice) -> None:
        """One sampling run over some of the seeds, answered by `answers`."""
        model, watcher = self.model.clone(), Watcher(answers, self.on_call)
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "ertacache-calibrate", watcher.sampler_sample)
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "ertacache-calibrate", watcher.predict_noise)
        comfy.sample.sample_custom(
            model,
            self.noise[seeds],
            self.cfg,
            self.sampler,
            sigmas,
            self.positive,
            self.negative,
            self.latent[seeds],
            disable_pbar=True,
            seed=self.seed,
        )


def noises(latent: Tensor, seed: int, count: int) -> Tensor:
    """The noise that a sampler node makes for each of `count` seeds, for one latent [1, *]: [count, *]."""
    return torch.cat([comfy.sample.prepare_noise(latent, (seed + n) & _SEEDS) for n in range(count)])


class Calibrate(io.ComfyNode):
    """Records runs over seeds and writes a profile."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ERTACacheCalibrate",
            display_name="ERTACache Calibrate",
            category=CATEGORY,
            description="Records uncached runs over several seeds, and fits a plan that computes fewer steps.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Sampler.Input("sampler", tooltip="The sampler you will use; one model call in each step."),
                io.Sigmas.Input("sigmas", tooltip="The whole grid you will use, down to 0."),
                io.Latent.Input("latent_image", tooltip="An empty latent of the size you will use."),
                io.String.Input("profile", default="profile", tooltip=_NAME + " An older one is replaced."),
                io.Float.Input("cfg", default=1.0, min=0.0, max=100.0, step=0.1, round=0.01),
                io.Int.Input("compute_steps", default=10, min=2, max=4095, tooltip="Steps that call the model."),
                io.Int.Input("seeds", default=6, min=2, max=256, tooltip="Runs that are recorded."),
                io.Int.Input("holdout", default=2, min=1, max=255, tooltip="Of these, only measured on."),
                io.Int.Input("first_seed", default=1, min=0, max=_SEEDS),
                io.Combo.Input("schedule", options=list(SCHEDULES), default="searched"),
                io.Int.Input("levels", default=3, min=1, max=8, tooltip="Computed outputs a prediction uses."),
                io.Float.Input("ridge", default=0.001, min=0.0, max=1.0, step=0.0001, round=False),
                io.Float.Input(
                    "grid_strength",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Above 0 the plan gets a time grid of its own, for ERTACache Sampler.",
                ),
            ],
            outputs=[io.String.Output("profile_name", display_name="profile"), io.String.Output("report")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        sampler: Any,
        sigmas: Tensor,
        latent_image: dict[str, Any],
        profile: str,
        cfg: float,
        compute_steps: int,
        seeds: int,
        holdout: int,
        first_seed: int,
        schedule: str,
        levels: int,
        ridge: float,
        grid_strength: float,
    ) -> io.NodeOutput:
        request = Request(compute_steps, seeds, holdout, schedule, levels, ridge, grid_strength)
        name = sampler_name(sampler)
        request.check(name, sigmas)
        check_unplayed(model)
        path, latent = writable(profiles_folder(), profile), one_latent(model, latent_image)
        progress = comfy.utils.ProgressBar(calls_of(request, name, len(sigmas) - 1))
        sampling = Sampling(
            model,
            positive,
            negative,
            cfg,
            sampler,
            noises(latent, first_seed, seeds),
            latent.repeat(seeds, *[1] * (latent.ndim - 1)),
            first_seed,
            lambda: progress.update(1),
        )
        found = calibrate(request, name, sigmas, sampling.run)
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        run = identity_of(guider, sampler)
        made = profile_of(found, request, run, sigmas, latent.shape, first_seed, comfyui_version.__version__)
        made.save(path)
        return io.NodeOutput(str(path.relative_to(profiles_folder())), report(made), ui=ui.PreviewText(report(made)))


def one_latent(model: Any, latent_image: dict[str, Any]) -> Tensor:
    """The first latent [1, *] of a LATENT, with the channels of the model.

    Raises:
        InvalidArgument: it has a mask, or is not empty.
    """
    samples = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"])
    if "noise_mask" in latent_image or getattr(samples, "is_nested", False) or bool(samples.any()):
        raise InvalidArgument(
            "latent_image holds a picture, a mask or several kinds of latents; calibrate on one empty latent"
        )
    return samples[:1]


class Apply(io.ComfyNode):
    """Puts a profile on a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ERTACacheApply",
            display_name="ERTACache Apply",
            category=CATEGORY,
            description="The model, with the predicted steps of a profile in place of model calls.",
            inputs=[
                io.Model.Input("model"),
                io.String.Input("profile", default="profile", tooltip=_NAME),
                io.Combo.Input(
                    "on_mismatch",
                    options=["refuse", "compute"],
                    default="refuse",
                    tooltip="What to do with a run that the profile does not suit: stop with the reason, or compute "
                    "every step and say why in the log.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, profile: str | None = None, **others: Any) -> str:
        return fingerprint(profile)

    @classmethod
    def execute(cls, model: Any, profile: str, on_mismatch: Any) -> io.NodeOutput:
        loaded = Profile.load(existing(profiles_folder(), profile))
        check_made_here(loaded)
        check_unplayed(model)
        model, playing = model.clone(), Playing(loaded, on_mismatch)
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, playing.outer_sample)
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, playing.predict_noise)
        return io.NodeOutput(model)


class ProfileInfo(io.ComfyNode):
    """Says what a profile computes, for what, and what was measured."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ERTACacheProfileInfo",
            display_name="ERTACache Profile info",
            category=CATEGORY,
            description="What a profile computes, for which model and grid, and what was measured.",
            is_output_node=True,
            inputs=[io.String.Input("profile", default="profile", tooltip=_NAME)],
            outputs=[io.String.Output("report")],
        )

    @classmethod
    def fingerprint_inputs(cls, profile: str | None = None) -> str:
        return fingerprint(profile)

    @classmethod
    def execute(cls, profile: str) -> io.NodeOutput:
        text = report(Profile.load(existing(profiles_folder(), profile)))
        return io.NodeOutput(text, ui=ui.PreviewText(text))


class Sampler(io.ComfyNode):
    """The sampler and the time grid of a profile."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ERTACacheSampler",
            display_name="ERTACache Sampler",
            category=CATEGORY,
            description="Euler on the profile's own time grid, its predicted steps without model calls.",
            inputs=[io.String.Input("profile", default="profile", tooltip=_NAME)],
            outputs=[io.Sampler.Output(), io.Sigmas.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, profile: str | None = None) -> str:
        return fingerprint(profile)

    @classmethod
    def execute(cls, profile: str) -> io.NodeOutput:
        loaded = Profile.load(existing(profiles_folder(), profile))
        return io.NodeOutput(comfy.samplers.KSAMPLER(sampler_function(loaded)), loaded.sigmas.clone())


def fingerprint(name: str | None) -> str:
    """Changes with the file's content, so that a profile that was made again is read again.

    A name that comes over a link is not known when ComfyUI asks, and then the link's own changes count.
    """
    return "" if name is None else hashlib.sha256(existing(profiles_folder(), name).read_bytes()).hexdigest()


class ERTACacheExtension(ComfyExtension):
    """What the pack adds."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Calibrate, Apply, ProfileInfo, Sampler]


async def comfy_entrypoint() -> ERTACacheExtension:
    return ERTACacheExtension()
