"""A large model begins, a small one of the same latents ends, on one machine: measure the switch, and draw by it.

python examples/split_pairs.py sdxl       # or wan, sd; `tiny` is for a try on a CPU

We have not run the published pairs; `tiny` is tiny-flux and nano-flux. Both models of a pair have to fit the memory of
the machine, or be given `--offload`, which keeps on the device what works.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import DDIMScheduler
from diffusers.utils import export_to_video

from ertacache.evaluation.sample_files import makes_clips
from ertacache.pipelines.loading import call_arguments, load_pipeline, read_prompts
from ertacache.split import calibrate_split, split


class Pair(NamedTuple):
    """Two models of one space of latents and texts, and how the large one is called."""

    large: str
    small: str
    call: dict[str, Any]
    ddim: bool = False  # in place of a solver that no price can be carried through, such as PNDM


PAIRS = {
    "sdxl": Pair("stabilityai/stable-diffusion-xl-base-1.0", "segmind/SSD-1B", {"num_inference_steps": 30}),
    "wan": Pair(
        "Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        {"height": 480, "width": 832, "num_frames": 81, "num_inference_steps": 50, "guidance_scale": 5.0},
    ),
    "sd": Pair("CompVis/stable-diffusion-v1-4", "nota-ai/bk-sdm-small", {"num_inference_steps": 25}, ddim=True),
    "tiny": Pair("tiny-flux", "nano-flux", {}),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="A run that a large model begins and a small one ends.")
    parser.add_argument("pair", choices=PAIRS)
    parser.add_argument("--cloud-budget", type=float, default=0.4, help="the large model's share of its own whole run")
    parser.add_argument("--prompts", type=Path, default=Path(__file__).parent / "prompts.txt")
    parser.add_argument("--steps", type=int, help="in place of the pair's own number")
    parser.add_argument("--offload", action="store_true", help="keep on the device what works")
    parser.add_argument("--out", default="split", help="file without its ending")
    given = parser.parse_args()

    pair = PAIRS[given.pair]
    offload = "model" if given.offload else "none"
    large, small = (load_pipeline(name, offload=offload) for name in (pair.large, pair.small))
    if pair.ddim:
        large.scheduler = DDIMScheduler.from_config(large.scheduler.config, clip_sample=False)
        small.scheduler = DDIMScheduler.from_config(small.scheduler.config, clip_sample=False)
    call = {**pair.call, **call_arguments(pair.large, {})}
    if given.steps is not None:
        call["num_inference_steps"] = given.steps
    prompts = read_prompts(given.prompts)
    profile = calibrate_split(large, small, prompts, cloud_budget=given.cloud_budget, batch_size=1, call=call)
    profile.save(f"{given.out}.json")
    with split(large, small, profile=profile) as stats:
        made = large(prompts[0], **call)
    print(f"switch {profile.switch}: {stats.calls[0]} calls of {pair.large}, {stats.calls[1]} of {pair.small}")
    if makes_clips(large, call):
        export_to_video(made.frames[0], f"{given.out}.mp4")
    else:
        made.images[0].save(f"{given.out}.png")


if __name__ == "__main__":
    main()
