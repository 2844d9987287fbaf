# Every target works on a fresh clone: it creates .venv and installs what it needs.
PYTHON ?= python3
MODEL ?= tiny-flux
WORKERS ?= 2
BIN := .venv/bin
FLOORS := .venv-floors/bin

# Beside another job idle threads that spin cost more than they save.
export OMP_WAIT_POLICY := PASSIVE
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: install demo test test-slow test-all test-combinations test-floors lint docs reports dist test-dist
.PHONY: bench gpu ablation ablation-video compare compare-video frontier clean

install: .venv/.ok

demo: .venv/.ok
	$(BIN)/ertacache demo $(MODEL) --out out/demo

test: .venv/.ok lint
	$(PYTEST) -m "not slow"

# Whole trainings, compiled models, killed processes, whole reproductions.
test-slow: .venv/.ok
	$(PYTEST) -m slow

test-all: test test-slow

# What a profile is combined with, with the libraries that are not installed for the other tests: torchao is imported
# by every process that imports diffusers. A file in one process: what its tests find, its page is compared with.
test-combinations: .venv-combinations/.ok
	PYTHONPATH=.venv-combinations $(PYTEST) --dist loadfile tests/test_combinations.py tests/test_compiled.py tests/test_serving_lora.py
	PYTHONPATH=.venv-combinations $(PYTEST) -k torchao tests/test_fake_quantizer.py tests/test_quantize_cli.py

# What the lower bounds of pyproject.toml promise: exactly they are installed, and it calibrates, applies and saves.
test-floors: .venv-floors/.ok
	OMP_NUM_THREADS=1 $(FLOORS)/python -m pytest tests/test_calibrate.py tests/test_runtime.py tests/test_profile.py

lint: .venv/.ok
	$(BIN)/ruff check src tests zoo benchmarks comfyui-ertacache examples docs .ci
	$(BIN)/ruff format --check src tests zoo benchmarks comfyui-ertacache examples docs .ci
	$(BIN)/pyright

docs: .venv/.docs
	$(BIN)/mkdocs build --strict

# report.html beside every result file that is kept in the tree.
reports: .venv/.ok
	$(BIN)/python benchmarks/reports.py

# Wheels and source distributions of both packages, as they would be published.
dist: .venv/.ok
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir dist zoo
	$(BIN)/twine check --strict dist/*
	$(BIN)/python .ci/check_dist.py dist

# The wheels in an environment of their own: load a bundled model, calibrate and apply.
test-dist: dist
	rm -rf .venv-dist
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	cd .venv-dist && bin/python ../.ci/smoke.py

# Denoising speed-up at half the steps, and the price of a predicted step; rewrites benchmarks/results/speed.json.
bench: .venv/.ok
	$(BIN)/python benchmarks/speed.py

# Full-size models with random weights, on a machine with CUDA and an environment that has its torch: docs/gpu.md.
gpu:
	$(PYTHON) benchmarks/gpu.py --minutes 8

# The ablation table; about 25 minutes on two cores. Rewrites benchmarks/results/ablation.
ablation: .venv/.ok
	$(BIN)/python benchmarks/ablation.py
	$(BIN)/python benchmarks/compact.py benchmarks/results/ablation

# The same on clips, with the three video models and their published solvers. Rewrites benchmarks/results/ablation-video.
ablation-video: .venv/.ok
	$(BIN)/python benchmarks/ablation.py --models videos
	$(BIN)/python benchmarks/compact.py benchmarks/results/ablation-video

# Every compared method at half and a third of the operations; about 25 minutes on two cores.
compare: .venv/.ok
	$(BIN)/ertacache compare --model tiny-flux --out benchmarks/results/compare/tiny-flux
	$(BIN)/ertacache compare --model tiny-flux-base --true-cfg-scale 7 --out benchmarks/results/compare/tiny-flux-base
	$(BIN)/python benchmarks/compact.py benchmarks/results/compare/tiny-flux benchmarks/results/compare/tiny-flux-base

# The same on clips, at half of the operations; about 80 minutes on two cores.
compare-video: .venv/.ok
	$(BIN)/ertacache compare --model tiny-wan --match-cost .5 --out benchmarks/results/compare/tiny-wan
	$(BIN)/ertacache compare --model tiny-cogvideox --match-cost .5 --out benchmarks/results/compare/tiny-cogvideox
	$(BIN)/ertacache compare --model tiny-open-sora --match-cost .5 --out benchmarks/results/compare/tiny-open-sora
	$(BIN)/python benchmarks/compact.py $(addprefix benchmarks/results/compare/,tiny-wan tiny-cogvideox tiny-open-sora)

# Every method and the recommended plan at T/2 to T/5, on all models, each at two guidances or three: a day on two cores.
# Killed, it goes on where it was; docs/frontier.md says how to share the work among processes.
frontier: .venv/.ok
	$(BIN)/python benchmarks/frontier.py
	$(BIN)/python benchmarks/frontier.py --merge
	$(BIN)/python benchmarks/frontier_plot.py
	$(BIN)/python benchmarks/readme_table.py

.venv/.ok: pyproject.toml zoo/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]" -e zoo
	touch $@

.venv/.docs: .venv/.ok
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

.venv-combinations/.ok: .venv/.ok
	$(BIN)/python -m pip install --quiet --no-deps --target .venv-combinations -c constraints.txt gguf peft torchao
	touch $@

.venv-floors/.ok: pyproject.toml zoo/pyproject.toml .ci/floors.py
	$(PYTHON) -m venv .venv-floors
	$(FLOORS)/python -m pip install --quiet --upgrade pip
	$(PYTHON) .ci/floors.py > .venv-floors/floors.txt
	$(FLOORS)/python -m pip install --quiet -c .venv-floors/floors.txt -e . -e zoo pytest
	touch $@

clean:
	rm -rf .venv .venv-combinations .venv-floors .venv-dist dist out
