#!/bin/sh
# Trains GASNet, with validation: sh train.sh [CONFIG] [KEY=VALUE ...] [--resume] [--quiet] ...
# CONFIG is configs/Gan.yaml unless another is given; everything else goes to train.py.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$root/scripts/environment.sh"

config="$root/configs/Gan.yaml"
case "${1-}" in
    *.yaml | *.yml)
        config=$1
        shift
        ;;
esac
exec "$python" "$root/train.py" --config-path "$config" --is-validation "$@"
