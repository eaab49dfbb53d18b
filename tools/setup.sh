#!/bin/sh
# Make .venv and put the tested versions into it. Safe to run again after an interruption.
set -eu
need_gb=8

find_python() {
    for name in ${PYTHON:-} python3.11 python3.12 python3.13 python3.10 python3 python; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "setup: no Python 3.10 to 3.13 with venv was found; install one, or name it: make PYTHON=/path/to/python3" >&2
    exit 1
}

enough_disk() {
    free_gb=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
    if [ "$free_gb" -lt "$need_gb" ]; then
        echo "setup: $free_gb GB are free here and the packages need $need_gb GB; free some space and run the same command again" >&2
        exit 1
    fi
}

python=$(find_python)
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    echo "setup: making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
fi
if ! .venv/bin/python -c 'import torch' >/dev/null 2>&1; then enough_disk; fi
echo "setup: installing the packages of requirements.lock (7 GB on disk on Linux; minutes the first time)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
touch .venv/.ready
