# `make` alone says what there is. On a fresh Debian, test and demo install what they need first, and say so.
PYTHON ?= python3
TEST_ARGS ?=
MINUTES ?= 60

.PHONY: help bootstrap compile test lint format demo bench sanitize soak stubs dist clean

help:
	@echo "make test      all tests, in every Python here and in the real Caffe"
	@echo "make lint      check the style of all files; make format mends what a program can mend"
	@echo "make demo      train LeNet on digits in the real Caffe, through fastbatch and through Caffe's own layer;"
	@echo "               without Caffe, a plain Python loop on the same digits"
	@echo "make bench     the benchmarks, in the real Caffe; results in bench/results"
	@echo "make compile   build the extensions beside their sources"
	@echo "make stubs     compare the type stubs with the modules"
	@echo "make sanitize  the tests under gcc's sanitizers"
	@echo "make soak      loaders of all kinds at once, used and disturbed at random, for MINUTES=60"
	@echo "make dist      an sdist, and a wheel from it, in dist/"
	@echo "make clean     remove what was built in this folder"

bootstrap:
	@$(PYTHON) tools/bootstrap

compile: bootstrap
	$(PYTHON) tools/host-env packages python setup.py build_ext --inplace

test: bootstrap
	@$(PYTHON) tools/test $(TEST_ARGS)

lint: bootstrap
	@$(PYTHON) tools/lint

format: bootstrap
	@$(PYTHON) tools/lint --fix

demo: bootstrap
	@$(PYTHON) tools/demo

bench: bootstrap
	@mkdir -p bench/results
	$(PYTHON) tools/caffe-env run pytest bench --benchmark-json=bench/results/$$(date +%Y%m%d-%H%M%S).json

sanitize: bootstrap
	$(PYTHON) tools/host-env packages tools/sanitize

soak: bootstrap
	$(PYTHON) tools/host-env run python tests/soak.py --minutes $(MINUTES)

stubs: bootstrap
	$(PYTHON) tools/host-env run pytest tests/test_stubs.py

dist: bootstrap
	$(PYTHON) tools/host-env packages python -m build --no-isolation

clean:
	rm -rf build dist bench/results *.egg-info .pytest_cache .mypy_cache .hypothesis .benchmarks
	find . -name .git -prune -o -name __pycache__ -prune -exec rm -rf {} +
	find fastbatch '(' -name '*.so' -o -name '_*.c' -o -name _build_info.py ')' -delete
