# `make book` and `make test` are all a reader needs; `make help` lists the rest.
SHELL := /bin/sh
BIN := .venv/bin
PAGE := _build/html/index.html
export OPENCV_LOG_LEVEL := ERROR

.PHONY: help book test lab chapters check lint unit clean
.DEFAULT_GOAL := help

help:
	@echo "make book      render the book from the stored outputs and print the page to open"
	@echo "make test      lint, types, unit tests, every chapter, the book in a real browser"
	@echo "make lab       open the chapters in JupyterLab"
	@echo "make check     lint, types and the fast unit tests (under a minute)"
	@echo "make chapters  execute every chapter again and store its outputs (ONLY=02 for one)"
	@echo "make clean     remove the rendered book and the caches"

.venv/.ready: requirements.lock pyproject.toml tools/setup.sh
	@PYTHON="$(PYTHON)" sh tools/setup.sh

book: .venv/.ready
	@echo "book: rendering"
	@$(BIN)/python -m tools.render
	@echo "book: open file://$(CURDIR)/$(PAGE)"

lint: .venv/.ready
	@echo "check: lint and types"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

unit: .venv/.ready
	@$(BIN)/pytest -q tests -m "not slow and not browser"

check: lint unit

test: lint book
	@echo "test: unit tests, chapters and the book in a browser (minutes)"
	@$(BIN)/pytest --nbval

lab: .venv/.ready
	@$(BIN)/jupyter lab notebooks

chapters: .venv/.ready
	@$(BIN)/python -m tools.chapters $(ONLY)

clean:
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache .hypothesis
