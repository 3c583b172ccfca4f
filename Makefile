# make demo, make test: from a fresh clone with nothing but Python 3.11 or newer installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The packages that build this one have pinned versions too; older pips know the first name only.
PIN := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
INSTALL := $(PIN) $(BIN)/pip install --quiet --disable-pip-version-check
TEMPLATE := from sys import stdout; from orchestrator.hosts.systemd.unit import template_unit; stdout.write(template_unit

# Tests start this package in a thousand processes, each of which would compile it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast test-lowest fuzz lock audit lint docs package matrix bench units cli-reference survival recording clean

demo: $(VENV)/.ready  ## Train, stop, resume, kill and finish the digits example before your eyes.
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev  ## Every test, on four processes: on two cores, since many only wait.
	$(BIN)/pytest -n 4 --dist worksteal

test-fast: $(VENV)/.dev  ## The tests that start no training processes.
	$(BIN)/pytest -n 2 -m "not processes" --ignore tests/e2e --ignore tests/integrations

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-lowest: $(VENV)/.dev  ## test-fast with the oldest of every dependency that pyproject.toml allows, but torch.
	.ci/lowest

fuzz: $(VENV)/.dev  ## Coverage-guided fuzzing of every border, a minute each: FUZZ="--only import --seconds 600".
	$(INSTALL) -e ".[fuzz]"
	$(BIN)/python -m tests.fuzzing $(FUZZ)

lock: $(VENV)/.dev  ## requirements.lock, the hashes of all files of the versions in constraints.txt.
	.ci/lock

audit: $(VENV)/.dev  ## Known vulnerabilities of these versions, where a database can be reached.
	.ci/audit

package: $(VENV)/.dev  ## Build the distributions and a bill of materials; check, install and use them.
	.ci/package

matrix: $(VENV)/.dev  ## With the oldest torch allowed and the newest served; docs/reference/compatibility.md.
	.ci/matrix

docs: $(VENV)/.dev  ## The site, in build/site; a broken link or anchor fails.
	$(BIN)/zensical build --strict --clean

bench: $(VENV)/.dev  ## The figures of docs/explanation/performance.md.
	$(BIN)/python -m tests.benchmarks --json build/benchmarks.json

units: $(VENV)/.dev  ## The templates in systemd/, from their generator.
	$(BIN)/python -c "$(TEMPLATE)(False))" > systemd/orchestrator@.service
	$(BIN)/python -c "$(TEMPLATE)(True))" > systemd/user/orchestrator@.service

cli-reference: $(VENV)/.dev  ## docs/reference/cli.md, from the parser and the settings.
	mkdir -p build
	$(BIN)/python -m tests.cli_reference > build/cli.md && mv build/cli.md docs/reference/cli.md

survival: $(VENV)/.dev  ## Over a thousand faults against every example; the table of docs/explanation/reliability.md.
	$(BIN)/python -m tests.survival
	$(BIN)/python -m tests.survival.adopted
	$(BIN)/python -m tests.survival.supervisors

recording: $(VENV)/.dev  ## docs/assets/demo.svg, from a real `make demo`.
	$(BIN)/python -m tests.recording

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.dev: $(VENV)/.ready  # What tests need beyond what the demo does.
	$(INSTALL) -e ".[dev,docs,examples,integrations]"
	touch $@

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11 ...')"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[examples]"
	touch $@
