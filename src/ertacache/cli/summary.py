"""A profile's facts, as JSON and for people."""

from typing import Any


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


def outcome(provenance: Any) -> str:
    """What a calibration measured, in a few sentences for people; what an older profile lacks is left out."""
    held, measured = provenance.heldout, provenance.measured
    lines: list[str] = []
    if "speed_up" in measured:
        lines.append(
            f"{measured['speed_up']:.2f}× faster: {measured['cached_seconds']:.2f} s instead of "
            f"{measured['uncached_seconds']:.2f} s per prompt"
        )
    if "fewer_steps" in held:
        fewer, gain = held["fewer_steps"], held["gain"]
        lines.append(
            f"{'better' if held['wins'] else 'WORSE'} than {fewer['steps']} plain steps at the same cost "
            f"({_figure(fewer['psnr'])} dB) by {gain['mean']:.2f} ± {gain['standard_error']:.2f} dB"
        )
    if "uncached_runs" in measured:
        lines.append(
            f"the calibration took {measured['calibration_seconds']:.0f} s, as long as "
            f"{measured['uncached_runs']:.1f} uncached runs of one prompt"
        )
    return "\n".join(lines)


def _figure(of: dict[str, float]) -> str:
    spread = of.get("standard_error")
    return f"{of['mean']:.2f}" if spread is None else f"{of['mean']:.2f} ± {spread:.2f}"
