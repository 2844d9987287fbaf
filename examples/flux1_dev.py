"""FLUX.1-dev at half of its steps: `python examples/flux1_dev.py`; on a CPU `--model tiny-flux`."""

from job import run

if __name__ == "__main__":
    run(
        "black-forest-labs/FLUX.1-dev",
        {"height": 1024, "width": 1024, "num_inference_steps": 28, "guidance_scale": 3.5},
        kind="png",
    )
