# Two commands on a fresh machine: `make demo` and `make test` set up what they need.
PYTHON ?= python3
BIN := .venv/bin
ifneq ($(wildcard ../shared/data/README.md),)
export LATTICEWORK_DATA ?= $(abspath ../shared/data)
endif
export OMP_NUM_THREADS ?= 1
export NUMBA_NUM_THREADS ?= 2

.PHONY: venv demo test lint format bench evidence tables docs clean browser

venv: .venv/ready
.venv/base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[tune]'
	touch $@
.venv/ready: .venv/base
	$(BIN)/pip install -q -c constraints.txt -e '.[all,dev,docs]'
	touch $@

DEMO := digits-knn -m logistic-regression,mlp,gcn,dagnn,fastrp:128 --repeats 5 --classic 2
demo: .venv/base
	$(BIN)/latticework compare $(DEMO) --jobs 2 --runs runs/demo -o report.html

# The report is looked at in a real browser; without one that test skips and says so.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	  echo "no chromium: the browser check will skip"

test: venv browser
	$(BIN)/python -m pytest -n 2

lint: venv
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

bench: venv
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/run.py

evidence: venv
	$(BIN)/latticework reproduce $(sort $(basename $(notdir $(wildcard src/latticework/*/evidence/*.toml)))) --record

# The tables go on from their recorded cells; Ctrl-C records what is finished by then.
TABLES ?= nodes links recommendation temporal signed graphs points
tables: venv
	for table in $(TABLES); do $(BIN)/latticework reproduce $$table --resume --record || exit 1; done

docs: venv
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build -q -W -b html docs docs/_build/html

clean:
	rm -rf build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
