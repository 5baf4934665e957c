#!/usr/bin/env bash
# Installs what the tests need into .venv, checks the code's form and runs all tests. Arguments go to pytest.
#
#     scripts/test.sh
#     TENSORFLOW=2.18 scripts/test.sh    with the oldest TensorFlow that setup.py allows, in .venv-2.18
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh test
ruff check .
ruff format --check .
# More processes would mostly wait for memory. One that crashed is replaced once: its test fails, the others still run.
python -m pytest --numprocesses=2 --dist=loadfile --max-worker-restart=1 "$@"
