# make demo       the flagship sweep
# make papers     the small tiers of the paper suite, and one table of their claims
# make test       the test suite;  make test-long  with the tests that take minutes
# make test-peers  the same numbers as SAELens, dictionary_learning and sparsify, which it installs in .venv-peers (GB)
# make lint       linter, formatter and type checker
# Each target first makes .venv; Python 3.11 or later and make are all that it needs.

VENV := .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo papers test test-long test-peers lint clean

demo: $(VENV)/installed
	$(VENV)/bin/sae run sweeps/width_l1_l2.py

PAPERS := $(sort $(wildcard sweeps/papers/*_small.py))

papers: $(VENV)/installed
	@for file in $(PAPERS); do $(VENV)/bin/sae run $$file || exit 1; done
	$(VENV)/bin/sae claims $(PAPERS:sweeps/papers/%.py=runs/%)

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not long"

test-long: $(VENV)/installed
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

PEERS := .venv-peers

test-peers: $(PEERS)/installed
	$(PEERS)/bin/python -m pytest tests/test_peers*.py tests/test_interop.py tests/test_hub.py tests/test_coefficients.py

# pip takes an index of PyTorch's CPU builds, which are smaller, from PIP_EXTRA_INDEX_URL
$(PEERS)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; make PYTHON=/path/to/python names one" >&2; exit 1; }
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade pip
	$(PEERS)/bin/python -m pip install --quiet --editable '.[peers]'
	@touch $@

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ty check

$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; make PYTHON=/path/to/python names one" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(PEERS) tests/.jax_cache
