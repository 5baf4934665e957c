#!/usr/bin/env bash
# Installs what the tests need into .venv, checks the code's form and runs all tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh test
ruff check .
ruff format --check .
# More processes would mostly wait for memory. One that crashed is replaced once: its test fails, the others still run.
python -m pytest --numprocesses=2 --dist=loadfile --max-worker-restart=1 "$@"
