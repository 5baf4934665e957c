#!/usr/bin/env bash
# Installs what the tests need into .venv, checks the code's form and runs the tests. Arguments go to pytest.
#
#     scripts/test.sh
#     scripts/test.sh --all              with the slow tests: kills, a Slurm cluster, hosts, memory
#     TENSORFLOW=2.18 scripts/test.sh    with the oldest TensorFlow that setup.py allows, in .venv-2.18
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh test
ruff check .
ruff format --check .
# More processes would mostly wait for memory. One that crashed is replaced once: its test fails, the others still run.
# A process that has nothing left to do takes tests from the other one.
python -m pytest --numprocesses=2 --dist=worksteal --max-worker-restart=1 "$@"
