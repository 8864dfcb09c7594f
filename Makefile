# make demo        install, teach the embedded world's student depth, sample from it
# make test        the default tests           make test-slow   those that guard published results
# make lint        what CI checks besides      make format      repair what can be repaired

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
RECIPE ?= tiny/depth
# fewer updates than the recipe's, for a first look
DEMO_STEPS ?=

BIN := $(VENV)/bin
export HF_HUB_OFFLINE = 1

.PHONY: demo install test test-slow lint format clean

demo: install
	$(BIN)/jdmctl add-control $(RECIPE) --output $(RUN) \
		$(if $(wildcard $(RUN)/recipe.yaml),--resume) \
		$(if $(DEMO_STEPS),--set training.num_steps=$(DEMO_STEPS))
	$(BIN)/jdmctl sample $(RUN) --output $(RUN)/samples
	@echo
	@echo "what it drew:        $(RUN)/samples/grid.png"
	@echo "how it learned it:   $(RUN)/previews"
	@echo "the control branch:  $(RUN)/controlnet"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# single threads side by side get more from the cores than many threads one after the other
test: export OMP_NUM_THREADS = 1
test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
