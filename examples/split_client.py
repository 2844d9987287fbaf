"""The first steps on a server, the last ones and the decoding here.

There: `ertacache split-server stabilityai/stable-diffusion-xl-base-1.0 --host 0.0.0.0 --api-key KEY`. Here:

python examples/split_client.py http://server:8000 "a small red ring" --key KEY --switch 10

Pairs with the same latents and text encoders: SDXL and SSD-1B (segmind/SSD-1B), Wan2.1 14B and 1.3B
(Wan-AI/Wan2.1-T2V-14B-Diffusers, Wan-AI/Wan2.1-T2V-1.3B-Diffusers), Stable Diffusion 1.4 and BK-SDM
(CompVis/stable-diffusion-v1-4, nota-ai/bk-sdm-small). Both sides need the same solver: the server's `/` names it. We
have not run it on these weights. For a try on a CPU: `ertacache split-server tiny-flux`, and here
`--model tiny-flux --steps 10 --switch 4`.
"""

import argparse
import sys

import torch

from ertacache.errors import ErtacacheError
from ertacache.evaluation.sample_files import makes_clips
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.split import SplitClient


def main() -> None:
    parser = argparse.ArgumentParser(description="A run that a server begins and this machine ends.")
    parser.add_argument("server", help="address of `ertacache split-server`")
    parser.add_argument("prompt")
    parser.add_argument("--model", default="segmind/SSD-1B", help="the small one, of this machine")
    parser.add_argument("--key", help="that the server was started with")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--switch", type=int, default=10, help="steps of the server")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="make all steps here where the server fails")
    parser.add_argument("--out", default="split", help="file without its ending")
    given = parser.parse_args()

    pipe = load_pipeline(given.model)
    call = call_arguments(given.model, {"num_inference_steps": given.steps})
    call |= {"prompt": given.prompt, "generator": torch.Generator().manual_seed(given.seed)}
    try:
        made = SplitClient(given.server, given.key).generate(
            pipe, call, switch=given.switch, on_failure="local" if given.alone else "raise",
            progress=lambda where, step, steps: print(f"{where}: {step} of {steps}"),
        )  # fmt: skip
    except ErtacacheError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if makes_clips(pipe, call):
        from diffusers.utils import export_to_video

        export_to_video(made.frames[0], f"{given.out}.mp4")
    else:
        made.images[0].save(f"{given.out}.png")


if __name__ == "__main__":
    main()
