"""Options that several commands have or that belong together, each described once.

Words and numbers are checked when they are parsed.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from ertacache.calibration.defaults import DEFAULTS

#: Prompt n starts from seed + n; a profile keeps 63 bits.
_LARGEST_SEED = 2**63 - 1


def whole(least: int, most: int | None = None) -> Callable[[int | None], int | None]:
    """A check for numbers from `least` to `most`, that names the number, as typer's own does not in every release."""
    bounds = f"{least} or more" if most is None else f"a number from {least} to {most}"

    def check(value: int | None) -> int | None:
        if value is not None and (value < least or (most is not None and value > most)):
            raise typer.BadParameter(f"{value}; give {bounds}.")
        return value

    return check


def finite(value: float | None) -> float | None:
    """Refuse NaN and infinity, which no range of an option catches."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number.")
    return value


def numbers(text: str | None) -> tuple[float, ...] | None:
    """'3.5,5,7' as numbers; None where nothing was given."""
    if text is None:
        return None
    try:
        found = tuple(map(float, text.split(",")))
    except ValueError:
        raise typer.BadParameter(f"{text!r}; give a number, or several separated by commas, such as 3.5,5,7.") from None
    for value in found:
        finite(value)
    return found


def sizes(texts: list[str] | None) -> list[tuple[int, ...]] | None:
    """'480x832x81' as (480, 832, 81); None where nothing was given."""
    for text in texts or ():
        if not re.fullmatch(r"\d{1,6}([x×]\d{1,6}){1,2}", text, re.ASCII):
            raise typer.BadParameter(f"{text!r}; give HEIGHTxWIDTH, of clips HEIGHTxWIDTHxFRAMES, such as 768x1344.")
    return [tuple(map(int, re.split("[x×]", text))) for text in texts] if texts else None


def each(check: Callable[[Any], Any]) -> Callable[[list[Any] | None], list[Any] | None]:
    """A check of every value of an option that may be given several times; None where nothing was given."""
    return lambda values: [check(value) for value in values] if values else None


def share(value: float) -> float:
    """Refuse what is no share between 0 and 1, both excluded."""
    if not 0 < value < 1:
        raise typer.BadParameter(f"{value} is no share between 0 and 1, such as 0.25.")
    return value


def number_or_word(text: str | None, number: type[int] | type[float]) -> int | float | str | None:
    """'3' as a number, 'auto' as itself; None where nothing was given."""
    if text is None:
        return None
    try:
        return number(text)
    except ValueError:
        return text


class Placement(NamedTuple):
    """Where and how a model is loaded; see `pipelines.loading.load_pipeline`."""

    device: str | None
    dtype: str | None
    offload: Literal["none", "model", "group", "sequential"]


class Spread(NamedTuple):
    """The actors that runs are spread over, and the GPUs of each; see `ertacache.ray.map`."""

    ray_actors: int | None
    num_gpus: float | None


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


Model = Annotated[str, typer.Argument(help="Bundled model (`zoo list` names them), diffusers folder or Hub id.")]
Device = Annotated[
    str | None, typer.Option(help="Where to run, as torch names it; CUDA where there is one, else the CPU.")
]
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option(help="Of the weights; bfloat16 on an accelerator, float32 on the CPU."),
]
_Offload = Annotated[
    Literal["none", "model", "group", "sequential"],
    typer.Option(help="What waits in the host's memory: nothing, whole components, layers by groups, or one by one."),
]
Steps = Annotated[int | None, typer.Option("--num-inference-steps", callback=whole(1), help="Solver steps.")]
_Guidance = Annotated[
    float | None, typer.Option("--guidance-scale", callback=finite, help="Guidance as the pipeline takes it.")
]
_Scales = Annotated[
    str | None,
    typer.Option(
        "--guidance-scale",
        callback=numbers,
        help="Guidance as the pipeline takes it. Several, such as 3.5,5,7: one profile for all between them (of "
        "true_cfg_scale, where a negative prompt turns that on).",
    ),
]
_TrueCfg = Annotated[
    float | None,
    typer.Option("--true-cfg-scale", callback=finite, help="Two-branch guidance, where it is separate."),
]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="Negative prompt; '' is one too.")]
#: Fewer pixels than this leave the smallest latent without an entry.
_Height = Annotated[int | None, typer.Option(callback=whole(16), help="Pixels.")]
_Width = Annotated[int | None, typer.Option(callback=whole(16), help="Pixels.")]
_Frames = Annotated[int | None, typer.Option("--num-frames", callback=whole(1), help="Frames of a video.")]
SeveralPrompts = Annotated[
    list[str] | None, typer.Option("--prompt", help="A prompt; give it again for each further one.")
]
PromptFile = Annotated[Path | None, typer.Option("--prompts", help="Text file, one prompt a line.")]
CalibrationFile = Annotated[Path | None, typer.Option(help="Text file; none of them may be in --prompts.")]
History = Annotated[
    Literal["cpu"] | None,
    typer.Option("--offload-history", help="cpu: histories of profiles wait in the host's memory. Same results."),
]
Seed = Annotated[
    int, typer.Option(callback=whole(0, _LARGEST_SEED), help="Prompt n starts from the noise of seed + n.")
]
OptionalSeed = Annotated[
    int | None, typer.Option(callback=whole(0, _LARGEST_SEED), help="Prompt n starts from the noise of seed + n.")
]
_Actors = Annotated[
    int | None, typer.Option(callback=whole(1), help="Actors of Ray, each with the model, to spread the runs over.")
]
_Gpus = Annotated[
    float | None, typer.Option(callback=finite, help="GPUs of each of the --ray-actors: 1, a share, or 0 for CPUs.")
]
BatchSize = Annotated[
    int | None,
    typer.Option(callback=whole(1), help="Prompts per pipeline call of a calibration; all at once by default."),
]
Checkpoint = Annotated[Path | None, typer.Option(help="Folder to continue an interrupted calibration from.")]
Samples = Annotated[int, typer.Option(callback=whole(0), help="Prompts whose pictures or clips are kept.")]


_CALL: dict[str, tuple[Any, Any]] = {
    "num_inference_steps": (Steps, None),
    "guidance_scale": (_Guidance, None),
    "true_cfg_scale": (_TrueCfg, None),
    "negative_prompt": (Negative, None),
    "height": (_Height, None),
    "width": (_Width, None),
    "num_frames": (_Frames, None),
}


def _rows(name: str, what: str) -> str:
    """The help of an option whose default is the method's."""
    values = (f"{method}: {getattr(row, name)}" for method, row in DEFAULTS.items() if getattr(row, name) is not None)
    return f"{what} Default of {', of '.join(values)}."


def _expert(**values: Any) -> dict[str, Any]:
    """What `calibrate` takes: a depth and a strength as numbers."""
    history, timesteps = number_or_word(values["history"], int), number_or_word(values["timesteps"], float)
    return {**values, "history": history, "timesteps": timesteps}


#: The choices that fix a plan; what is not given is the method's.
_EXPERT: dict[str, Any] = {
    "schedule": Annotated[
        str | None, typer.Option(help=_rows("schedule", "uniform, policy, or text such as '#.#.##'."))
    ],
    "basis": Annotated[
        Literal["reuse", "residual", "fitted"] | None, typer.Option(help=_rows("basis", "What is predicted from."))
    ],
    "site": Annotated[
        Literal["output", "guided", "hidden"] | None, typer.Option(help=_rows("site", "Where it is predicted."))
    ],
    "history": Annotated[
        str | None, typer.Option(help=_rows("history", "Depth of the fitted predictor, or auto: measured."))
    ],
    "aim": Annotated[
        Literal["step", "trajectory", "auto"] | None, typer.Option(help=_rows("aim", "What is fitted to."))
    ],
    "timesteps": Annotated[
        str | None, typer.Option(help=_rows("timesteps", "none, paper, auto, or a strength from 0 to 1."))
    ],
    "rectifier": Annotated[
        Literal["none", "scalar", "channel", "element"] | None,
        typer.Option(help=_rows("rectifier", "Granularity of the correction.")),
    ],
    "activation": Annotated[
        Literal["linear", "sigmoid"] | None,
        typer.Option(help=_rows("activation", "Of the rectifier; sigmoid is the paper's literal one.")),
    ],
}
#: Parameters of commands that stand for several options: what is made of their values, and name, annotation, default.
GROUPS: dict[str, tuple[Any, dict[str, tuple[Any, Any]]]] = {
    "call": (_given, _CALL),
    "calls": (_given, {**_CALL, "guidance_scale": (_Scales, None)}),
    "expert": (_expert, {name: (option, None) for name, option in _EXPERT.items()}),
    "placement": (Placement, {"device": (Device, None), "dtype": (Dtype, None), "offload": (_Offload, "none")}),
    "spread": (Spread, {"ray_actors": (_Actors, None), "num_gpus": (_Gpus, None)}),
}
