# make run    set up, fetch the default model, serve it on 127.0.0.1:11434
# make test   set up, run every check and every test that this machine can (about 6 minutes)
# make test-neon  the kernels for 64-bit ARM, cross-compiled and run under qemu-user
# make check  format, lint, types, import rules, line budget
# make gate OLD=COMMIT  compare a commit with the newest one, and fail if 3 % are lost anywhere; NEW=COMMIT, GATE=options
# make bench  the two real models against llama-server and vLLM, where installed (docs/benchmarks); BENCH=options
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE_SOURCES := CMakeLists.txt $(wildcard native/*)

.PHONY: run setup dev test test-all test-neon check format gate bench native clean

run: setup
	@$(BIN)/corral serve --model smollm2:135m

setup: $(VENV)/.setup
dev: $(VENV)/.dev

# The project itself, built with its pinned build tools; editable, so Python sources are used in place.
$(VENV)/.setup: pyproject.toml $(NATIVE_SOURCES)
	@$(PYTHON) scripts/setup.py $(VENV)
	@touch $@

$(VENV)/.dev: $(VENV)/.setup
	@$(PYTHON) scripts/setup.py $(VENV) --dev
	@touch $@

# For work on the kernels, after `make dev`: builds only what changed, where the environment finds it. `install` makes a
# new file, as a server that runs has the old one in its memory.
native:
	@$(BIN)/cmake -S . -B build/native -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
		-Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir) -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) >/dev/null
	@$(BIN)/cmake --build build/native -j2
	@install build/native/_native*.so "$$($(BIN)/python -c 'import corral._native as native; print(native.__file__)')"

check: dev
	@$(BIN)/ruff format --check src tests scripts
	@$(BIN)/ruff check src tests scripts
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python scripts/size.py

format: dev
	@$(BIN)/ruff format src tests scripts
	@$(BIN)/ruff check --fix src tests scripts

test: check
	@$(BIN)/python -m pytest -q

test-all: check
	@$(BIN)/python -m pytest -q -m ""

test-neon: dev
	@$(BIN)/python -m pytest -v tests/executors/test_native_kernels.py

gate: dev
	@$(BIN)/python scripts/gate.py $(or $(OLD),main) $(or $(NEW),HEAD) $(GATE)

bench: dev
	@mkdir -p build
	@$(BIN)/corral bench compare --models smollm2:135m,gemma3:270m --load standard,shared-prefix,newcomer,mixed --idle 10 \
		$(if $(LLAMA_SERVER),--llama-server $(LLAMA_SERVER)) $(if $(VLLM),--vllm $(VLLM)) \
		--json build/bench.json --html build/bench.html $(BENCH)
	@$(BIN)/python scripts/accuracy.py

clean:
	rm -rf $(VENV) build .test-models
