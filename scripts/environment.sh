# Sourced by the scripts, with $root set to the project's folder: sets $python, and makes or updates $root/.venv when
# requirements.txt has changed since it was installed. With development=yes, requirements-dev.txt is installed, too.
# PYTHON names the Python that .venv is made with. To make the environment and do nothing else:
#
#     sh scripts/environment.sh [--dev]

set -eu
case "$0" in
    environment.sh | */environment.sh)
        root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
        case "${1-}" in
            '') ;;
            --dev) development=yes ;;
            *) echo "usage: sh scripts/environment.sh [--dev]" >&2; exit 2 ;;
        esac
        ;;
esac
python="$root/.venv/bin/python"

fail() {
    echo "error: $*" >&2
    exit 1
}

find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 to 3.13 not found; install one, or name it: PYTHON=/path/to/python3.13 sh $0"
}

install() {
    "$python" -m pip install --quiet --disable-pip-version-check "$@" \
        || fail "pip could not install the requirements (see above); run this script again to retry"
}

# is_installed NAME: whether $root/NAME.txt is the file that was installed last.
is_installed() {
    cksum < "$root/$1.txt" | cmp -s - "$root/.venv/$1.cksum"
}

record() {
    cksum < "$root/$1.txt" > "$root/.venv/$1.cksum"
}

make_environment() {
    if ! "$python" -m pip --version > /dev/null 2>&1; then
        base=$(find_python) || exit 1
        echo "creating $root/.venv with $base ..." >&2
        "$base" -m venv --clear "$root/.venv" || fail "$base -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"
    fi
    # Other versions of these packages may not suit what the tests need: check that again, too.
    rm -f "$root/.venv/requirements-dev.cksum"
    echo "installing requirements.txt into $root/.venv (several GB, some minutes) ..." >&2
    install -r "$root/requirements.txt"
    # Two packages provide the module cv2, and the one installed last wins: the headless one, which needs no libGL.
    install --force-reinstall --no-deps "$("$python" -c \
        'from importlib.metadata import version; print("opencv-python-headless==" + version("opencv-python-headless"))')"
    record requirements
}

is_installed requirements || make_environment
if [ "${development-}" = yes ] && ! is_installed requirements-dev; then
    echo "installing requirements-dev.txt into $root/.venv ..." >&2
    install -r "$root/requirements-dev.txt"
    record requirements-dev
fi
