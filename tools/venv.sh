#!/bin/sh
# Make a virtual environment with aiopt in it, editable: tools/venv.sh FOLDER [GROUP]
#
# GROUP is a dependency group of pyproject.toml. What the system lacks is installed if that is
# possible (root and apt-get), otherwise the command that does it is printed.
set -eu
cd "$(dirname "$0")/.."
venv=$1
group=${2:-}
newest="3.14 3.13 3.12 3.11"

say() { echo "venv.sh: $*" >&2; }

fail() {
    say "$1"
    [ $# -lt 2 ] || say "to fix it:  $2"
    exit 1
}

may_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

updated=
install() {
    [ -n "$updated" ] || apt-get update -qq || say "apt-get update failed; trying without it"
    updated=yes
    say "installing $*"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

# need COMMAND PACKAGE: there, or installed, or explained.
need() {
    if command -v "$1" >/dev/null; then return; fi
    if may_install && install "$2"; then return; fi
    fail "$1 is not installed" "sudo apt-get install $2"
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# Print the first Python that is new enough, preferring one that can make environments.
find_python() {
    found=
    for name in $(printf 'python%s ' $newest) python3 python; do
        if command -v "$name" >/dev/null && new_enough "$name"; then
            if can_make_venv "$name"; then
                echo "$name"
                return
            fi
            found=${found:-$name}
        fi
    done
    echo "$found"
}

install_python() {
    [ -n "$updated" ] || apt-get update -qq || true
    updated=yes
    for version in $newest; do
        if apt-cache show "python$version-venv" >/dev/null 2>&1; then
            install "python$version" "python$version-venv" && return
        fi
    done
    return 1
}

choose_python() {
    python=${PYTHON:-}
    if [ -n "$python" ]; then
        command -v "$python" >/dev/null || fail "PYTHON=$python: there is no such command"
        new_enough "$python" ||
            fail "PYTHON=$python is $("$python" -V 2>&1); aiopt needs Python 3.11 or newer"
    else
        python=$(find_python)
        if [ -z "$python" ] && may_install && install_python; then
            python=$(find_python)
        fi
        [ -n "$python" ] || fail "no Python 3.11 or newer is installed" \
            "sudo apt-get install python3.11 python3.11-venv   (or any newer one; then PYTHON=python3.x make …)"
    fi
    can_make_venv "$python" && return
    package="python$(version_of "$python")-venv"
    if may_install && install "$package"; then
        can_make_venv "$python" && return
    fi
    fail "$python has no venv and ensurepip" "sudo apt-get install $package"
}

need git git

if [ -x "$venv/bin/python" ] && new_enough "$venv/bin/python" &&
    "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    :
else
    choose_python
    say "making $venv with $("$python" -V)"
    "$python" -m venv --clear "$venv"
fi

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

# --group needs pip 25.1. The build tools are in the environment itself, so that installing again
# needs no network where nothing has changed.
if [ -z "$group" ]; then
    say "installing aiopt into $venv"
    pip install --upgrade "pip>=25.1" "setuptools>=77" wheel ||
        fail "pip could not install itself; is there a network or a package index?"
    pip install --no-build-isolation --editable .
else
    say "installing the group $group into $venv"
    pip install --group "$group"
fi
