# make repro   set up .venv, run the default study, print its tables
# make test    the same set-up, then the tests, side by side on the cores there are; PYTEST_ARGS goes to pytest
# make test-slow   the tests that take longest: kills, resumption, whole studies
# make torture   every long command ended many times by kill -9 and SIGTERM, which must lose and leave nothing
# make gpu     on a machine with a GPU, first of all: `repro preflight` of STUDY (smoke512), the tests that need a GPU, and
#   the benchmarks, in pieces of less than ten minutes; each is kept in out/gpu/ and not run again (make gpu-again does)
# make gpu-study   STUDY in pieces of less than ten minutes: the same command again goes on
# make rehearsal   the ImageNet studies, or STUDIES of them, on small networks, in minutes; no number means anything
#
# TORCH chooses the torch build and where its wheels come from, for example
#   make repro TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
STAMP  := $(VENV)/.installed
# A file's tests share what is dear to make, so they stay together; tests/conftest.py lets the longest files begin.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# When outputs were last made links to DVC's cache, so that nothing lies on the disk twice.
RELINKED := .dvc/tmp/relinked
RUN    := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

STUDY  ?= smoke512
# What `make gpu` runs: on a GPU each takes less than ten minutes, with the shapes of EDM2-S and XXL.
PIECES := $(patsubst %,out/gpu/%.txt,preflight-$(STUDY) tests bench-sampling bench-vae bench-detectors bench-training)
PIECE  := timeout --signal=TERM --kill-after=30 580

# Every process of tests and stages would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: repro test test-slow torture rehearsal lint bench install gpu gpu-again gpu-study
.NOTPARALLEL:

repro: install
	@echo "The default study: the 2D example, whose table comes first, then digits: data, training, samples, measures."
	@echo "About 16 minutes on two idle cores, half an hour on slow ones; interrupt it at will, the same command goes on."
	$(RUN) dvc repro
	@test $(RELINKED) -nt dvc.lock || { $(RUN) dvc checkout --quiet --relink && touch $(RELINKED); }
	@cat "out/$$(sed -n 's/^study: *//p' params.yaml)/report/summary.txt"

test: install
	$(RUN) python -m pytest -m "not slow" $(PARALLEL) $(PYTEST_ARGS)

test-slow: install
	$(RUN) python -m pytest -m slow $(PARALLEL) $(PYTEST_ARGS)

torture: install
	$(RUN) python -m tests.torture

rehearsal: install
	$(RUN) python -m tests.rehearsal $(STUDIES)

lint: install
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) lint-imports

bench: install
	$(RUN) python -m benchmarks

# All pieces, whatever one of them finds; what it says is on the screen and, once it has ended well, in out/gpu/.
gpu: install
	@$(MAKE) --no-print-directory --keep-going $(PIECES)
	@echo "everything of this GPU is in out/gpu/; repro cost $(STUDY) says what the study takes here"

gpu-again:
	rm -f $(PIECES)
	@$(MAKE) --no-print-directory gpu

out/gpu/preflight-%.txt: | $(STAMP)
	$(call keep,python -m repro preflight $*)

out/gpu/tests.txt: | $(STAMP)
	$(call keep,python -m pytest -m gpu $(PYTEST_ARGS))

out/gpu/bench-%.txt: | $(STAMP)
	$(call keep,python -m benchmarks $*)

# Run a command, show what it says, and keep that if it ends well.
define keep
	@mkdir -p out/gpu
	@$(RUN) $(PIECE) $(1) >$@.part 2>&1; code=$$?; cat $@.part; test $$code -eq 0 && mv $@.part $@
endef

gpu-study: install
	$(RUN) python -m repro study use $(STUDY)
	@$(RUN) $(PIECE) dvc repro; code=$$?; test $$code -ne 124 || echo "time is up; the same command goes on from here"; \
	exit $$code

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock requirements-torch.lock
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	$(VENV)/bin/python -m pip install --quiet --constraint requirements-torch.lock $(TORCH)
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable ".[pipeline]"
	$(VENV)/bin/python -m pip check
	touch $@
