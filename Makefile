# Both `make demo` and `make test` work on a fresh clone: they create .venv and install what they need.
PYTHON ?= python3
MODEL ?= tiny-flux
BIN := .venv/bin

.PHONY: demo test lint bench ablation ablation-video compare compare-video clean

demo: .venv/.ok
	$(BIN)/ertacache demo $(MODEL) --out out/demo

test: .venv/.ok lint
	$(BIN)/python -m pytest

lint: .venv/.ok
	$(BIN)/ruff check src tests zoo benchmarks
	$(BIN)/ruff format --check src tests zoo benchmarks
	$(BIN)/pyright

# Denoising speed-up at half the steps, and the price of a predicted step; rewrites benchmarks/results/speed.json.
bench: .venv/.ok
	$(BIN)/python benchmarks/speed.py

# The ablation table of the README; about 25 minutes on two cores. Rewrites benchmarks/results/ablation.
ablation: .venv/.ok
	$(BIN)/python benchmarks/ablation.py

# The same on clips, with the two video models and their published solvers. Rewrites benchmarks/results/ablation-video.
ablation-video: .venv/.ok
	$(BIN)/python benchmarks/ablation.py --models videos

# Every compared method at half and a third of the operations; about 25 minutes on two cores.
compare: .venv/.ok
	$(BIN)/ertacache compare --model tiny-flux --out benchmarks/results/compare/tiny-flux
	$(BIN)/ertacache compare --model tiny-flux-base --true-cfg-scale 7 --out benchmarks/results/compare/tiny-flux-base

# The same on clips, at half of the operations; about 80 minutes on two cores.
compare-video: .venv/.ok
	$(BIN)/ertacache compare --model tiny-wan --match-cost .5 --out benchmarks/results/compare/tiny-wan
	$(BIN)/ertacache compare --model tiny-cogvideox --match-cost .5 --out benchmarks/results/compare/tiny-cogvideox

.venv/.ok: pyproject.toml zoo/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]" -e zoo
	touch $@

clean:
	rm -rf .venv out
