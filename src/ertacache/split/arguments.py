"""The call arguments that cross a split, with what each may be; whatever else a pipeline takes stays on its side."""

import math
from collections.abc import Mapping
from typing import Any

from ertacache.errors import InvalidArgument, UnsupportedPipeline
from ertacache.pipelines.inputs import is_text
from ertacache.pipelines.pipeline_call import defaults_of
from ertacache.profile.checks import MAX_STEPS
from ertacache.profile.sealed import is_list, short

#: Numbers, with the least and the greatest value.
NUMBERS: dict[str, tuple[float, float]] = {
    name: (-1e3, 1e3)
    for name in ("guidance_scale", "guidance_scale_2", "true_cfg_scale", "guidance_rescale", "eta", "frame_rate")
}
#: Whole numbers.
WHOLE: dict[str, tuple[int, int]] = {
    "num_inference_steps": (1, MAX_STEPS), "height": (1, 2**15), "width": (1, 2**15), "num_frames": (1, 2**13),
    "max_sequence_length": (1, 2**11), "clip_skip": (0, 64), "num_images_per_prompt": (1, 256),
    "num_videos_per_prompt": (1, 256),
}  # fmt: skip
#: Two whole numbers each: SDXL's sizes and corners.
PAIRS = tuple(
    prefix + name for prefix in ("", "negative_") for name in ("original_size", "target_size", "crops_coords_top_left")
)
#: How often a prompt is repeated.
COPIES = ("num_images_per_prompt", "num_videos_per_prompt")
#: What either side is given for itself.
OWN = (
    "callback_on_step_end", "callback_on_step_end_tensor_inputs", "output_type", "return_dict", "attention_kwargs",
    "joint_attention_kwargs", "cross_attention_kwargs",
)  # fmt: skip
#: What the first side is given, and the handover holds in another form: the grid, the noise, the latent.
_FIRST = ("generator", "latents", "sigmas", "timesteps")
_TEXTS, _CHARACTERS = 64, 2**16


def problem_of(name: str, value: object) -> str | None:
    """Why an argument cannot cross a split; None where it can."""
    bounds = NUMBERS.get(name) or WHOLE.get(name)
    if bounds is not None:
        kinds = (int,) if name in WHOLE else (int, float)
        if type(value) not in kinds or not bounds[0] <= value <= bounds[1]:  # type: ignore[operator]
            kind = "a whole number" if name in WHOLE else "a number"
            return f"is {short(value)} where {kind} from {bounds[0]:g} to {bounds[1]:g} belongs"
        return None
    if name in PAIRS:
        fits = is_list(value) and len(value) == 2 and all(type(n) is int and abs(n) <= 2**15 for n in value)
        return None if fits else f"is {short(value)} where two whole numbers up to {2**15} belong"
    if is_text(name):
        given: list[Any] = value if is_list(value) else [value]
        texts = [text for text in given if isinstance(text, str)]
        if 0 < len(texts) == len(given) <= _TEXTS and sum(map(len, texts)) <= _CHARACTERS:
            return None
        return f"is {short(value)} where up to {_TEXTS} texts of together {_CHARACTERS} characters belong"
    return f"is none of the arguments that cross a split ({', '.join((*NUMBERS, *WHOLE, *PAIRS))} and texts)"


def sent(pipe: Any, call: Mapping[str, Any], *, texts: bool) -> dict[str, Any]:
    """What of a call the other side is to be given, the pipeline's defaults included.

    Args:
        texts: whether the other side encodes them; it is given embeddings otherwise.

    Raises:
        InvalidArgument: an argument that the pipeline lacks or that cannot cross.
    """
    defaults = defaults_of(pipe)
    found: dict[str, Any] = {}
    for name in call:
        if name not in defaults:
            raise InvalidArgument(f"no argument {name!r}; {type(pipe).__name__} takes {', '.join(defaults)}")
    for name, value in {**defaults, **call}.items():
        given = list(value) if isinstance(value, tuple) else value
        crosses = name in NUMBERS or name in WHOLE or name in PAIRS or is_text(name)
        if not crosses and (name not in call or name in OWN or name in _FIRST or "prompt_embed" in name):
            continue
        if value is None or (is_text(name) and not texts) or (name in COPIES and not texts):
            continue
        if name not in call and problem_of(name, given) is not None:  # a default that is no value: `inspect` has none
            continue
        if (problem := problem_of(name, given)) is not None:
            raise InvalidArgument(f"{name} {problem}; run this call in one part, or leave {name} out")
        found[name] = given
    return found


def check_sent(call: Mapping[str, Any]) -> None:
    """Refuse arguments that could not have been sent: `InvalidArgument`."""
    for name, value in call.items():
        if (problem := problem_of(name, value)) is not None:
            raise InvalidArgument(f"call.{short(name)[1:-1]} {problem}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidArgument(f"call.{name} is {value}, which is no finite number")


def own(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the second side for itself: what it shows and decodes with, or another weight of guidance.

    Raises:
        InvalidArgument: one that is the handover's to say.
    """
    for name in call:
        if name not in defaults_of(pipe):
            raise InvalidArgument(f"no argument {name!r}; {type(pipe).__name__} takes {', '.join(defaults_of(pipe))}")
        if name not in OWN and name not in NUMBERS:
            raise InvalidArgument(
                f"{name} of the second part comes with the handover; give it in the call of the first part, and here "
                f"only {', '.join((*OWN, *NUMBERS))}"
            )
    return dict(call)


def check_interruptible(pipe: Any) -> None:
    """Refuse a pipeline that would go on to its last step.

    Raises:
        UnsupportedPipeline: its class does not look at `interrupt` between two steps.
    """
    if not isinstance(getattr(type(pipe), "interrupt", None), property):
        raise UnsupportedPipeline(
            f"{type(pipe).__name__} cannot be cut: it does not ask between two steps whether it was interrupted; use "
            "split(large, small, switch=...) in one process, or another pipeline of the model"
        )
