#!/bin/sh
# Tests a segmenter: sh test.sh [CONFIG] [MODEL] [KEY=VALUE ...] [--split TEST] [--save-vis] ...
# CONFIG is configs/Gan.yaml unless another is given, MODEL (a file, or the folder of a
# release or a run) the best segmenter of that config's run. Results go to
# the folder test/ beside the model unless --output names another. Everything else goes to test.py.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
. "$root/scripts/environment.sh"
. "$root/scripts/config.sh"

model=
case "${1-}" in
    *.pth | *.pt) model=$1 ;;
    *) [ ! -d "${1-}" ] || model=$1 ;;
esac
if [ -n "$model" ]; then
    shift
    set -- --model-path "$model" "$@"
fi
exec "$python" "$root/test.py" --config-path "$config" "$@"
