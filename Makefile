# Everything is installed into .venv in this folder. scripts/setup.sh does nothing when that is already up to date.
.PHONY: help demo test lint dist docs clean
.NOTPARALLEL:

help:
	@echo "make demo    install headcount, its demo model and benchmarks, then run 'headcount demo'"
	@echo "make test    install what development needs as well, then run the tests"
	@echo "make lint    check style, types and which module imports which"
	@echo "make dist    build the wheel and check it"
	@echo "make docs    write the documentation site to build/site, to be read without a network"
	@echo "make clean   remove .venv and caches"
	@echo
	@echo "PYTHON=/path/to/python3.12   the Python (3.11 or later) that .venv is made with; python3 if not given"
	@echo "PIP_ARGS='...'               more arguments for 'pip install', for example --proxy URL, or on a machine without"
	@echo "                             a GPU --extra-index-url with the CPU index that pytorch.org/get-started names:"
	@echo "                             a far smaller download than the CUDA build"

demo:
	@scripts/setup.sh demo
	.venv/bin/headcount demo

test:
	@scripts/setup.sh test
	OMP_NUM_THREADS=1 .venv/bin/pytest -n logical --maxprocesses 4 --dist worksteal

lint:
	@scripts/setup.sh test
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright
	.venv/bin/lint-imports

publishing = scripts/setup.sh test && .venv/bin/python scripts/install.py $(PIP_ARGS) --no-deps --require-hashes -r scripts/publish.txt

dist:
	@$(publishing)
	rm -rf dist
	.venv/bin/python -m build --no-isolation
	.venv/bin/twine check --strict dist/*
	HEADCOUNT_DIST=dist .venv/bin/pytest -q tests/publish/test_wheel.py

docs:
	@$(publishing)
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
	HEADCOUNT_SITE=build/site .venv/bin/pytest -q tests/publish/test_site.py
	@echo "Site: build/site/index.html"

clean:
	rm -rf .venv build dist .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +
