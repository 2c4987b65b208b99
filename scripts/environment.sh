# Sourced by demo and test: make .venv with the given extras, or reuse it while pyproject.toml stays the same.
#   environment train        -> sets VENV

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "rescade needs Python 3.11 or newer; set PYTHON to one" >&2
    return 1
}

# Whether .venv already holds every extra of "$1", for the pyproject.toml whose checksum is "$2".
installed() {
    local extra
    for extra in ${1//,/ }; do
        [ "$(cat "$VENV/.rescade-$extra" 2>/dev/null)" = "$2" ] || return 1
    done
}

environment() {
    local extras=$1 checksum python extra
    VENV=$PWD/.venv
    checksum=$(cksum <pyproject.toml)
    installed "$extras" "$checksum" && return
    python=$(find_python)
    [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
    echo "installing rescade[$extras] into .venv, several gigabytes the first time" >&2
    local quiet=--quiet
    [ -t 1 ] && quiet=  # pip shows its progress bars where somebody watches
    # shellcheck disable=SC2086 - empty when not quiet
    "$VENV/bin/python" -m pip install --disable-pip-version-check $quiet --editable ".[$extras]"
    for extra in ${extras//,/ }; do
        echo "$checksum" >"$VENV/.rescade-$extra"
    done
}
