# `make demo` and `make test` set up all they need in .venv, from nothing but Python, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LABEL := $(VENV)-label
BUNDLE := bundles/liver_ct_lightm_unet_segmentation
RUN := $(BIN)/python -W ignore -m monai.bundle run

.PHONY: demo test test-slow test-label lint clean

demo: $(VENV)/installed
	$(BIN)/python -m common phantom --output demo/data --cases 8 --seed 0 --size 96
	$(RUN) --config_file $(BUNDLE)/configs/train.json --bundle_root demo --dataset_dir demo/data \
		$(SMALL) $(SHORT)
	$(RUN) --config_file $(BUNDLE)/configs/inference.json --bundle_root demo \
		--dataset_dir $(HELD_OUT)
	$(BIN)/python -m common overlay --image $(HELD_OUT) --prediction demo/eval/liver_008_seg.nii.gz \
		--label demo/data/labelsTs/liver_008.nii.gz --output demo/overlay.png

# The demo's network: smaller and on coarser voxels, so that a laptop's processor trains it in minutes.
SMALL := --spacing "[4,4,5]" --patch_size "[64,64,32]" --network_def\#init_filters 8
SHORT := --max_epochs 20 --epoch_length 15 --val_interval 5 --augmentation none --learning_rate 0.002
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
	rm -rf $(VENV) $(LABEL) demo build *.egg-info
