# make demo and make test are all that a newcomer needs; each makes .venv first if there is none.
# One target per check, so that a failing step of .ci/run is one command to repeat.
#
# PYTHON=…  the interpreter of .venv (3.11 or newer; otherwise the newest one that is found)
# VENV=…    another folder than .venv
# ARGS=…    for the command behind the target: make test ARGS="-k export -x"

VENV ?= .venv
ARGS ?=
bin := $(VENV)/bin

# Modules without I/O: whatever they do can be tested, so all of it is.
pure := aiopt/events.py,aiopt/ids.py,aiopt/plain.py,aiopt/codec.py,aiopt/config.py,aiopt/genome.py,aiopt/replay.py,aiopt/ranking.py,aiopt/rechoosing.py,aiopt/reproduce.py,aiopt/views/*.py,$\
aiopt/stats.py,aiopt/columnar.py,aiopt/batches.py,aiopt/batch_*.py,aiopt/pair_columns.py,aiopt/fitness.py,aiopt/standing.py,aiopt/*scoring.py,aiopt/weight_grid.py,aiopt/archive.py,aiopt/grid.py,aiopt/rules.py,aiopt/rule_changes.py,aiopt/pairs.py,aiopt/verdict.py,$\
aiopt/planning.py,aiopt/sequential.py,aiopt/calibration.py,aiopt/guards.py,aiopt/stage_progress.py,$\
aiopt/two_stage.py,aiopt/signed_rank.py,aiopt/other_tools.py,aiopt/comparisons.py,aiopt/budget.py,aiopt/audit.py,$\
aiopt/voiding.py,aiopt/evidence.py,aiopt/mechanism.py,aiopt/moved_lines.py,aiopt/causal.py,aiopt/benchmark_output.py,$\
aiopt/simulate.py,aiopt/metrics.py,aiopt/found.py,aiopt/db_bench.py,aiopt/criterion.py,aiopt/target.py,$\
aiopt/candidate.py,aiopt/settings.py,strategies/*.py

.PHONY: help demo test lint ruff format-check mypy imports format coverage bench bench-verdict \
	null-campaign claims-campaign strategy-study kill-suite dist venv clean

help:
	@echo "make demo        optimise targets/pyserver; the log goes to results/demo/"
	@echo "make test        all tests"
	@echo "make lint        ruff, format-check, mypy, imports (each is a target of its own)"
	@echo "make format      let ruff format the code"
	@echo "make coverage    tests with coverage; 100 % is required of the modules without I/O"
	@echo "make bench       measure aiopt itself"
	@echo "make bench-verdict  score every decision rule on noise (minutes)"
	@echo "make null-campaign  thirty patches that change nothing, none of which may be kept"
	@echo "make claims-campaign  evidence in a campaign, and a wrong claim that it has to flag (minutes)"
	@echo "make strategy-study  fifteen campaigns: which strategy gets the most out of a pool (hours)"
	@echo "make kill-suite  kill campaigns at every kind of moment and compare how they end"
	@echo "make dist        wheel and sdist in dist/"
	@echo "make venv        just .venv, with everything for development"
	@echo "make clean       remove .venv, caches and work folders; the results stay"

demo: $(VENV)/.aiopt-run
	PATH="$(abspath $(bin)):$$PATH" examples/demo/run.sh $(ARGS)

test: $(VENV)/.aiopt-test
	$(bin)/python -m pytest $(ARGS)

lint: ruff format-check mypy imports

ruff: $(VENV)/.aiopt-dev
	$(bin)/ruff check

format-check: $(VENV)/.aiopt-dev
	$(bin)/ruff format --check

mypy: $(VENV)/.aiopt-dev
	$(bin)/python -m mypy

imports: $(VENV)/.aiopt-dev
	$(bin)/lint-imports

format: $(VENV)/.aiopt-dev
	$(bin)/ruff format
	$(bin)/ruff check --fix

coverage: $(VENV)/.aiopt-test
	$(bin)/python -m coverage run -m pytest $(ARGS)
	$(bin)/python -m coverage report --skip-covered
	$(bin)/python -m coverage report --show-missing --fail-under=100 --include="$(pure)"

bench: $(VENV)/.aiopt-bench
	$(bin)/python -m tests.benchmarks $(ARGS)

bench-verdict: $(VENV)/.aiopt-test
	$(bin)/python -m tests.benchmarks.verdicts $(ARGS)

null-campaign: $(VENV)/.aiopt-test
	$(bin)/python -m tests.targets.null_campaign $(ARGS)

claims-campaign: $(VENV)/.aiopt-test
	$(bin)/python -m tests.targets.claims_campaign $(ARGS)

strategy-study: $(VENV)/.aiopt-test
	$(bin)/python -m tests.targets.strategy_study --results results/strategies $(ARGS)

kill-suite: $(VENV)/.aiopt-test
	$(bin)/python -m tests.kill_suite $(ARGS)

dist: $(VENV)/.aiopt-run
	rm -rf dist build
	$(bin)/python tools/dist.py dist

venv: $(VENV)/.aiopt-dev

# The stamps are chained, so that `make -j` never runs two installations at once.
$(VENV)/.aiopt-run: pyproject.toml tools/venv.sh
	tools/venv.sh "$(VENV)"
	@touch $@

$(VENV)/.aiopt-test: $(VENV)/.aiopt-run
	tools/venv.sh "$(VENV)" test
	@touch $@

$(VENV)/.aiopt-dev: $(VENV)/.aiopt-test
	tools/venv.sh "$(VENV)" dev
	@touch $@

$(VENV)/.aiopt-bench: $(VENV)/.aiopt-test
	tools/venv.sh "$(VENV)" bench
	@touch $@

clean:
	rm -rf "$(VENV)" build dist aiopt.egg-info htmlcov .coverage .coverage.* .benchmarks
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	for work in results/*/.work results/demo/*/.work; do \
	  if [ -d "$$work" ]; then chmod -R u+rwX "$$work" && rm -rf "$$work"; fi; \
	done
