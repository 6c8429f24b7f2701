# Two commands do all set-up on a fresh machine: `make demo` runs the main job, `make test` runs every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: demo test check lab notebooks lock browser clean

# ENGINE=temporal runs it as workflows, with a worker process and an embedded Temporal server.
demo: $(READY)
	@$(BIN)/workbench demo $(if $(ENGINE),--engine $(ENGINE))

test: $(READY) browser
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist loadscope
	@home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && \
	  WORKBENCH_HOME="$$home" $(BIN)/pytest --nbval --nbval-cell-timeout 300 notebooks

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -m "not slow" -n 2 --dist loadscope

lab: $(READY)
	WORKBENCH_HOME="$(CURDIR)/.workbench" $(BIN)/jupyter lab --notebook-dir=notebooks \
	  $$([ "$$(id -u)" = 0 ] && echo --allow-root)

# Executes the notebooks again, outputs included.
notebooks: $(READY)
	WORKBENCH_HOME="$(CURDIR)/.workbench" $(BIN)/jupyter nbconvert --to notebook --execute --inplace notebooks/*.ipynb

# The set-up: a virtual environment with the pinned lock. PIP_FIND_LINKS, where set, is where torch's CPU build lies;
# elsewhere uv takes it from PyTorch's own index.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) tools/setup_environment.py $(VENV)
	@touch $@

lock: $(READY)
	$(BIN)/python tools/compile_lock.py

# Browser tests want Debian's chromium; without root or apt they are skipped with a reason.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    { echo "installing chromium for the browser tests"; \
	      { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1; }; } || \
	  echo "no chromium here: the browser tests will be skipped"

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
