"""benchmarks/gpu.py and the files beside it, loaded once, in the order in which they need each other."""

from typing import Any

from benchmark_scripts import load

build: Any = load("gpu_build")
models: Any = load("gpu_models")
clock: Any = load("gpu_clock")
measure: Any = load("gpu_measure")
quantised: Any = load("gpu_quantised")
variants: Any = load("gpu_variants")
report: Any = load("gpu_report")
run: Any = load("gpu_run")
gpu: Any = load("gpu")
