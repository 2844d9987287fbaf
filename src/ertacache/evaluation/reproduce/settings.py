"""How each model is run for the paper's tables: weights, call, noise, memory, and where it departs from the paper."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ertacache.errors import InvalidArgument, meant
from ertacache.evaluation.reproduce.paper_figures import TITLES

FIGURE5 = "figure5"
FIGURES = ("figure2", "figure3", "figure4", FIGURE5, "figure6")
#: Figures of pictures side by side.
PICTURES = ("figure3", "figure4")


def _figures(model: str) -> dict[str, str]:
    """Every figure, with λ and speed-up of one of the paper's models."""
    return dict.fromkeys(FIGURES, model)


@dataclass(frozen=True, slots=True)
class Part:
    """One component of a pipeline.

    Attributes:
        millions: of parameters.
        activations: GiB that it needs beside its weights for one sample, in 16 bits; estimated, not measured.
        bytes: per parameter, where it is kept in another width than the rest.
    """

    name: str
    millions: float
    activations: float
    bytes: int | None = None

    def weights(self, width: int) -> float:
        """GiB of its weights; `width` is the pipeline's bytes per parameter."""
        return self.millions * 1e6 * (self.bytes or width) / 2**30


@dataclass(frozen=True)
class Setting:
    """One model.

    Attributes:
        source: Hub id, or the name of a bundled model.
        tables: table or figure -> the model whose printed rows it is held against, or has its λ and speed-up from.
        call: arguments of the pipeline call; those of a bundled model are in its folder.
        dtype: of the weights.
        seeds: table -> runs per prompt; 1 where it is not named.
        seed: of the first prompt's noise. Not the paper's 0: calibration has taken the noise from there on.
        parts: for the memory check; none for the bundled models.
        caches: GiB that the most hungry method of its tables keeps between steps; estimated.
        flow_shift: FlowMatchEulerDiscreteScheduler with this shift takes the place of the shipped solver.
        float32_vae: whether the autoencoder stays in float32.
        prompts: which prompts the paper used.
        remarks: on what is run, for the table.
    """

    model: str
    source: str
    tables: Mapping[str, str]
    call: Mapping[str, Any] = field(default_factory=dict[str, Any])
    dtype: str = "float32"
    seeds: Mapping[str, int] = field(default_factory=dict[str, int])
    seed: int = 10_000
    parts: tuple[Part, ...] = ()
    caches: float = 0.0
    flow_shift: float | None = None
    float32_vae: bool = False
    prompts: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def bundled(self) -> bool:
        """Whether the weights come with this package, and are not those that the paper measured."""
        return not self.parts


_VBENCH = (
    "the paper used the 946 entries of VBench_full_info.json (field prompt_en), with 5 seeds each in Table 1 and one, "
    "seed 0, in Table 3"
)
_COCO = "the paper used captions of MS COCO 2014 (validation); which ones is not published"
_T5 = Part("T5-XXL encoder", 4762.3, 0.3)

FLUX = Setting(
    model="flux.1-dev",
    source="black-forest-labs/FLUX.1-dev",
    tables={"table2": "flux.1-dev", "table3": "flux.1-dev", "table4": "flux.1-dev", **_figures("flux.1-dev")},
    call={
        "num_inference_steps": 30, "height": 1024, "width": 1024, "guidance_scale": 3.5, "max_sequence_length": 512,
    },
    dtype="bfloat16",
    parts=(
        Part("transformer", 11901.4, 0.6), _T5, Part("CLIP-L text encoder", 123.1, 0.1), Part("VAE", 83.8, 3.5),
    ),
    caches=0.1,  # TeaCache's residual, 4096 x 3072 in 16 bits, and a few latents
    prompts=_COCO,
    remarks=("the size of the images and the guidance are not in the paper: 1024 x 1024 and 3.5, the defaults",),
)  # fmt: skip

WAN = Setting(
    model="wan2.1-1.3b",
    source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    tables={"table1": "wan2.1-1.3b", "table3": "wan2.1-1.3b", **_figures("wan2.1-1.3b")},
    call={
        "num_inference_steps": 50, "height": 480, "width": 832, "num_frames": 81, "guidance_scale": 5.0,
        "negative_prompt": "",
    },
    dtype="bfloat16",
    seeds={"table1": 5},
    parts=(
        Part("transformer", 1419.0, 2.5), Part("UMT5-XXL encoder", 5680.9, 0.4), Part("VAE", 126.9, 6.0, bytes=4),
    ),
    caches=5.6,  # ProfilingDiT: 30 blocks x 2 branches x 32760 x 1536 in 16 bits
    flow_shift=3.0,
    float32_vae=True,
    prompts=_VBENCH,
    remarks=(
        "Euler with shift 3 in place of the shipped UniPC: the paper's Eq. 4 to 14 are Euler's",
        "guidance 5 and an empty negative prompt, the defaults of diffusers; the model's own code has a long negative "
        "prompt, which --negative-prompt takes",
    ),
)  # fmt: skip

COGVIDEOX = Setting(
    model="cogvideox-2b",
    source="zai-org/CogVideoX-2b",
    tables={"table1": "cogvideox-2b", **_figures("cogvideox-2b")},
    call={"num_inference_steps": 50, "height": 480, "width": 720, "num_frames": 49, "guidance_scale": 6.0},
    dtype="float16",
    seeds={"table1": 5},
    parts=(Part("transformer", 1693.8, 3.0), _T5, Part("VAE", 215.6, 20.0)),
    caches=7.6,  # FasterCache: two attention outputs of 30 blocks, 2 x 17776 x 1920 in 16 bits each
    prompts=_VBENCH,
    remarks=(
        "the timestep adjustment of ERTACache on the grid of DDIM's angles; how the paper adjusted it is not said",
        "49 frames, where the paper says 48: the model's own number",
    ),
)

OPEN_SORA = Setting(
    model="open-sora-1.2",
    source="hpcai-tech/OpenSora-STDiT-v3",
    tables={
        "table1": "open-sora-1.2", "table3": "wan2.1-1.3b", "table4": "open-sora-1.2", **_figures("open-sora-1.2"),
    },
    call={
        "num_inference_steps": 30, "resolution": "480p", "aspect_ratio": "9:16", "num_frames": 51,
        "guidance_scale": 7.0,
    },
    dtype="bfloat16",
    seeds={"table1": 5},
    parts=(
        Part("transformer", 1208.9, 1.4), Part("T5-XXL encoder", 4762.3, 0.5, bytes=4), Part("VAE", 393.3, 4.0),
    ),
    caches=11.5,  # T-GATE and PAB: 56 blocks x 2 attentions x 2 x 23850 x 1152 in 16 bits
    prompts=_VBENCH,
    remarks=(
        "the aspect ratio is not in the paper: 9:16, 854 x 480, with an aesthetic score of 6.5 behind every prompt, "
        "the model's own defaults",
    ),
)  # fmt: skip

_TINY_TABLES = {
    "table1": "open-sora-1.2",
    "table2": "flux.1-dev",
    "table3": "flux.1-dev",
    "table4": "flux.1-dev",
    **_figures("flux.1-dev"),
}
TINY = (
    Setting("tiny-flux", "tiny-flux", _TINY_TABLES),
    Setting("tiny-flux-base", "tiny-flux-base", _TINY_TABLES),
    Setting("tiny-wan", "tiny-wan", WAN.tables),
    Setting("tiny-cogvideox", "tiny-cogvideox", COGVIDEOX.tables),
    Setting("tiny-open-sora", "tiny-open-sora", OPEN_SORA.tables),
)

SETTINGS = (FLUX, WAN, COGVIDEOX, OPEN_SORA, *TINY)


def setting_of(table: str, model: str) -> Setting:
    """How a model is run for a table or a figure.

    Raises:
        InvalidArgument: no such table or model, or a table that the paper does not have for it.
    """
    if table not in TITLES:
        raise InvalidArgument(f"{table!r} is nothing that can be reproduced; choose {', '.join(TITLES)}")
    for setting in SETTINGS:
        if setting.model == model:
            break
    else:
        names = [s.model for s in SETTINGS]
        raise InvalidArgument(f"{model!r} has no settings here; choose {', '.join(names)}{meant(model, names)}")
    if table not in setting.tables:
        served = ", ".join(s.model for s in SETTINGS if table in s.tables)
        raise InvalidArgument(f"the paper has no {table} for {model}; choose {served}")
    return setting
