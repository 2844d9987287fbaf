"""What each command does, returning plain results; the command line only parses and prints."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ertacache.errors import InvalidArgument
from ertacache.pipelines import bundled
from ertacache.pipelines.loading import call_arguments, load_pipeline, read_prompts


def number_or_word(text: str, number: Callable[[str], Any]) -> Any:
    """'3' as a number, 'auto' as itself."""
    try:
        return number(text)
    except ValueError:
        return text


def calibrate(
    model: str, out: Path, prompts: Path | None, choices: dict[str, Any], call: dict[str, Any], device: str, dtype: str
) -> dict[str, Any]:
    """Calibrate and save a profile."""
    from ertacache.calibration.calibrate import calibrate as run

    texts = prompts_of(model, prompts, bundled.calibration_prompts, "--prompts")
    pipe = load_pipeline(model, device, dtype)
    profile = run(pipe, texts, **choices, **call_arguments(model, call))
    path = profile.save(out)
    facts = summary(profile)
    return {
        "profile": str(path),
        **facts,
        "text": f"{describe(facts)}\nwritten to {path} ({path.stat().st_size} bytes)",
    }


def generate(
    model: str,
    prompt: str,
    profile: str | None,
    out: Path | None,
    seed: int,
    call: dict[str, Any],
    device: str,
    dtype: str,
    fps: float | None = None,
    retarget: bool = False,
    offload_history: str | None = None,
) -> dict[str, Any]:
    """Draw one picture or clip; returns the time of the denoising loop and what was computed."""
    from ertacache.calibration.pipeline_run import check_call, run_pipeline
    from ertacache.calibration.prompts import Prompts
    from ertacache.core.offload import check_offload
    from ertacache.evaluation.evaluate import Timed
    from ertacache.evaluation.sample_files import FPS, check_kind, makes_clips, trained_fps, write_sample
    from ertacache.profile.profile import Profile
    from ertacache.runtime.hooks import Controller
    from ertacache.runtime.matching import check_pipeline
    from ertacache.runtime.player import Player, RunStats

    offload = check_offload(offload_history)
    if offload is not None and profile is None:
        raise InvalidArgument("--offload-history is for the histories of a profile; give one with --profile")
    pipe = load_pipeline(model, device, dtype)
    arguments = call_arguments(model, call)
    check_call(pipe, arguments)
    if fps is None:
        fps = FPS if model in bundled.NAMES else trained_fps(pipe)
    clip = makes_clips(pipe, arguments)
    out = out or Path("clip.mp4" if clip else "image.png")
    check_kind(out, clip=clip, fps=fps)
    stats, loaded = RunStats(), Profile.load(profile) if profile is not None else None
    if loaded is not None:
        check_pipeline(loaded, pipe)
    timed = Timed(Player(loaded, stats, offload, retarget=retarget) if loaded is not None else Controller())
    start = time.perf_counter()
    hidden = loaded is not None and loaded.site == "hidden"
    images = run_pipeline(pipe, Prompts((prompt,), seed), timed, arguments, hidden=hidden)
    seconds = time.perf_counter() - start
    write_sample(images[0], out, fps=fps)
    counted = f"; computed {dict(stats.computed)}, predicted {dict(stats.predicted)}" if loaded is not None else ""
    return {
        "image": str(out),
        "denoise_seconds": timed.seconds,
        "image_seconds": seconds,
        "computed": dict(stats.computed),
        "predicted": dict(stats.predicted),
        "extra_bytes": stats.extra_bytes,
        "host_bytes": stats.host_bytes,
        "text": f"{out}: denoising {timed.seconds:.2f} s, whole call {seconds:.2f} s{counted}",
    }


def ablation(
    model: str,
    out: Path,
    budgets: str,
    prompts: Path | None,
    calibration_prompts: Path | None,
    full: bool,
    seed: int,
    call: dict[str, Any],
    device: str,
    dtype: str,
    offload_history: str | None = None,
) -> dict[str, Any]:
    """Measure all rows and write results.jsonl and report.html."""
    from ertacache.core.offload import check_offload
    from ertacache.evaluation.ablation_run import AblationRun

    offload = check_offload(offload_history)
    try:
        numbers = [int(part) for part in budgets.split(",")]
    except ValueError as error:
        raise InvalidArgument(
            f"budgets is {budgets!r}; give whole numbers separated by commas, such as 15,10,6"
        ) from error
    held = prompts_of(model, prompts, bundled.heldout_prompts, "--prompts")
    texts = prompts_of(model, calibration_prompts, bundled.calibration_prompts, "--calibration-prompts")
    pipe = load_pipeline(model, device, dtype)
    arguments = call_arguments(model, call)
    run = AblationRun(out, held, seed, model)
    group = group_name(model, arguments)
    rows = run.add(pipe, texts, numbers, arguments, group=group, full=full, offload_history=offload)
    report = run.report()
    text = f"{table(rows)}\n{out / 'results.jsonl'}\n{report}"
    kept = (
        "label",
        "K",
        "budget",
        "psnr",
        "ssim",
        "denoise_seconds",
        "image_seconds",
        "extra_bytes",
        "calls",
        "schedule",
    )
    return {"report": str(report), "rows": [{key: row[key] for key in kept} for row in rows], "text": text}


def inspect(source: str, picture: Path | None) -> dict[str, Any]:
    """What a profile holds; drawn as well where a picture is asked for."""
    from ertacache.profile.profile import Profile

    profile = Profile.load(source)
    facts = summary(profile)
    text = describe(facts)
    if picture is not None:
        from ertacache.profile.profile_plot import draw_profile

        draw_profile(profile, picture)
        text += f"\ndrawn to {picture}"
    return {**facts, "text": text}


def summary(profile: Any) -> dict[str, Any]:
    """A profile's facts as JSON."""
    facts = profile.provenance
    return {
        "schedule": str(profile.schedule),
        "K": profile.schedule.K,
        "T": profile.schedule.T,
        "site": profile.site,
        "method": facts.method,
        "adjusted_grid": bool((profile.sigmas != profile.base_sigmas).any()),
        "coefficients": list(profile.predictor.a.shape),
        "model": facts.model_class,
        "scheduler": facts.scheduler_class,
        "contexts": list(facts.contexts),
        "guidance_weight": facts.guidance_weight,
        "embedded_guidance": facts.embedded_guidance,
        "latent_shape": list(facts.latent_shape),
        "call": facts.call,
        "prompts": {"fitted": facts.prompt_count, "heldout": facts.holdout_count, "seed": facts.seed},
        "heldout": facts.heldout,
        "versions": facts.versions,
    }


def describe(facts: dict[str, Any]) -> str:
    """The summary for people."""
    method, held = facts["method"], facts["heldout"]
    quality = (
        f"PSNR {held['psnr']['mean']:.2f} ± {held['psnr']['std']:.2f} dB, SSIM {held['ssim']['mean']:.4f} "
        f"on {facts['prompts']['heldout']} held-out prompts"
        if held
        else "not measured"
    )
    return "\n".join(
        [
            f"{facts['schedule']}  computes {facts['K']} of {facts['T']} steps",
            f"{facts['model']} with {facts['scheduler']}, calls {', '.join(facts['contexts'])}",
            f"basis {method.get('basis')} at site {facts['site']}, rectifier {method.get('rectifier') or 'none'}, "
            f"timestep strength {method.get('strength')}, threshold {method.get('threshold')}",
            f"history: {method.get('levels')} levels{' of both branches' if method.get('branches') else ''}",
            f"quality: {quality}",
        ]
    )


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = [f"{'':58} {'K':>3} {'PSNR':>14} {'SSIM':>7} {'denoise':>9}"]
    for row in rows:
        psnr = f"{row['psnr']['mean']:6.2f} ± {row['psnr']['std']:4.2f}"
        seconds = f"{row['denoise_seconds'] * 1000:6.0f} ms"
        lines.append(f"{row['label'][:58]:58} {row['K']:3} {psnr:>14} {row['ssim']['mean']:7.4f} {seconds:>9}")
    return "\n".join(lines)


def group_name(model: str, call: dict[str, Any]) -> str:
    """Model and guidance, as the report groups rows."""
    # Where both are given, the guidance scale is an input of the denoiser; a second one is a second denoiser's.
    first = "true_cfg_scale" if call.get("true_cfg_scale") else "guidance_scale"
    weights = [f"{name} {call[name]:g}" for name in (first, "guidance_scale_2") if call.get(name)]
    return ", ".join([Path(model).name, *weights])


def prompts_of(model: str, path: Path | None, captions: Callable[..., list[str]], option: str) -> list[str]:
    if path is not None:
        return read_prompts(path)
    if model in bundled.NAMES:
        return captions(name=model)
    raise InvalidArgument(f"{model!r} has no bundled prompts; give a file with {option}")
