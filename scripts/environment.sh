# Sourced by the scripts with $root set to the project's folder: sets $python, and makes $root/.venv when it is
# missing, unfinished, or older than requirements.txt. sh scripts/environment.sh does only that.
# PYTHON names the Python to make it with.

set -eu
: "${root:=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)}"
python="$root/.venv/bin/python"

fail() {
    echo "error: $*" >&2
    exit 1
}

find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or 3.12 here; install one, or name it: PYTHON=/path/to/python3.12 sh $0"
}

install() {
    "$python" -m pip install --quiet --disable-pip-version-check "$@" \
        || fail "pip could not install what requirements.txt asks for; see above, then run this again"
}

make_environment() {
    if ! "$python" -m pip --version > /dev/null 2>&1; then
        base=$(find_python) || exit 1
        echo "making $root/.venv with $base ..." >&2
        "$base" -m venv --clear "$root/.venv" || fail "$base -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"
    fi
    echo "installing requirements.txt into $root/.venv (several GB, some minutes) ..." >&2
    install -r "$root/requirements.txt"
    # Two packages hold the module cv2, and the last one installed wins: let it be the one that needs no libGL.
    install --force-reinstall --no-deps "$("$python" -c \
        'from importlib.metadata import version; print("opencv-python-headless==" + version("opencv-python-headless"))')"
    cksum < "$root/requirements.txt" > "$root/.venv/requirements.cksum"
}

cksum < "$root/requirements.txt" | cmp -s - "$root/.venv/requirements.cksum" || make_environment
