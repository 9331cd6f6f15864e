# make        set up, train a model on the bundled digits, draw new ones, build the book
# make test   every test: pytest, the notebooks under nbval, ruff

PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.installed
NOTEBOOKS := $(sort $(wildcard book/*.ipynb))

.DELETE_ON_ERROR:
.PHONY: all setup test book colab pdf spell notebooks bench weights clean

all: out/samples.png book
	@echo
	@echo "New digits:                   out/samples.png"
	@echo "Digits emerging from noise:   out/emergence.png"
	@echo "The model:                    out/digits/model.safetensors"
	@echo "The book:                     _build/html/index.html"

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version)'
	@echo 'Installing into .venv: once, a few minutes'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[book,test]'
	touch $@

out/digits/model.safetensors: | $(SETUP)
	$(BIN)/ddpm-lite train --data digits --seed 0 --out out/digits

out/samples.png: out/digits/model.safetensors
	$(BIN)/ddpm-lite sample out/digits -n 64 --seed 0 --out $@ --emergence out/emergence.png

book: | $(SETUP)
	$(BIN)/jupyter-book build book --config _config.yml --path-output . $(BOOK_FLAGS)

# The notebooks as Colab and plain Jupyter show them well, in _build/colab; see CONTRIBUTING.md.
colab: | $(SETUP)
	rm -rf _build/colab
	$(BIN)/jupyter-book build book --config _config.yml --path-output . --builder custom --custom-builder colab
	rm -rf _build/colab/_*

# The whole book on paper, by Chromium: _build/pdf/ddpm_lite.pdf. Takes minutes.
pdf: book
	$(BIN)/python book/print_book.py _build/html _build/pdf/ddpm_lite.pdf

# The spelling of all that people read; `make test` checks it too.
spell: $(SETUP)
	$(BIN)/python tests/spelling.py

test: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --nbval --nbval-current-env $(NOTEBOOKS)

# Run every notebook in place, store its outputs, and write the page about the checks; see CONTRIBUTING.md.
notebooks: $(SETUP)
	$(BIN)/python book/run_notebooks.py $(NOTEBOOKS)
	$(BIN)/python book/write_ledger_page.py

# The package beside its peers; results go to benchmarks/results.
bench: $(SETUP)
	$(BIN)/python benchmarks/digits.py
	$(BIN)/python benchmarks/clipping.py
	$(BIN)/python benchmarks/unet_parts.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check denoising-diffusion-pytorch
	$(BIN)/python benchmarks/throughput.py

# The models that come with the package; hours.
weights: $(SETUP)
	$(BIN)/python benchmarks/bundled_digits.py
	$(BIN)/python benchmarks/classifier_features.py
	$(BIN)/python benchmarks/bundled_mnist.py

clean:
	rm -rf out _build build dist
