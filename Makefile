# The desk: make venv | serve | test | test-quick | test-deploy | test-cluster | test-torchserve | chaos | bench | screenshots | lint | format | docs | clean.
# `make` alone lists them. PYTHON is any Python 3.11 or later; the newest found is not taken, the plainest is.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input -c constraints.txt
SERVE_ARGS ?=
CHAOS_ARGS ?=
BENCH_ARGS ?=
TEST_PROCESSES ?= 3
PYTEST = $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --max-worker-restart 0 --durations 40
SHORT := not slow and not deploy and not cluster and not torchserve

.PHONY: help venv serve test test-quick test-long test-slow test-deploy test-cluster test-torchserve chaos chaos-cluster bench bench-micro screenshots lint format docs clean
.DEFAULT_GOAL := help

help:
	@echo "make serve   serve the embedded image classifier on http://127.0.0.1:5000   (SERVE_ARGS='--port 8080')"
	@echo "make test    run the tests, in three processes (TEST_PROCESSES=2)   make test-quick   run those that start no process"
	@echo "make test-long   run those that take seconds each, which make test leaves out   make test-slow   run everything"
	@echo "make test-deploy   build the image and run it in containers: needs buildah, podman, runc, debootstrap, and root"
	@echo "make test-cluster   the tests that need a Ray cluster of several nodes, which they start on this machine"
	@echo "make test-torchserve   the same archives served by the real TorchServe, which is installed first: needs Java"
	@echo "make chaos   kill, hang and flood a real server, and account for every request   (CHAOS_ARGS='--quick')"
	@echo "make chaos-cluster   the same in a Ray cluster, beside a plain Ray Serve application   (CHAOS_ARGS='--seconds 20')"
	@echo "make bench   measure it against its peers, which are installed first   (BENCH_ARGS='--quick')"
	@echo "make bench-micro   measure the parts of a request: decoding, frames, queue, JSON   (BENCH_ARGS='--json')"
	@echo "make screenshots   take the pictures of the page in docs/screenshots anew, with a real browser"
	@echo "make lint    ruff, names, mypy, import-linter   make format      let ruff mend what it can"
	@echo "make docs    write the tables of docs/configuration.md, and the Dockerfile, from what they are made of"
	@echo "make venv    only make the environment in .venv"

venv: $(VENV)/.installed

serve: venv
	@$(BIN)/flambeau serve $(SERVE_ARGS)

test: $(VENV)/.installed-test
	$(PYTEST) -m "not long and $(SHORT)" $(TEST_ARGS)

test-long: $(VENV)/.installed-test
	$(PYTEST) -m "long and $(SHORT)" $(TEST_ARGS)

test-quick: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m "quick and not long" -n $(TEST_PROCESSES) --dist loadfile

test-slow: $(VENV)/.installed-slow
	$(BIN)/python -m pytest -m "not deploy and not cluster and not torchserve"

test-deploy: $(VENV)/.installed-deploy
	@echo "== what the system lacks is not installed, and named: apt-get install buildah podman runc debootstrap"
	$(BIN)/python -m pytest -n 0 -s -m deploy --durations 20 tests/deploy

test-cluster: $(VENV)/.installed-ray
	$(BIN)/python -m pytest -n 0 --durations 20 tests/cluster

test-torchserve: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 0 -m torchserve --durations 10 tests/torchserve

chaos-cluster: $(VENV)/.installed-ray
	PYTHONPATH=. $(BIN)/python -m chaos.cluster $(CHAOS_ARGS)

chaos: $(VENV)/.installed-test
	$(BIN)/python -m chaos $(CHAOS_ARGS)

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-micro: $(VENV)/.installed
	$(BIN)/python -m benchmarks.micro $(BENCH_ARGS)

screenshots: $(VENV)/.installed-test
	PYTHONPATH=. $(BIN)/python scripts/screenshots.py

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/check_names.py
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed
	$(BIN)/python scripts/make_configuration_page.py
	$(BIN)/python scripts/make_manifests.py
	$(BIN)/python scripts/make_dockerfile.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Flambeau needs Python 3.11 or later: install it, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "== [1/2] making a virtual environment in $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) scripts/make_venv.py $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "== [2/2] installing Flambeau and PyTorch; the first time this takes minutes"
	$(PIP) -e ".[torch]"
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "== installing what the tests need"
	$(PIP) -e ".[torch,test]"
	@touch $@

# OpenVINO too: with a second engine every build takes seconds longer, to measure which is faster
$(VENV)/.installed-slow: $(VENV)/.installed-test
	@echo "== installing what the long tests need"
	$(PIP) -e ".[torch,test,openvino]"
	@touch $@

$(VENV)/.installed-deploy: $(VENV)/.installed-test
	@echo "== installing what checks a bill of materials, and podman-compose"
	$(PIP) -e ".[torch,test,deploy]"
	@touch $@

$(VENV)/.installed-ray: $(VENV)/.installed-test
	@echo "== installing Ray, Ray Serve, beside which the faults are played, and what plays S3"
	$(PIP) -e ".[torch,test,ray]" "ray[serve]" s3fs "moto[s3,server]"
	@touch $@

$(VENV)/.installed-lint: $(VENV)/.installed-test
	@echo "== installing what the lint needs"
	$(PIP) -e ".[torch,test,lint]"
	@touch $@
