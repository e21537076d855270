# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/quickstart
WORKERS ?= 2

.PHONY: env demo test lint clean

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@echo "installing into $(VENV), several GB with PyTorch: this takes minutes" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,timm]'
	@touch $@

# Exit code 3 of demport is a verdict, "inconclusive", e.g. on a busy machine; the report says why.
demo: env
	@$(BIN)/demport run configs/quickstart.yaml --out $(OUT) || test $$? -eq 3
	@echo "report: $(abspath $(OUT))/report.html"

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

clean:
	rm -rf runs build .venv-server *.egg-info .mypy_cache .pytest_cache .ruff_cache
