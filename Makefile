# `make demo` and `make test` do all the set-up themselves.
#   PYTHON  the Python to build the environment with (default python3)
#   VENV    folder of the environment (default .venv)
#   TASK    dataset of the demo: a folder with a dataset.json, or the name of one under data/

PYTHON ?= python3
VENV ?= .venv
TASK ?=
INSTALLED := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test coverage install lint

demo: $(INSTALLED)
	@"$(VENV)/bin/python" tools/demo.py $(if $(TASK),"$(TASK)")

test: lint
	OMP_NUM_THREADS=1 "$(VENV)/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(COVERAGE)

coverage: COVERAGE = --cov
coverage: test

install: $(INSTALLED)

lint: $(INSTALLED)
	"$(VENV)/bin/python" -m ruff check .
	"$(VENV)/bin/python" -m ruff format --check .
	"$(VENV)/bin/python" -m mypy

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
	  { echo 'Error: "$(PYTHON)" is not a Python 3.10 to 3.13. Name one: make $(MAKECMDGOALS) PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'Error: "$(PYTHON)" cannot make environments. On Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv "$(VENV)"
	@echo 'Installing into $(VENV): some minutes the first time.'
	"$(VENV)/bin/python" -m pip install -q --no-compile -c constraints.txt -e ".[test,lint]"
	@touch "$@"
