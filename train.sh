#!/bin/sh
# Trains GASNet, with validation: sh train.sh [CONFIG] [KEY=VALUE ...] [--resume] [--quiet] ...
# CONFIG: default configs/Gan.yaml. All other arguments are passed to train.py.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$root/scripts/environment.sh"
. "$root/scripts/config.sh"

exec "$python" "$root/train.py" --config-path "$config" --is-validation "$@"
