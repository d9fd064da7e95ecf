# make quickstart   environment, installation, the whole story on the CPU
# make test         environment, installation, the tests
# make bench        the quick benchmarks -> output/benchmarks.json
# make lint         style and types
#
# VENV=/path uses another environment folder, PYTHON=/path another interpreter, ARGS="..." adds arguments.

VENV ?= .venv
PYTHON ?=
ARGS ?=
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
# Several processes share the cores: one thread each is fastest.
TEST_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help environment quickstart test bench lint

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -6

# The first Python that is new enough; bootstrap.py explains what is wrong with one that was named.
environment:
	@if [ -n "$(PYTHON)" ]; then exec "$(PYTHON)" tools/bootstrap.py --venv "$(VENV)"; fi; \
	for python in python3 python python3.13 python3.12 python3.11 python3.10 python3.14; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
			exec "$$python" tools/bootstrap.py --venv "$(VENV)"; \
		fi; \
	done; \
	echo "error: Python 3.10 or newer is needed, found $$(python3 --version 2>&1 || echo none); install it or name one by PYTHON=/path/to/python" >&2; \
	exit 2

quickstart: environment
	@$(VENV)/bin/python tools/quickstart.py $(ARGS)

test: environment
	OMP_NUM_THREADS=$(TEST_THREADS) $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile -q $(ARGS)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: environment
	@$(VENV)/bin/python tools/run_benchmarks.py $(ARGS)

lint: environment
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
