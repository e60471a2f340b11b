#!/bin/sh
# Checks style and runs the tests: sh tests/run.sh [--slow] [PYTEST ARGUMENTS]
# --slow includes the tests that only a release needs.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
development=yes
. "$root/scripts/environment.sh"

cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
# One process per core. A file's tests share a process, so that its fixtures are made once; long files begin.
exec "$python" -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
