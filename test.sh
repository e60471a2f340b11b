#!/bin/sh
# Tests a segmenter: sh test.sh [CONFIG] [MODEL] [KEY=VALUE ...] [--split TEST] [--save-vis] ...
# CONFIG: default configs/Gan.yaml. MODEL: a segmenter file, or the folder of a run or a release; default: the best
# segmenter of the config's run. Results go to test/ beside the model, or to --output. All other arguments are passed
# to test.py.
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
