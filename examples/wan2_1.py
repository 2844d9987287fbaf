"""Wan2.1-T2V-1.3B at half of its steps: `python examples/wan2_1.py`; on a CPU `--model tiny-wan`."""

from job import run

if __name__ == "__main__":
    run(
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        {
            "height": 480,
            "width": 832,
            "num_frames": 81,
            "num_inference_steps": 50,
            "guidance_scale": 5.0,
            "negative_prompt": "",
        },
        kind="gif",
    )
