# Targets do all the set-up on a fresh machine.
PYTHON ?= python3
PIP = .venv/bin/pip --disable-pip-version-check install --quiet -c constraints.txt
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)

LOADED = build/loaded
VISION = build/vision

# The inner loop: the parts by hand, the engine, and every method against full forwards.
QUICK = tests/test_architecture.py tests/test_decoders.py tests/test_rules.py tests/test_contrasts.py \
	tests/test_grounding.py tests/test_votes.py tests/test_regions.py \
	tests/test_kv_cache.py tests/test_prefill.py tests/test_engine.py tests/test_specs.py \
	tests/test_invariants.py::test_every_decoder_is_here \
	tests/test_invariants.py::test_every_step_equals_full_forwards \
	tests/test_invariants.py::test_a_row_does_not_depend_on_its_neighbours \
	tests/test_invariants.py::test_nothing_remains

# These need packages that stand in folders of their own.
APART = tests/test_checkpoints.py tests/test_prepared.py tests/test_wrapped.py

define pytest
	$(1)/bin/python -m pytest -m "not browser and not slow" -n auto --dist worksteal $(APART:%=--ignore %)
endef

define rest
	$(1)/bin/python -m pytest -m "slow and not browser" -n auto --dist worksteal $(APART:%=--ignore %)
	PYTHONPATH=$(VISION) $(1)/bin/python -m pytest -n auto --dist worksteal tests/test_checkpoints.py tests/test_prepared.py
	$(1)/bin/pip --disable-pip-version-check install --quiet --no-deps --upgrade --target $(LOADED) \
		$(shell grep -E '^(bitsandbytes|peft|torchao)==' constraints.txt)
	PYTHONPATH=$(LOADED) $(1)/bin/python -m pytest -n auto --dist worksteal tests/test_wrapped.py
	$(1)/bin/python -m pytest -m browser
endef

.PHONY: run quick test test-rest test-all checkpoints families lock oldest reproduce lint types clean

run: .venv/ready  ## compare plain decoding, VCD and VDD on a shipped image
	.venv/bin/sightline compare lab/images/corner.png --decoders greedy,vcd,vdd

quick: .venv/dev  ## the inner loop: under three minutes on two cores
	.venv/bin/python -m pytest -n auto --dist worksteal $(QUICK)

test: lint types  ## lint, types on the built wheel, tests
	$(call pytest,.venv)

test-rest: .venv/dev $(VISION)/ready  ## whole tables and products, checkpoints, ways to load a model, the page
	$(call rest,.venv)

test-all: test test-rest  ## all tests

checkpoints: .venv/dev $(VISION)/ready  ## prompts of real checkpoints' processors and templates
	PYTHONPATH=$(VISION) .venv/bin/python -m pytest -n auto --dist worksteal tests/test_checkpoints.py tests/test_prepared.py

families: .venv/dev  ## docs/families.md, whole, against the code
	.venv/bin/python -m pytest -m slow -n auto --dist worksteal tests/test_families.py

# As pip resolves here; a local build of torch ("+cpu") stands under its public version. The package
# itself, which its extras name, is left out.
lock:  ## requirements.lock: the versions of constraints.txt with the hashes of their files
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip --disable-pip-version-check install --quiet pip-tools==7.6.2
	build/lock/bin/pip-compile --quiet --extra dev --extra loaded --constraint constraints.txt \
		--generate-hashes --no-annotate --strip-extras --unsafe-package sightline-vlm \
		--no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
		--output-file requirements.lock pyproject.toml
	sed -i.bak -e 's/^\(torch==[0-9.]*\)+[a-z0-9]*/\1/' -e '/^# WARNING: The following/,$$d' requirements.lock
	rm requirements.lock.bak

oldest: .venv-oldest/dev $(VISION)/ready  ## tests on the oldest transformers of the range, in a .venv-oldest of its own
	$(call pytest,.venv-oldest)
	$(call rest,.venv-oldest)

reproduce: .venv/eval  ## the tables that papers print: MODEL= COCO=DIR POPE=DIR [IDS=FILE] [OPTIONS="--device cuda"]
	@test -n "$(MODEL)" -a -n "$(COCO)" -a -n "$(POPE)" || { \
		echo 'usage: make reproduce MODEL=llava-hf/llava-1.5-7b-hf COCO=DIR POPE=DIR [IDS=FILE] [OPTIONS="--device cuda"]'; exit 2; }
	.venv/bin/python -m sightline.evaluation.reproduce --model "$(MODEL)" --coco "$(COCO)" \
		--pope "$(POPE)" $(if $(IDS),--ids "$(IDS)") $(OPTIONS)

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# A type checker does not follow the package-dir mapping of an editable install. What runs on a GPU
# alone no test runs, so names and calls are checked there too.
types: .venv/dev
	rm -rf build/wheel build/types
	.venv/bin/pip --disable-pip-version-check wheel --quiet --no-deps -w build/wheel .
	.venv/bin/pip --disable-pip-version-check install --quiet --no-deps --target build/types build/wheel/*.whl
	cd build/types && ../../.venv/bin/mypy --config-file ../../pyproject.toml -p sightline
	rm -rf build/benchmarks && mkdir -p build/benchmarks && cp benchmarks/*.py tests/kernel_cases.py build/benchmarks
	cd build/benchmarks && MYPYPATH=.:../types ../../.venv/bin/mypy --config-file ../../pyproject.toml \
		--explicit-package-bases --disable-error-code arg-type --disable-error-code assignment \
		device.py kernel_check.py dry_run.py compile_kernels.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/ready: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

.venv/eval: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[eval]"
	touch $@ .venv/ready

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[dev]"
	touch $@ .venv/ready

# What the processors of real checkpoints need of torchvision is Python alone. Its build is for CUDA's
# torch: the tests have it in a folder of its own, without the registration of its operators.
$(VISION)/ready: .venv/bin/python constraints.txt
	.venv/bin/pip --disable-pip-version-check install --quiet --no-deps --upgrade --target $(VISION) \
		$(shell grep -E '^(num2words|torchvision)==' constraints.txt)
	: > $(VISION)/torchvision/_meta_registrations.py
	touch $@

# The tested set with one line changed.
.venv-oldest/dev: pyproject.toml constraints.txt
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	sed 's/^transformers==.*/transformers==$(OLDEST)/' constraints.txt > .venv-oldest/constraints.txt
	.venv-oldest/bin/pip --disable-pip-version-check install --quiet -c .venv-oldest/constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv .venv-oldest build dist *.egg-info
