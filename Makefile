# Everything is installed into .venv in this folder. scripts/setup.sh does nothing when that is already up to date.
.PHONY: help demo test lint clean
.NOTPARALLEL:

help:
	@echo "make demo    install headcount, its demo model and benchmarks, then run 'headcount demo'"
	@echo "make test    install what development needs as well, then run the tests"
	@echo "make lint    check style, types and which module imports which"
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

clean:
	rm -rf .venv build dist .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +
