# `make demo` and `make test` set everything up in .venv and then run; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint house sanitize bench gpu-check gpu-bench clean

demo: $(VENV)/installed
	$(BIN)/python -m cldfast demo --out demo

# A process for each core, and one thread in each: threads of several processes get in each other's way.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/house.py

# Who imports whom, floor by floor.
house:
	$(PYTHON) tools/house.py

# The sanitizers' runtimes must be loaded before Python; its own leaks are none of ours.
sanitize: $(VENV)/installed
	CLDFAST_SANITIZE=address,undefined $(BIN)/python setup.py --quiet build \
	    --build-base build/sanitized --build-lib build/sanitized/lib
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 CLDFAST_SANITIZE=address,undefined \
	    PYTHONPATH=build/sanitized/lib $(BIN)/pytest -q tests/kernels/test_core.py \
	    tests/kernels/test_core_residual.py tests/kernels/test_core_seen.py \
	    tests/kernels/test_core_module.py \
	    tests/kernels/test_philox.py tests/kernels/test_time_tables.py \
	    tests/kernels/test_cuda_on_host.py

bench: $(VENV)/installed
	$(BIN)/python -m cldfast bench --out benchmarks/results

# On a machine with a GPU, by the Python that has PyTorch with CUDA; nothing is installed or downloaded.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

gpu-bench:
	$(PYTHON) benchmarks/gpu_bench.py

# What builds the core is installed here too, so that a changed source rebuilds incrementally.
$(VENV)/tools: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools pybind11 cmake ninja
	touch $@

# ninja and cmake are looked up on the PATH by the build.
$(VENV)/installed: $(VENV)/tools pyproject.toml setup.py $(wildcard csrc/*/*) csrc/CMakeLists.txt
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --editable '.[demo,dev,ode,triton,diffusers]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info cldfast/_core*.so cldfast/_cuda*.so
