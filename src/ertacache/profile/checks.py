"""What makes the parts of a profile fit together; every refusal names the field, its value and the remedy."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ertacache.core.compensation import Compensation
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.profile.provenance import Provenance
from ertacache.profile.sealed import is_list, is_object, short
from ertacache.profile.weights import Fingerprint

MAX_STEPS = 4096  # checking a schedule takes time that grows with its square
MAX_GRIDS = 16  # in one file
#: Of a time grid. Solvers start at 1 (flow matching), 80 (EDM), 700 (video), 4096 (no signal left at all).
LARGEST_SIGMA = 1e6
#: The source at site guided that holds the guidance direction c − u of the computed steps.
DIRECTION = "direction"
#: The source at site guided that holds the guided output of a small model at the predicted step itself.
SMALL = "small"
#: What a provenance has of the small model, and the kind of each.
_OF_SMALL: dict[str, type | tuple[type, ...]] = {
    "model_class": str, "model_config": dict, "weights": str, "share": (int, float),
}  # fmt: skip
#: What a profile may be told again in `provenance.method`, where a calibration wrote it.
_AGAIN = ("schedule", "site")
#: What the profiles of one file have in common.
_OF_ONE_MODEL = (
    "model_class", "scheduler_class", "model_config", "scheduler_config", "model_config_hash", "scheduler_config_hash",
    "weights", "quantizer", "reference_weights", "small_model",
)  # fmt: skip


def check_one_of(value: object, allowed: tuple[str, ...], key: str) -> None:
    """Refuse a value that is not among the allowed words."""
    if value not in allowed:
        raise InvalidArgument(f"{key} is {short(value)}; it must be one of {', '.join(allowed)}")


def check_finite(tensor: Tensor, key: str, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> None:
    """Refuse another dtype than these, another device than the CPU, NaN and infinity."""
    if tensor.dtype not in dtypes or tensor.device.type != "cpu":
        raise InvalidArgument(f"{key} is {tensor.dtype} on {tensor.device}; pass {key}.float().cpu()")
    if not torch.isfinite(tensor).all():
        raise InvalidArgument(f"{key} holds NaN or infinity; calibrate again, on more prompts or in a wider dtype")


def check_grids(base: Tensor, used: Tensor, T: int) -> None:
    """Both grids [T+1] fall or rise strictly, and have the same ends."""
    for name, sigmas in (("base_sigmas", base), ("sigmas", used)):
        _check_grid(sigmas, name, T)
    for end in (0, -1):
        if float(base[end]) != float(used[end]):
            raise InvalidArgument(
                f"sigmas[{end}] is {float(used[end])} where base_sigmas[{end}] is {float(base[end])}; "
                "an adjusted grid must start and end where the base grid does"
            )


def _check_grid(sigmas: Tensor, key: str, T: int) -> None:
    if tuple(sigmas.shape) != (T + 1,):
        raise InvalidArgument(
            f"{key} has shape {list(sigmas.shape)} where the schedule of {T} steps needs [{T + 1}]; "
            "take the scheduler's sigmas of that step count, with the final one"
        )
    check_finite(sigmas, key)
    falls = bool(sigmas[0] >= sigmas[-1])  # most do; Mochi's rises
    wrong = sigmas.diff() >= 0 if falls else sigmas.diff() <= 0
    if wrong.any():
        i = int(wrong.nonzero()[0])
        raise InvalidArgument(
            f"{key} goes from {float(sigmas[i])} to {float(sigmas[i + 1])} at step {i}; it must "
            f"{'fall' if falls else 'rise'} at every step"
        )
    low, high = float(sigmas.min()), float(sigmas.max())
    if low < 0 or high > LARGEST_SIGMA:
        raise InvalidArgument(
            f"{key} reaches from {low:g} to {high:g}; noise levels lie between 0 and {LARGEST_SIGMA:g}: take the "
            "scheduler's own"
        )


def check_others(facts: Provenance, others: Sequence[Provenance]) -> None:
    """Profiles in one file are of one model and scheduler."""
    if len(others) >= MAX_GRIDS:
        raise InvalidArgument(f"others has {len(others)} profiles; keep at most {MAX_GRIDS - 1} beside the first")
    for n, own in enumerate(others):
        for name in _OF_ONE_MODEL:
            if getattr(own, name) != getattr(facts, name):
                raise InvalidArgument(
                    f"others[{n}].provenance.{name} is {short(getattr(own, name))} where the first profile has "
                    f"{short(getattr(facts, name))}; keep profiles of one model and scheduler in one file"
                )


def check_names(site: str, predictor: Predictor, contexts: Sequence[str]) -> None:
    """Targets and sources are what a run with these calls hands over at this site."""
    targets, sources = list(predictor.targets), list(predictor.sources)
    wanted = ["guided"] if site == "guided" else list(contexts)
    if sorted(targets) != sorted(wanted):
        raise InvalidArgument(
            f"targets are {short(targets)} where site {site!r} and the calls {short(list(contexts))} of "
            f"provenance.contexts predict {short(wanted)}; nothing else would be predicted: use those names"
        )
    if site == "guided" and (taken := {"guided", DIRECTION, SMALL} & set(contexts)):
        raise InvalidArgument(
            f"provenance.contexts has a call {min(taken)!r}, which is also the name of a history at site 'guided'; "
            "calibrate at site 'output'"
        )
    if site != "guided":
        known, unknown = set(contexts), [name for name in sources if name not in contexts]
    else:
        known = {"guided", DIRECTION, SMALL, *contexts}
        unknown = [name for name in sources if name not in known and name.rpartition(":")[0] not in contexts]
    if unknown:
        raise InvalidArgument(
            f"sources are {short(sources)}, and no history of {unknown[0]!r} is kept at site {site!r}; name "
            f"{', '.join(sorted(known))}" + (", or the parts of a batch as 'name:0', 'name:1'" * (site == "guided"))
        )
    for context in contexts:
        parts = [name for name in sources if name not in known and name.rpartition(":")[0] == context]
        if parts and (context in sources or sorted(parts) != sorted(f"{context}:{n}" for n in range(len(parts)))):
            raise InvalidArgument(
                f"sources are {short(sources)}; name the parts of the batch {context!r} in full, "
                f"'{context}:0' to the last, and not itself beside them"
            )


def check_small(predictor: Predictor, facts: Provenance) -> None:
    """What is predicted from a small model says which, and the other way round; it has one output in a step."""
    if (SMALL in predictor.sources) != bool(facts.small_model):
        raise InvalidArgument(
            f"sources are {short(list(predictor.sources))} and provenance.small_model is {short(facts.small_model)}; "
            f"have {SMALL!r} among the sources where there is a small model, and nowhere else"
        )
    if not facts.small_model:
        return
    kept = facts.small_model
    fits = kept.keys() == _OF_SMALL.keys() and all(isinstance(kept[key], kind) for key, kind in _OF_SMALL.items())
    if fits and (count := kept["model_class"].count(", ") + 1) > 1:
        configs: object = kept["model_config"].get("denoisers")
        fits = is_list(configs) and len(configs) == count and all(map(is_object, configs))
    if not fits or isinstance(kept["share"], bool) or kept["share"] <= 0:
        raise InvalidArgument(
            f"provenance.small_model is {short(kept)}; give model_class (a text), model_config (a dict), weights (a "
            "fingerprint, or empty) and share (a number above 0)"
        )
    if kept["weights"]:
        Fingerprint.parse(kept["weights"], "provenance.small_model.weights")
    own = predictor.a[:, :, predictor.sources.index(SMALL)]
    if own[:, :, 1:].any() or not own.any():
        what = "reads a small model further back than level 0" if own.any() else "has no coefficient of a small model"
        raise InvalidArgument(f"predictor.a {what}; it has one output, at the predicted step: calibrate again")


def check_told_again(schedule: Schedule, site: str, facts: Provenance) -> None:
    """What the provenance says of schedule and site is what the profile does: nobody edited one of them."""
    if facts.num_inference_steps != schedule.T:
        raise InvalidArgument(
            f"provenance.num_inference_steps is {facts.num_inference_steps} and the schedule '{schedule}' has "
            f"{schedule.T} steps; calibrate for the step count that you run"
        )
    for name, value in zip(_AGAIN, (str(schedule), site), strict=True):
        told = facts.method.get(name)
        if isinstance(told, str) and told != value:
            raise InvalidArgument(
                f"{name} is {value!r} and provenance.method.{name} is {short(told)}; calibrate for the {name} you "
                "want, since coefficients belong to one"
            )


def check_boundaries(boundaries: tuple[int, ...], schedule: Schedule, predictor: Predictor) -> None:
    """No history leads from one denoiser to the next."""
    for before, step in zip((0, *boundaries), boundaries, strict=False):
        if not before < step < schedule.T:
            raise InvalidArgument(
                f"provenance.boundaries is {list(boundaries)}; it must rise within steps 1 to {schedule.T - 1}"
            )
        if not schedule.computed[step]:
            raise InvalidArgument(
                f"step {step} of '{schedule}' is predicted, and another denoiser takes over there, which has no "
                "history yet; compute it"
            )
    for i in schedule.predicted_steps if boundaries else ():
        if (needed := predictor.needed_levels(i)) > (held := schedule.depth(i, boundaries)):
            raise InvalidArgument(
                f"step {i} of '{schedule}' needs the last {needed} computed steps and its denoiser has made {held}; "
                "use a shorter history there"
            )


def check_predicts(predictor: Predictor, schedule: Schedule) -> None:
    """Every predicted step of every target is made of something."""
    head = (schedule.T, len(predictor.targets), -1)
    used = [table.reshape(head).any(2) for table in (predictor.a, predictor.d, predictor.b)]
    empty = ~(used[0] | used[1] | used[2])[list(schedule.predicted_steps)]
    if empty.any():
        n, m = (int(index) for index in empty.nonzero()[0])
        raise InvalidArgument(
            f"predictor.a, d and b are 0 for {predictor.targets[m]!r} at step {schedule.predicted_steps[n]}, which is "
            "predicted; compute that step, or calibrate again"
        )


def check_coefficient_shape(coef: tuple[int, ...], key: str, site: str, facts: Provenance) -> None:
    """A coefficient of this shape can meet the latent.

    At site guided it must broadcast against the latent as it is. What a call returns, and site hidden corrects, may
    be longer (reference tokens) or have several channels for one (a learned variance).
    """
    latent = facts.latent_shape
    channel = facts.channel_axis - (len(latent) + 1 if facts.channel_axis > 0 else 0)  # counted from the end
    fits = len(coef) <= len(latent)
    for axis, (size, own) in enumerate(zip(reversed(coef), reversed(latent), strict=False), 1):
        longer = site != "guided" and (size % own == 0 if -axis == channel else size > own)
        fits = fits and (size in (1, own) or longer)
    if not fits:
        raise InvalidArgument(
            f"{key} has coefficients of shape {list(coef)}, which do not broadcast against "
            f"provenance.latent_shape {list(latent)} with channels at axis {facts.channel_axis}; use one per channel, "
            "or calibrate again"
        )


def check_rectifier_rows(kappa: Tensor, beta: Tensor, schedule: Schedule, targets: int) -> None:
    """A rectifier [T, M, *] has the steps and targets of its profile, and corrects nothing that is computed."""
    if tuple(kappa.shape[:2]) != (schedule.T, targets):
        raise InvalidArgument(
            f"rectifier.kappa has shape {list(kappa.shape)} where {schedule.T} steps and "
            f"{targets} targets need [{schedule.T}, {targets}, *coefficient]"
        )
    for i in schedule.computed_steps:
        if kappa[i].any() or beta[i].any():
            raise InvalidArgument(
                f"the rectifier is not zero at step {i}, which is computed; nothing is corrected there: set it to 0"
            )


def check_compensation(compensation: Compensation, schedule: Schedule, site: str, facts: Provenance) -> None:
    """It corrects computed steps of what the solver receives, from raw outputs that there are."""
    if site != "guided":
        raise InvalidArgument(
            f"compensation corrects what the solver receives, and site is {site!r}; calibrate at site 'guided'"
        )
    axis = facts.channel_axis - (facts.channel_axis > 0)
    sizes = {
        "steps": (compensation.T, (schedule.T,)),
        "channels": (compensation.channels, (1, facts.latent_shape[axis])),
    }
    for name, (found, fitting) in sizes.items():
        if found not in fitting:
            raise InvalidArgument(
                f"compensation has {found} {name} where provenance.latent_shape {list(facts.latent_shape)} and "
                f"'{schedule}' need {' or '.join(map(str, fitting))}; calibrate again"
            )
    corrected = [i for i in range(schedule.T) if not compensation.is_identity(i)]
    if not corrected:
        raise InvalidArgument("compensation changes nothing; leave it out")
    for i in corrected:
        if not schedule.computed[i]:
            raise InvalidArgument(
                f"compensation corrects step {i} of '{schedule}', which is predicted; leave it as it is"
            )
        if compensation.reads_previous(i) and (i in facts.boundaries or not schedule.computed[i - 1]):
            raise InvalidArgument(
                f"compensation.previous is not 0 at step {i} of '{schedule}', before which this denoiser has not "
                "computed the output of a step; set its row to 0"
            )
