"""What a newcomer does first, with the packages as installed: import, load, calibrate, apply."""

import sys
from pathlib import Path

import ertacache
from ertacache.pipelines.bundled import calibration_prompts
from ertacache.pipelines.loading import call_arguments, load_pipeline

STEPS, COMPUTED = 8, 4

if __name__ == "__main__":
    if "site-packages" not in ertacache.__file__:
        sys.exit(f"{ertacache.__file__} is no installed package")
    pipe = load_pipeline("tiny-flux")
    call = {**call_arguments("tiny-flux", {}), "num_inference_steps": STEPS}
    prompts = calibration_prompts(6)
    profile = ertacache.calibrate(pipe, prompts, compute_steps=COMPUTED, **call)
    path = profile.save(Path("smoke.safetensors"))
    with ertacache.apply(pipe, ertacache.Profile.load(path)) as stats:
        image = pipe(prompts[0], **call).images[0]
    if image.size != (64, 64) or sum(stats.computed.values()) != COMPUTED:
        sys.exit(f"a picture of {image.size}, with {stats}")
    print(f"ertacache {ertacache.__version__}: {profile.schedule}, {dict(stats.computed)} of {STEPS} steps computed")
