"""The ComfyUI nodes on stand-ins of ComfyUI's objects: calls counted, outputs to the bit, refusals by their words."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fake_comfy as fake
from ertacache.errors import CacheConflict, ErtacacheError, InvalidArgument, ProfileMismatch, UnsupportedPipeline
from ertacache.profile.profile import Profile
from profile_maker import make

SIGMAS = torch.linspace(1, 0, 13)  # T = 12
LATENT = torch.zeros(1, fake.CHANNELS, 6, 6)
EULER = fake.KSAMPLER(fake.sample_euler)
POSITIVE, NEGATIVE = [{"cond": 0.4, "guidance": 3.5}], [{"cond": -0.2}]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Any]:
    with fake.loaded(tmp_path) as module:
        yield module


@pytest.fixture
def model() -> fake.Patcher:
    return fake.Patcher(fake.Flow())


def run(model: fake.Patcher, sampler: Any = EULER, sigmas: Tensor = SIGMAS, cfg: float = 1.0, **named: Any) -> Tensor:
    """What a sampler node gives for seed 5; the model's calls begin anew."""
    model.model.calls.clear()
    given = {"positive": POSITIVE, "negative": NEGATIVE, "latent": LATENT, "seed": 5, **named}
    return fake.sample_custom(model, fake.prepare_noise(given["latent"], 5), cfg, sampler, sigmas, **given)


def calibrate(nodes: Any, model: fake.Patcher, name: str = "half", **changes: Any) -> Any:
    given = {
        "positive": POSITIVE, "negative": NEGATIVE, "sampler": EULER, "sigmas": SIGMAS,
        "latent_image": {"samples": LATENT}, "profile": name, "cfg": 1.0, "compute_steps": 6, "seeds": 4, "holdout": 1,
        "first_seed": 100, "schedule": "searched", "levels": 3, "ridge": 1e-3, "grid_strength": 0.0, **changes,
    }  # fmt: skip
    model.model.calls.clear()
    return nodes.Calibrate.execute(model, **given)


def applied(nodes: Any, model: fake.Patcher, name: str = "half", on_mismatch: str = "refuse") -> fake.Patcher:
    return nodes.Apply.execute(model, name, on_mismatch).result[0]


def saved(tmp_path: Path, name: str = "half") -> Profile:
    return Profile.load(tmp_path / "ertacache" / f"{name}.safetensors")


def test_a_calibration_makes_the_calls_it_says_one_latent_at_a_time(nodes: Any, model: fake.Patcher, tmp_path: Path):
    made = calibrate(nodes, model)
    profile = saved(tmp_path)
    # 4 seeds recorded on 12 steps and walked with 6 calls; the held-out one again with 6 plain steps.
    assert model.model.calls == [1] * (4 * 12 + 4 * 6 + 6) and profile.provenance.measured == {"model_calls": 78}
    assert made.result == ("half.safetensors", made.ui) and str(profile.schedule) in made.ui
    assert (profile.schedule.T, profile.schedule.K, profile.site) == (12, 6, "guided")
    facts = profile.provenance
    assert facts.model_class == "fake_comfy.Flow" and facts.embedded_guidance == 3.5 and facts.guidance_weight is None
    assert facts.model_config == {
        "latent_format": "SimpleNamespace", "model_sampling": ["CONST"], "unet": {"image_model": "fake", "depth": 2}
    }  # fmt: skip
    assert facts.scheduler_config == {"sampler": "euler", "options": {}} and facts.latent_shape == (4, 6, 6)
    assert facts.versions["comfyui"] == "0.0-fake" and (facts.prompt_count, facts.holdout_count) == (3, 1)
    held = facts.heldout
    assert held["wins"] and held["latent_error"]["mean"] < held["fewer_steps"]["latent_error"]["mean"]
    assert "quality: not measured" not in made.ui and "in latents: " in made.ui


def test_without_a_profile_nothing_changes_and_with_one_the_schedule_says_who_is_called(
    nodes: Any, model: fake.Patcher, tmp_path: Path
):
    plain = run(model)
    calibrate(nodes, model)
    carrying = applied(nodes, model)
    assert torch.equal(run(model), plain) and model.model.calls == [1] * 12
    played = run(carrying)
    assert model.model.calls == [1] * 6
    assert torch.equal(run(carrying), played)  # each run has a state of its own
    assert torch.equal(played, by_hand(model, saved(tmp_path)))


def by_hand(model: fake.Patcher, profile: Profile) -> Tensor:
    """Formula (P) written out: Euler on slopes, the newest first."""
    x, held = fake.prepare_noise(LATENT, 5) * SIGMAS[0], list[Tensor]()
    for i in range(profile.schedule.T):
        sigma = float(SIGMAS[i])
        if profile.schedule.computed[i]:
            denoised = model.model.denoise(x, SIGMAS[i] * torch.ones(1), 0.4)
            held.insert(0, (x - denoised) / sigma)
        else:
            v = torch.zeros_like(x)
            for level, weight in enumerate(profile.predictor.a[i, 0, 0].tolist()):
                if weight:
                    v.add_(held[level], alpha=weight)
            denoised = x - sigma * v
        x = x + (x - denoised) / SIGMAS[i] * (SIGMAS[i + 1] - SIGMAS[i])
    return x


def test_a_batch_and_another_size_take_the_profile(nodes: Any, model: fake.Patcher):
    calibrate(nodes, model)
    found = run(applied(nodes, model), latent=torch.zeros(2, fake.CHANNELS, 8, 4))
    assert model.model.calls == [2] * 6 and found.shape == (2, fake.CHANNELS, 8, 4)


def test_guidance_is_predicted_after_it_is_formed(nodes: Any, model: fake.Patcher, tmp_path: Path):
    calibrate(nodes, model, cfg=4.0)
    assert saved(tmp_path).provenance.guidance_weight == 4.0
    run(applied(nodes, model), cfg=4.0)
    assert len(model.model.calls) == 2 * 6


def test_the_profile_s_sampler_is_apply_with_euler(nodes: Any, model: fake.Patcher):
    calibrate(nodes, model)
    sampler, sigmas = nodes.Sampler.execute("half").result
    played = run(applied(nodes, model))
    assert torch.equal(sigmas, SIGMAS)
    assert torch.equal(run(model, sampler, sigmas), played) and model.model.calls == [1] * 6


def test_the_profile_s_sampler_calls_back_at_every_step(nodes: Any, model: fake.Patcher):
    calibrate(nodes, model)
    sampler, sigmas = nodes.Sampler.execute("half").result
    guider, seen = fake.CFGGuider(model), list[dict[str, Any]]()
    guider.set_conds(POSITIVE, NEGATIVE)
    extra = {"denoise_mask": None, "model_options": {}, "seed": 1}
    x = fake.prepare_noise(LATENT, 5)
    sampler.sampler_function(fake.Inner(guider), x, sigmas, extra_args=extra, callback=seen.append, disable=True)
    assert [(step["i"], float(step["sigma"])) for step in seen] == list(enumerate(SIGMAS[:-1].tolist()))
    assert torch.equal(seen[0]["x"], x) and seen[-1]["denoised"].shape == x.shape


def test_a_grid_of_its_own_is_stepped_by_its_sampler_only(nodes: Any, model: fake.Patcher, tmp_path: Path):
    calibrate(nodes, model, "own", grid_strength=0.5)
    profile = saved(tmp_path, "own")
    # The loop that measures φ calls the model at every step of all seeds.
    assert len(model.model.calls) == 4 * (12 + 12 + 6) + 6
    assert torch.equal(profile.base_sigmas, SIGMAS) and not torch.equal(profile.sigmas, SIGMAS)
    sampler, sigmas = nodes.Sampler.execute("own").result
    assert torch.equal(sigmas, profile.sigmas)
    run(model, sampler, sigmas)
    assert model.model.calls == [1] * 6
    with pytest.raises(ProfileMismatch, match=r"time grid: at step \d+ .* or the SIGMAS of ERTACache Sampler"):
        run(model, sampler, SIGMAS)
    with pytest.raises(ProfileMismatch, match="time grid: at step"):
        run(applied(nodes, model, "own"))
    run(applied(nodes, model, "own"), sigmas=sigmas)
    assert model.model.calls == [1] * 6


def test_another_sampler_is_fitted_to_its_own_steps(nodes: Any, model: fake.Patcher, tmp_path: Path):
    multistep = fake.KSAMPLER(fake.sample_dpmpp_2m)
    calibrate(nodes, model, sampler=multistep)
    assert len(model.model.calls) == 4 * (12 + 12) + 6  # the truth is computed at predicted steps
    run(applied(nodes, model), multistep)
    assert model.model.calls == [1] * 6
    with pytest.raises(ProfileMismatch, match="fitted to 'dpmpp_2m', and its own sampler steps with 'euler'"):
        nodes.Sampler.execute("half")
    with pytest.raises(InvalidArgument, match="a time grid of its own is stepped by euler"):
        calibrate(nodes, model, sampler=multistep, grid_strength=0.5)


MISMATCHES = {
    "steps": ({"sigmas": torch.linspace(1, 0, 12)}, "steps: the profile has 12 and the run has 11"),
    "img2img": ({"sigmas": SIGMAS[4:]}, "steps: the profile has 12 and the run has 8"),
    "shift": ({"sigmas": SIGMAS**0.9}, r"time grid: at step 1 the profile has sigma 0.916667 and the run 0.924"),
    "cfg": ({"cfg": 7.0}, "cfg: the profile has None and the run has 7.0"),
    "guidance": ({"positive": [{"cond": 0.4, "guidance": 5.0}]}, "guidance: the profile has 3.5 and the run has 5.0"),
    "sampler": ({"sampler": fake.KSAMPLER(fake.sample_dpmpp_2m)}, "sampler: the profile has 'euler' and the run has"),
    "options": ({"sampler": fake.KSAMPLER(fake.sample_euler, {"s_churn": 0.1})}, "sampler options: the profile has {}"),
    "heun": ({"sampler": fake.KSAMPLER(fake.sample_heun)}, "sampler 'heun' calls the model twice in a step"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISMATCHES)
def test_a_run_that_does_not_suit_is_refused_or_computed(nodes: Any, model: fake.Patcher, case: str, caplog: Any):
    changes, words = MISMATCHES[case]
    calibrate(nodes, model)
    with pytest.raises((ProfileMismatch, UnsupportedPipeline), match=words):
        run(applied(nodes, model), **changes)
    assert model.model.calls == []
    plain, calls = run(model, **changes), len(model.model.calls)
    assert torch.equal(run(applied(nodes, model, on_mismatch="compute"), **changes), plain)
    assert len(model.model.calls) == calls and "ERTACache computes every step: " in caplog.text


def test_another_model_is_refused(nodes: Any, model: fake.Patcher):
    calibrate(nodes, model)
    deeper = fake.Patcher(fake.Flow())
    deeper.model.model_config.unet_config["depth"] = 3
    with pytest.raises(ProfileMismatch, match=r"model unet: .*'depth': 2.* and the run has .*'depth': 3"):
        run(applied(nodes, deeper))
    # The same in another dtype is the same model: quantised copies take the profile.
    narrower = fake.Patcher(fake.Flow())
    narrower.model.model_config.unet_config["dtype"] = torch.float8_e4m3fn
    run(applied(nodes, narrower))
    assert narrower.model.calls == [1] * 6
    other = fake.Patcher(type("OtherFlow", (fake.Flow,), {})())
    with pytest.raises(ProfileMismatch, match=r"model class: the profile has 'fake_comfy\.Flow'"):
        run(applied(nodes, other))


def test_a_guider_of_another_rule_is_refused(nodes: Any, model: fake.Patcher):
    calibrate(nodes, model)

    class DualGuider(fake.CFGGuider):
        def predict_noise(self, *args: Any, **named: Any) -> Tensor:
            return super().predict_noise(*args, **named)

    guider = DualGuider(applied(nodes, model))
    guider.set_conds(POSITIVE, NEGATIVE)
    with pytest.raises(ProfileMismatch, match="guider: the profile has 'CFGGuider' and the run has 'DualGuider'"):
        guider.sample(fake.prepare_noise(LATENT, 5), LATENT, EULER, SIGMAS)


def test_a_sampler_that_no_name_gives_away_is_found_by_its_calls(nodes: Any, model: fake.Patcher, caplog: Any):
    unknown = fake.KSAMPLER(fake.sample_own_heun)
    words = "sampler 'own_heun' calls the model at sigma 0.916667 where step 2 is at 0.833333; choose one that"
    with pytest.raises(UnsupportedPipeline, match=words):
        calibrate(nodes, model, sampler=unknown)
    calibrate(nodes, model)
    profile = nodes.Profile.load(nodes.existing(nodes.profiles_folder(), "half"))
    facts = profile.provenance
    facts.scheduler_config["sampler"] = "own_heun"
    profile.save(nodes.profiles_folder() / "half.safetensors")
    with pytest.raises(UnsupportedPipeline, match=words):
        run(applied(nodes, model), unknown)
    run(applied(nodes, model, on_mismatch="compute"), unknown)
    assert "ERTACache computes the rest of the run: sampler 'own_heun'" in caplog.text


def test_one_cache_at_a_time(nodes: Any, model: fake.Patcher):
    calibrate(nodes, model)
    carrying = applied(nodes, model)
    for again in (lambda: applied(nodes, carrying), lambda: calibrate(nodes, carrying)):
        with pytest.raises(CacheConflict, match="already carries a profile; connect the model from before"):
            again()
    sampler, sigmas = nodes.Sampler.execute("half").result
    with pytest.raises(CacheConflict, match="predicts by itself; connect the model from before ERTACache Apply"):
        run(carrying, sampler, sigmas)
    with pytest.raises(CacheConflict, match="and calibrate with euler"):
        calibrate(nodes, model, sampler=sampler)
    carrying.model_options["transformer_options"]["easycache"] = object()
    with pytest.raises(CacheConflict, match="the model also carries 'easycache'"):
        run(carrying)


def test_a_mask_is_left_to_apply(nodes: Any, model: fake.Patcher):
    calibrate(nodes, model)
    sampler, sigmas = nodes.Sampler.execute("half").result
    with pytest.raises(UnsupportedPipeline, match="the latent has a noise mask"):
        run(model, sampler, sigmas, noise_mask=torch.ones(1))


REFUSED = {
    "compute_steps": ({"compute_steps": 12}, "compute_steps is 12 of 12 steps; choose from 2 to 11"),
    "holdout": ({"holdout": 4}, "holdout is 4 of 4 seeds; keep 1 or more and leave 1 or more to fit"),
    "schedule": ({"schedule": "random"}, "schedule is 'random'; choose one of searched, even"),
    "strength": ({"grid_strength": 1.5}, "strength is 1.5; choose from 0"),
    "end": ({"sigmas": SIGMAS[:-1]}, "give a falling grid of 2 steps or more that ends at 0"),
    "none": ({"sigmas": SIGMAS[:0]}, "give a falling grid of 2 steps or more that ends at 0"),
    "heun": ({"sampler": fake.KSAMPLER(fake.sample_heun)}, "sampler 'heun' calls the model twice in a step"),
    "picture": ({"latent_image": {"samples": LATENT + 1}}, "calibrate on one empty latent"),
    "mask": ({"latent_image": {"samples": LATENT, "noise_mask": LATENT}}, "calibrate on one empty latent"),
    "outside": ({"profile": "../stolen"}, "profile is '../stolen'; give the name of a file within"),
    "absolute": ({"profile": "/etc/stolen"}, "profile is '/etc/stolen'; give the name of a file within"),
    "no name": ({"profile": " "}, "profile is ' '; give the name of a file within"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_calibration_refuses_before_its_first_call(nodes: Any, model: fake.Patcher, case: str):
    changes, words = REFUSED[case]
    with pytest.raises(ErtacacheError, match=words):
        calibrate(nodes, model, **changes)
    assert model.model.calls == []


@pytest.mark.parametrize("name", ["euler_cfg_pp", "dpmpp_2s_ancestral_cfg_pp"])
def test_samplers_that_read_the_unguided_output_are_refused(nodes: Any, model: fake.Patcher, name: str):
    function = type(fake.sample_euler)(fake.sample_euler.__code__, vars(fake), f"sample_{name}")
    with pytest.raises(UnsupportedPipeline, match=f"sampler '{name}' reads the unguided output of every step"):
        calibrate(nodes, model, sampler=fake.KSAMPLER(function))


def test_a_model_that_gives_nan_leaves_no_profile(nodes: Any, model: fake.Patcher, tmp_path: Path):
    model.model.mix[0, 0] = float("nan")
    with pytest.raises(ErtacacheError, match="the uncached runs hold NaN or infinity; load the model in a wider dtype"):
        calibrate(nodes, model)
    assert not (tmp_path / "ertacache" / "half.safetensors").exists()


def test_profiles_are_named_within_their_folder(nodes: Any, model: fake.Patcher, tmp_path: Path):
    with pytest.raises(InvalidArgument, match=r"there is no profile 'half' in .*ertacache, which has none; make it"):
        applied(nodes, model)
    calibrate(nodes, model, "flux/half")
    assert (tmp_path / "ertacache" / "flux" / "half.safetensors").is_file()
    assert nodes.ProfileInfo.execute("flux/half.safetensors").result == nodes.ProfileInfo.execute("flux/half").result
    with pytest.raises(InvalidArgument, match=r"which has flux/half.safetensors; make it"):
        nodes.ProfileInfo.execute("half")


def test_a_profile_from_diffusers_is_refused_with_the_reason(nodes: Any, model: fake.Patcher, tmp_path: Path):
    (tmp_path / "ertacache").mkdir()
    make().save(tmp_path / "ertacache" / "theirs.safetensors")
    words = "calibrated outside of ComfyUI, for FluxTransformer2DModel with FlowMatchEulerDiscreteScheduler"
    for use in (lambda: applied(nodes, model, "theirs"), lambda: nodes.Sampler.execute("theirs")):
        with pytest.raises(ProfileMismatch, match=words):
            use()
    assert "FluxTransformer2DModel" in nodes.ProfileInfo.execute("theirs").result[0]  # anybody may look


def test_a_profile_that_was_made_again_is_read_again(nodes: Any, model: fake.Patcher):
    calibrate(nodes, model)
    prints = [nodes.Apply.fingerprint_inputs("half", on_mismatch="refuse"), nodes.Sampler.fingerprint_inputs("half")]
    calibrate(nodes, model, compute_steps=5)
    again = nodes.ProfileInfo.fingerprint_inputs(profile="half")
    assert prints[0] == prints[1] != again
    assert nodes.Apply.fingerprint_inputs() == ""  # linked: ComfyUI does not know the name yet


def test_the_run_that_breaks_off_leaves_nothing_behind(nodes: Any, model: fake.Patcher):
    calibrate(nodes, model)
    carrying, played = applied(nodes, model), run(applied(nodes, model))

    def sample_euler(model: Any, x: Tensor, sigmas: Tensor, **named: Any) -> Tensor:
        fake.sample_euler(model, x, sigmas[:4], **named)
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        run(carrying, fake.KSAMPLER(sample_euler))
    assert torch.equal(run(carrying), played)


def test_what_compilation_sees_of_a_model_is_the_same(nodes: Any, model: fake.Patcher):
    calibrate(nodes, model)
    assert applied(nodes, model).model_options == model.model_options  # nothing of ours among what the network is given


def test_the_pack_names_its_nodes(nodes: Any):
    import asyncio

    found = asyncio.run(asyncio.run(nodes.comfy_entrypoint()).get_node_list())
    assert [node.define_schema().node_id for node in found] == [
        "ERTACacheCalibrate", "ERTACacheApply", "ERTACacheProfileInfo", "ERTACacheSampler"
    ]  # fmt: skip
    assert all(isinstance(node.define_schema(), SimpleNamespace) for node in found)
