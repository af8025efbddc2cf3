# Every target sets up by itself what it needs: a machine with Python 3.11+ and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test bench setup clean

demo: $(READY)
	@$(BIN)/python -m demo --out demo-out

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest

bench: $(READY)
	$(BIN)/python -m tests.bench --write tests/bench/RESULTS.md

setup: $(READY)

# uv where it is to be had (20 seconds), pip otherwise (minutes). requirements.txt pins what was tested together.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "shardweave needs Python 3.11 or newer; found $$($(PYTHON) --version)"; exit 2)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv 2>/dev/null || true
	@if [ -x $(BIN)/uv ]; then $(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.txt && $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .; \
	else $(BIN)/python -m pip install --quiet -r requirements.txt && $(BIN)/python -m pip install --quiet --no-deps -e .; fi
	@touch $@

clean:
	rm -rf $(VENV) demo-out .pytest_cache .ruff_cache .hypothesis
