# Shortcuts; CONTRIBUTING.md says what they need.
.PHONY: lint test slow docs serve dist

lint:
	ruff check .
	ruff format --check .
	mypy
test:
	pytest -n 2
slow:
	pytest -n 2 -m slow
docs:
	mkdocs build --strict
serve:
	mkdocs serve
dist:
	rm -rf build dist
	python -m build
	twine check --strict dist/*
