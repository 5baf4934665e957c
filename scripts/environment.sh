# Sourced by the scripts that a user starts: makes .venv, installs the package with the extra named in $1 (if any), and
# puts its python first in PATH. What is installed already is reused, until setup.py changes.
#
#     PYTHON=python3.12    the interpreter that makes the environment
#     TENSORFLOW=2.18      a release of TensorFlow instead of the newest; the environment is .venv-2.18

venv=.venv${TENSORFLOW:+-$TENSORFLOW}
if [ ! -x "$venv/bin/python" ]; then
  "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo 'Error: Python 3.10 or newer is needed; PYTHON=... names one.' >&2; exit 1; }
  "${PYTHON:-python3}" -m venv "$venv"
fi
if ! cmp -s setup.py "$venv/installed-${1:-base}"; then
  echo "Installing into $venv (TensorFlow is about 600 MB, which takes minutes) ..."
  "$venv/bin/python" -m pip install --disable-pip-version-check --editable ".${1:+[$1]}" ${TENSORFLOW:+"tensorflow==$TENSORFLOW.*"}
  cp setup.py "$venv/installed-${1:-base}"
fi
PATH="$PWD/$venv/bin:$PATH"
