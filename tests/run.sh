#!/bin/sh
# Checks style and runs all tests: sh tests/run.sh [PYTEST ARGUMENTS]
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/environment.sh"

cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest "$@"
