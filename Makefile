# `make demo` and `make test` set up all they need in .venv, from nothing but Python, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LABEL := $(VENV)-label
BUNDLE := bundles/liver_ct_lightm_unet_segmentation
RUN := $(BIN)/python -W ignore -m monai.bundle run

.PHONY: demo test test-slow test-label lint docs clean

demo: $(VENV)/installed
	$(BIN)/python -m common phantom --output demo/data --cases 8 --seed 0 --size 96
	$(RUN) --config_file $(BUNDLE)/configs/train.json --bundle_root demo --dataset_dir demo/data \
		$(SMALL) $(SHORT)
	$(RUN) --config_file $(BUNDLE)/configs/inference.json --bundle_root demo \
		--dataset_dir $(HELD_OUT) --keep_largest_component True
	$(BIN)/python -m common overlay --image $(HELD_OUT) --prediction demo/eval/liver_008_seg.nii.gz \
		--label demo/data/labelsTs/liver_008.nii.gz --output demo/overlay.png

# The demo's network: smaller and on coarser voxels, so that a laptop's processor trains it in minutes.
# Many small patches, at least one of each batch on liver or tumour, and a rate that may be high as it
# rises first: so it finds the tumours with each of the seeds that were tried. Where in the body it
# looks, such patches do not show: the largest connected part is the liver.
SEED := 0
SMALL := --spacing "[4,4,5]" --patch_size "[32,32,32]" --network_def\#init_filters 8
SHORT := --max_epochs 30 --epoch_length 20 --val_interval 10 --split "[7,1,0]" --seed $(SEED) \
	--augmentation none --learning_rate 0.006 --lr_scheduler "{'_target_': 'WarmupCosineSchedule', \
	'optimizer': '@optimizer', 'warmup_steps': 3, 't_total': '@max_epochs', 'warmup_multiplier': 0.1}"
HELD_OUT := demo/data/imagesTs/liver_008.nii.gz

# Two processes, each with a file's tests at a time and one thread for what does not choose its own.
# Threads that wait by spinning would take the processor from the other process.
TWO := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test: $(VENV)/installed
	$(TWO) -m "not slow"

# In tests/conftest.py's order: pytest-xdist's own begins with the files of the most tests.
test-slow: $(VENV)/installed
	$(TWO) --no-loadscope-reorder -m slow

test-label: $(LABEL)/installed
	$(LABEL)/bin/python -m pytest tests/test_monai_label.py

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The documentation as a site: open site/index.html.
docs: $(VENV)/docs-installed
	$(BIN)/python -m mkdocs build

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]" --constraint constraints.txt
	touch $@

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[test]" --constraint constraints.txt
	touch $@

# All of constraints-label.txt and nothing else: pip need not resolve MONAI Label's wishes.
$(LABEL)/installed: pyproject.toml constraints-label.txt
	$(PYTHON) -m venv $(LABEL)
	$(LABEL)/bin/python -m pip install --quiet --no-deps --requirement constraints-label.txt
	$(LABEL)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) $(LABEL) demo site build *.egg-info
