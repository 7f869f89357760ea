#!/bin/sh
# Finds the interpreter, checks it, and has it make or mend .venv. Reads PYTHON and PIP_ARGS from the environment.
set -eu
cd "$(dirname "$0")/.."

works() { "$1" -c 'pass' >/dev/null 2>&1; }

asked_for=
if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
    asked_for=--asked-for
else
    # The first of these that passes; failing that, any Python there is, which then says what is wrong with it.
    # .venv's own comes first: an environment once made with PYTHON=... keeps that choice.
    python=
    for candidate in .venv/bin/python python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" tools/preflight.py >/dev/null 2>&1; then
            python=$candidate
            break
        fi
        if [ -z "$python" ] && works "$candidate"; then fallback=${fallback:-$candidate}; fi
    done
    python=${python:-${fallback:-python3}}
fi

if ! works "$python"; then
    echo "set-up: no Python runs as '$python'; install Python 3.11 to 3.14, or name one: make PYTHON=python3.12 ..." >&2
    exit 1
fi
"$python" tools/preflight.py
exec "$python" tools/setup_venv.py $asked_for --pip-args="${PIP_ARGS:-}"
