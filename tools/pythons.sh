# Sourced: `pythons` lists the Pythons to build for, which are PYTHONS or those that are installed.
pythons() {
    if [ -n "${PYTHONS:-}" ]; then
        echo "$PYTHONS"
        return
    fi
    local minor found
    for minor in 10 11 12 13 14; do
        # pyenv keeps more Pythons than its PATH shows.
        for found in "$(command -v "python3.$minor" || true)" \
            "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python; do
            if [ -x "$found" ] && "$found" -c "import venv, pip" 2>/dev/null; then
                echo "$found"
                break
            fi
        done
    done
}
