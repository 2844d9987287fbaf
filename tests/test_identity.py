"""What a profile is tied to: classes and what the configurations set. Each drift has its text."""

import importlib.metadata
import inspect
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FluxTransformer2DModel
from diffusers.configuration_utils import register_to_config

import ertacache.runtime.apply as ertacache
from cached import profile, provenance
from dummy_pipeline import mixture_pipeline
from ertacache.errors import ProfileMismatch
from ertacache.profile.fingerprint import config_hash
from ertacache.profile.profile import Profile
from ertacache.runtime.identity import check_pipeline, identity_of

EXPECTED = {
    "model_class": "FluxTransformer2DModel",
    "model_config": {
        "in_channels": 16, "num_layers": 2, "num_single_layers": 4, "attention_head_dim": 32, "num_attention_heads": 4,
        "joint_attention_dim": 96, "pooled_projection_dim": 64, "guidance_embeds": True, "axes_dims_rope": [4, 14, 14],
    },
    "scheduler_class": "FlowMatchEulerDiscreteScheduler",
    "scheduler_config": {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64},
}  # fmt: skip
NOW = importlib.metadata.version("diffusers")


def of_version(pipe: Any, version: str = "0.41.0", **changes: Any) -> Profile:
    facts = provenance(pipe, versions={"diffusers": version}, **changes)
    return replace(profile(pipe, "output"), provenance=facts)


def refusal(pipe: Any, wanted: Profile) -> str:
    """Of `enable`, which leaves nothing on the pipeline."""
    with pytest.raises(ProfileMismatch) as error:
        ertacache.enable(pipe, wanted)
    assert "step" not in vars(pipe.scheduler)
    return str(error.value)


def next_release(base: Any, **added: Any) -> Any:
    """The class as the next release may have it: with more arguments, given here with their defaults."""
    signature = inspect.signature(base.__init__)
    new = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value) for key, value in added.items()]

    def __init__(self: Any, **given: Any) -> None:
        base.__init__(self, **{key: value for key, value in given.items() if key not in added})
        self.register_to_config(**{key: given.get(key, value) for key, value in added.items()})

    vars(__init__)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), *new])
    return type(base.__name__, (base,), {"__init__": __init__})


NewerTransformer = next_release(FluxTransformer2DModel, gate=False, theta_scale=1.0)
NewerScheduler = next_release(FlowMatchEulerDiscreteScheduler, order=1, sigma_max=None)


def newer(pipe: Any, scheduler: Any = (), **settings: Any) -> Any:
    """The pipeline as the next release loads it, with these of its new keys set."""
    weights = pipe.transformer.state_dict()
    pipe.transformer = NewerTransformer.from_config(pipe.transformer.config, **settings)
    pipe.transformer.load_state_dict(weights)
    pipe.scheduler = NewerScheduler.from_config(pipe.scheduler.config, **dict(scheduler))
    return pipe


def test_what_is_kept_differs_from_the_defaults(flux: Any) -> None:
    kept = identity_of(flux)
    assert kept == EXPECTED
    assert json.loads(json.dumps(kept)) == kept


# -- drift that changes nothing ------------------------------------------------------------------------------


def test_a_newer_release_adds_keys_with_defaults(flux: Any) -> None:
    wanted = of_version(flux)
    check_pipeline(wanted, newer(flux))


def test_an_older_release_lacks_keys_with_defaults(flux: Any) -> None:
    new = newer(flux)
    assert new.transformer.config["gate"] is False and new.scheduler.config["order"] == 1
    wanted = of_version(new, "0.99.0")
    flux.transformer = FluxTransformer2DModel.from_config(new.transformer.config)
    flux.scheduler = FlowMatchEulerDiscreteScheduler.from_config(new.scheduler.config)
    check_pipeline(wanted, flux)


def test_a_set_key_may_become_the_default(flux: Any) -> None:
    """The profile has it, the class now makes it so by itself."""
    wanted = of_version(flux)
    facts = replace(
        wanted.provenance, scheduler_config={**wanted.provenance.scheduler_config, "num_train_timesteps": 1000}
    )
    check_pipeline(replace(wanted, provenance=facts), flux)


@pytest.mark.parametrize(
    "left",
    [
        {"quantization_config": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16}},
        {"quantization_config": object()},
        {"_name_or_path": "/models/flux", "_diffusers_version": "9.9", "_use_default_values": ["patch_size"]},
        {"torch_dtype": torch.bfloat16, "dtype": "bfloat16"},
        {"encoder_hid_dim_type": "ip_image_proj"},
        {"decay": 0.999, "optimization_step": 100_000, "update_after_step": 0},  # of an averaging trainer
        {"of_a_later_release": False},
    ],
)
def test_what_loaders_leave_is_no_other_model(flux: Any, left: dict[str, Any]) -> None:
    wanted, plain = of_version(flux), identity_of(flux)
    flux.transformer.register_to_config(**left)
    flux.scheduler.register_to_config(**left)
    check_pipeline(wanted, flux)
    assert identity_of(flux) == plain


def test_the_same_model_from_its_files(flux: Any, tmp_path: Any) -> None:
    wanted = of_version(flux)
    flux.transformer.save_pretrained(tmp_path / "model")
    flux.scheduler.save_pretrained(tmp_path / "scheduler")
    flux.transformer = FluxTransformer2DModel.from_pretrained(tmp_path / "model", torch_dtype=torch.bfloat16)
    flux.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler")
    check_pipeline(wanted, flux)
    flux.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        FlowMatchHeunDiscreteScheduler().config | dict(flux.scheduler.config), skip_prk_steps=True
    )
    check_pipeline(wanted, flux)


# -- drift that is refused -----------------------------------------------------------------------------------


def test_scheduler_class(flux: Any) -> None:
    wanted = of_version(flux)
    flux.scheduler = FlowMatchHeunDiscreteScheduler()
    assert refusal(flux, wanted) == (
        "scheduler class: the profile has 'FlowMatchEulerDiscreteScheduler', this pipeline "
        f"'FlowMatchHeunDiscreteScheduler' (the profile is of diffusers 0.41.0, this is {NOW}); set pipe.scheduler to "
        "that class"
    )


def test_model_class(flux: Any) -> None:
    assert refusal(flux, of_version(flux, model_class="WanTransformer3DModel")) == (
        "model class: the profile has 'WanTransformer3DModel', this pipeline 'FluxTransformer2DModel' (the profile is "
        f"of diffusers 0.41.0, this is {NOW}); load the model it was calibrated on"
    )


def test_scheduler_config(flux: Any) -> None:
    wanted = of_version(flux)
    flux.scheduler = FlowMatchEulerDiscreteScheduler.from_config(flux.scheduler.config, max_shift=1.2, shift=2.0)
    assert refusal(flux, wanted) == (
        "scheduler config: max_shift is 1.15 in the profile and 1.2 here, shift is 1.0 in the profile and 2.0 here "
        f"(the profile is of diffusers 0.41.0, this is {NOW}); set pipe.scheduler up as in the calibration, or "
        "calibrate with this scheduler"
    )


def test_model_config(flux: Any, flux_cfg: Any) -> None:
    wanted = of_version(flux, model_config=identity_of(flux_cfg)["model_config"])
    assert refusal(flux, wanted) == (
        "model config: guidance_embeds is False in the profile and True here (the profile is of diffusers 0.41.0, this "
        f"is {NOW}); calibrate on this model"
    )


def test_a_new_key_that_is_set(flux: Any) -> None:
    wanted = of_version(flux)
    text = refusal(newer(flux, gate=True, theta_scale=2.5), wanted)
    assert text.startswith(
        "model config: gate is False in the profile and True here, theta_scale is 1.0 in the profile and 2.5 here (the "
    )


def test_a_set_key_that_an_older_release_does_not_take(flux: Any) -> None:
    new = newer(flux, {"sigma_max": 0.9})
    wanted = of_version(new, "0.99.0")
    flux.scheduler = FlowMatchEulerDiscreteScheduler.from_config(new.scheduler.config)
    assert flux.scheduler.config["sigma_max"] == 0.9  # kept, and read by nobody
    assert refusal(flux, wanted).startswith(
        "scheduler config: sigma_max is 0.9 in the profile and not set here (the profile is of diffusers 0.99.0, "
    )


def test_many_keys_are_counted(flux: Any) -> None:
    wanted = of_version(flux, model_config={f"key{n}": n for n in range(9)})
    text = refusal(flux, wanted)
    assert text.count(" in the profile and ") == 5 and " and 13 more (the profile" in text


def test_foreign_values_are_cut_and_escaped(flux: Any) -> None:
    wanted = of_version(flux, "\x1b[2J", model_config={"a" * 10_000: "\x1b" * 10_000})
    text = refusal(flux, wanted)
    assert len(text) < 1000 and text.isprintable()


def test_what_a_class_hands_on_belongs_to_the_class_above(flux: Any) -> None:
    """Arguments that go through `**others` have the defaults of the class that takes them."""

    class Subclass(FluxTransformer2DModel):
        @register_to_config
        def __init__(self, gate: bool = False, **others: Any) -> None:
            super().__init__(**others)

    plain = identity_of(flux)["model_config"]
    flux.transformer = Subclass(**{key: value for key, value in flux.transformer.config.items() if key[0] != "_"})
    assert identity_of(flux)["model_config"] == plain
    flux.transformer.register_to_config(gate=True)
    assert identity_of(flux)["model_config"] == {**plain, "gate": True}


def test_a_model_of_another_library_counts_every_key(flux: Any) -> None:
    """Nothing is known of its defaults."""
    pipe = mixture_pipeline()
    pipe.transformer.config = {"width": 3, "bias": None, "_path": "/x"}
    assert identity_of(pipe)["model_config"] == {"width": 3}


# -- older files ---------------------------------------------------------------------------------------------


def hashed(pipe: Any, **changes: str) -> Profile:
    hashes = {
        "model_config_hash": config_hash(pipe.transformer.config),
        "scheduler_config_hash": config_hash(pipe.scheduler.config),
    }
    return of_version(pipe, **{**hashes, **changes}, model_config={}, scheduler_config={})


def test_an_older_file_is_compared_by_its_hash(flux: Any) -> None:
    check_pipeline(hashed(flux), flux)
    theirs = config_hash(flux.transformer.config)
    assert refusal(flux, hashed(flux, model_config_hash="0" * 16)) == (
        f"model config: the profile has the hash '0000000000000000', this pipeline '{theirs}' (the profile is of "
        f"diffusers 0.41.0, this is {NOW}); the file is of an older version, which kept only a hash, and a key that a "
        "newer diffusers adds changes it: calibrate on this model"
    )
    text = refusal(flux, hashed(flux, scheduler_config_hash="0" * 16))
    assert text.startswith("scheduler config: the profile has the hash '0000000000000000', this pipeline ")
    assert text.endswith("set pipe.scheduler up as in the calibration, or calibrate with this scheduler")
