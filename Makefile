# `make demo` and `make test` set up all they need in .venv, from nothing but Python, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUNDLE := bundles/liver_ct_lightm_unet_segmentation
RUN := $(BIN)/python -W ignore -m monai.bundle run

.PHONY: demo test test-slow lint clean

demo: $(VENV)/installed
	$(BIN)/python -m common phantom --output demo/data --cases 6 --seed 0 --size 96
	$(RUN) --config_file $(BUNDLE)/configs/train.json --bundle_root demo \
		--dataset_dir demo/data $(DEMO)  $(DEMO_TRAIN)
	$(RUN) --config_file $(BUNDLE)/configs/inference.json --bundle_root demo \
		--dataset_dir demo/data/imagesTs/liver_006.nii.gz $(DEMO)
	$(BIN)/python -m common overlay --image demo/data/imagesTs/liver_006.nii.gz \
		--prediction demo/eval/liver_006_seg.nii.gz --label demo/data/labelsTs/liver_006.nii.gz \
		--output demo/overlay.png

# A smaller network on coarser voxels, so that a laptop's processor trains it in minutes.
DEMO := --spacing "[3,3,4]" --patch_size "[64,64,32]" --network_def\#init_filters 8

test: $(VENV)/installed
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[test]" --constraint constraints.txt
	touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info
