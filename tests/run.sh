#!/bin/sh
# Checks style and runs all tests: sh tests/run.sh [PYTEST ARGUMENTS]
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/environment.sh"

cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
# A process a core, each with whole files of tests, whose fixtures are then made once.
exec "$python" -m pytest -n auto --dist loadfile "$@"
