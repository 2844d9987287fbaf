"""CogVideoX-2b at half of its steps: `python examples/cogvideox_2b.py`; on a CPU `--model tiny-cogvideox`."""

from job import run

if __name__ == "__main__":
    run(
        "THUDM/CogVideoX-2b",
        {
            "height": 480,
            "width": 720,
            "num_frames": 49,
            "num_inference_steps": 50,
            "guidance_scale": 6.0,
            "negative_prompt": "",
        },
        kind="gif",
    )
