"""Environments with vLLM-Omni and SGLang: `python benchmarks/engines_environment.py ENGINE [FOLDER]`.

Each engine pins its own diffusers, and what it needs besides is for CUDA. So the releases are installed without their
dependencies beside what the environment that runs this has (torch, transformers), which is never touched, with the
diffusers that the engine asks for in front of ours and the few pure modules that its adapter imports.
"""

import sys
from pathlib import Path

from own_environment import OwnEnvironment, default_folder

_COMMON = (
    "aiohappyeyeballs==2.7.1", "aiohttp==3.14.5", "aiosignal==1.4.0", "attrs==26.1.0", "einops==0.8.2",
    "frozenlist==1.8.0", "gguf==0.19.0", "loguru==0.7.3", "msgspec==0.22.0", "multidict==7.2.1",
    "partial-json-parser==0.2.1.1.post7", "propcache==0.5.4", "pybase64==1.5.1", "pyzmq==27.3.0", "yarl==1.25.1",
)  # fmt: skip
#: vllm, which vLLM-Omni leaves to the user, is 0.9 GB; nothing that is compiled in it is used.
REQUIREMENTS = {
    "sglang": (
        "sglang==0.5.23", "diffusers==0.37.0", "addict==2.4.0", "apache-tvm-ffi==0.1.11", "compressed-tensors==0.18.0",
        "dill==0.4.1", "ipython==9.18.1", "orjson==3.13.0", "setproctitle==1.3.8", "traitlets==5.16.1",
        "triton==3.9.0", "xxhash==4.1.0", *_COMMON,
    ),
    "vllm-omni": (
        "vllm-omni==0.30.0", "vllm==0.30.0", "diffusers==0.40.0", "aenum==3.1.16", "apache-tvm-ffi==0.1.15.post2",
        "blake3==1.0.11", "cachetools==8.0.2", "cbor2==6.3.0", "cloudpickle==3.1.3", "diskcache==5.6.3",
        "janus==2.0.0", "llguidance==1.9.1", "msgpack==1.2.4", "omegaconf==2.4.0", "openai-harmony==0.0.8",
        "prettytable==3.18.0", "py-cpuinfo==9.0.0", "pydantic-settings==2.16.3", "python-dotenv==1.2.4",
        "tiktoken==0.14.0", "uvloop==0.23.0", "xgrammar==0.2.8", *_COMMON,
    ),
}  # fmt: skip
MARKER = "ertacache-engine.json"


def environment_of(engine: str) -> OwnEnvironment:
    """That of an engine."""
    command = f"python benchmarks/engines_environment.py {engine}"
    return OwnEnvironment(engine, MARKER, command, REQUIREMENTS[engine])


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in REQUIREMENTS:
        raise SystemExit(f"name an engine: {', '.join(REQUIREMENTS)}")
    chosen = Path(sys.argv[2]) if len(sys.argv) > 2 else default_folder(sys.argv[1])
    environment_of(sys.argv[1]).make(chosen.absolute())
