# make demo | test | check | soak | sabotage | clean
#
# Needs Python 3.11 or newer and nothing else; everything is installed into .venv, once.
#   make demo PYTHON=/path/to/python3     chooses the interpreter
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                                         takes torch from there (on Linux: the small wheel without CUDA)
#
# Windows, without make (PowerShell):
#   py -3.11 -m venv .venv
#   .venv\Scripts\python -m pip install torch==2.13.0
#   .venv\Scripts\python -m pip install -c constraints.txt -e ".[test]"
#   .venv\Scripts\posttrain model fetch smollm2-135m-instruct
#   .venv\Scripts\posttrain run recipes/text2sql/pipeline.yaml
#   .venv\Scripts\python -m pytest -m "not gpu"

PYTHON ?=
TORCH_INDEX ?=
PIP_FLAGS ?= -qq
PYTEST_FLAGS ?=
SOAK_FLAGS ?=
SABOTAGE_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install $(PIP_FLAGS)
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.PHONY: demo test check soak sabotage clean

demo: $(VENV)/installed
	$(BIN)/posttrain model fetch smollm2-135m-instruct
	$(BIN)/posttrain run recipes/text2sql/pipeline.yaml
	@echo "The report: outputs/text2sql/report.md"

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -m "not gpu" -n logical --maxprocesses 4 --dist loadfile $(PYTEST_FLAGS)

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/check_links.py

# Kills runs of every stage 20 times each and compares what they end with: 15 minutes and more.
#   make soak SOAK_FLAGS="--stages ppo --kills 5 --seed 7"
soak: $(VENV)/installed-test
	$(BIN)/python scripts/soak.py $(SOAK_FLAGS)

# Puts one mistake after another into a copy of the package and sees whether a test fails: some minutes.
#   make sabotage SABOTAGE_FLAGS="--only models/ --jobs 4"
sabotage: $(VENV)/installed-test
	$(BIN)/python scripts/sabotage.py $(SABOTAGE_FLAGS)

# Results under outputs/ and saves/ stay.
clean:
	rm -rf $(VENV) build dist src/*.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/python-found:
	@set -e; \
	for candidate in "$(PYTHON)" python3.11 python3.12 python3.13 python3.14 python3 python; do \
	  if [ -n "$$candidate" ] && "$$candidate" -c \
	    'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "making $(VENV) with $$("$$candidate" --version)"; \
	    "$$candidate" -m venv $(VENV); touch $@; exit 0; \
	  fi; \
	done; \
	echo "no Python 3.11 or newer with venv was found: install one, or run make PYTHON=/path/to/python3" >&2; \
	exit 2

# torch first and by exact version, so that no other requirement can choose another build of it.
$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/python-found
	@echo "installing $(TORCH) and posttrain into $(VENV) (a few minutes, once)"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@echo "installing the test tools into $(VENV)"
	@$(PIP) -c constraints.txt -e ".[test]"
	@touch $@
