# Ops Scaffold. Everything lives in .venv, .cache and var; a second run of any target does only what is left to do.
# `make run ARGS="--server.http.addr :8081"` hands ARGS to the Manager; `make test ARGS="tests/people -k tokens"` to pytest.

VENV := .venv
PYTHON := $(VENV)/bin/python
RUNTIME := $(VENV)/.installed-runtime
DEVELOPMENT := $(VENV)/.installed-development
CATALOGUES := $(patsubst %.po,%.mo,$(wildcard app/translations/*/LC_MESSAGES/*.po))
PIP_INSTALL := $(PYTHON) -m pip install -qq --disable-pip-version-check --require-hashes --requirement
WORKERS ?= 2
ARGS ?=

.DEFAULT_GOAL := run
.DELETE_ON_ERROR:
.PHONY: run test test-fast check bench kit format documents catalogues update-catalogues venv requirements clean

# `exec`, so that Ctrl-C and SIGTERM reach the Manager itself and make waits for it to end.
run: $(RUNTIME) $(CATALOGUES)
	@exec $(PYTHON) -m app.launch $(ARGS)

test: $(DEVELOPMENT) $(CATALOGUES)
	@tools/install-test-services
	@$(PYTHON) -m pytest -p tools.left_out -n $(WORKERS) --dist loadfile --cov --cov-report= --durations=15 -rfE $(ARGS)
	@$(PYTHON) -m tools.coverage_rooms

# The quick half: no MariaDB, no browser, nothing slow, no coverage.
test-fast: $(DEVELOPMENT) $(CATALOGUES)
	@$(PYTHON) -m pytest -m "not mariadb and not browser and not slow" -n $(WORKERS) --dist loadfile $(ARGS)

check: $(DEVELOPMENT)
	@$(PYTHON) -m tools.check $(ARGS)

# A short run of the measurements; each of them is a command of its own with more options.
bench: $(DEVELOPMENT) $(CATALOGUES)
	@$(PYTHON) -m bench.fleet --nodes 100 --seconds 30 --interval 20 $(ARGS)

# What new hosts get. Needs the package index once; the Manager serves it from then on.
kit: $(DEVELOPMENT)
	@$(PYTHON) -m tools.build_kit $(ARGS)

# Documents that are made from the settings.
documents: $(DEVELOPMENT)
	@$(PYTHON) -m tools.write_configuration

format: $(DEVELOPMENT)
	@$(PYTHON) -m ruff check --quiet --fix --exit-zero .
	@$(PYTHON) -m ruff format .

catalogues: $(CATALOGUES)

# For translators: takes new texts into the .po files and drops those that are gone.
update-catalogues: $(DEVELOPMENT)
	@$(PYTHON) -m tools.check_catalogues --update

%.mo: %.po | $(RUNTIME)
	@$(PYTHON) -m babel.messages.frontend --quiet compile --input-file $< --output-file $@ --locale zh_Hans

venv: $(DEVELOPMENT)

$(PYTHON):
	@tools/make-venv $(VENV)

$(RUNTIME): requirements.txt | $(PYTHON)
	@echo "ops-scaffold: installing the pinned dependencies"
	@$(PIP_INSTALL) requirements.txt
	@touch $@

# Holds the runtime's pins as well: one consistent set, installed once.
$(DEVELOPMENT): requirements-dev.txt requirements.txt | $(PYTHON)
	@echo "ops-scaffold: installing the pinned dependencies for tests and checks"
	@$(PIP_INSTALL) requirements-dev.txt
	@touch $@ $(RUNTIME)

# For maintainers, needs uv: compiles every requirements*.in for all supported Pythons and platforms at once.
# `make requirements ARGS=--upgrade` moves the pins.
COMPILE := uv pip compile --quiet --universal --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make requirements"
requirements:
	$(COMPILE) --python-version 3.11 $(ARGS) -o requirements.txt requirements.in
	$(COMPILE) --python-version 3.11 $(ARGS) -o requirements-dev.txt requirements-dev.in
	$(COMPILE) --python-version 3.9 $(ARGS) -o requirements-host.txt requirements-host.in

# Leaves var/, which holds the Manager's data.
clean:
	rm -rf $(VENV) .cache .hypothesis .schemathesis $(CATALOGUES)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
