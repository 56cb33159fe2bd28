#!/usr/bin/env bash
# Install vntools into a virtual environment that sees the system's packages (in NVIDIA's image:
# its TensorRT), and run it once as a user without rights. Run in the folder of the sources.
#
#   docker/install.sh VENV [PIP-OPTION...]
set -euo pipefail

venv=$1
shift
"${PYTHON:-python3}" -m venv --system-site-packages "$venv"
"$venv/bin/pip" install --no-cache-dir --constraint constraints.txt "$@" .

cd /
unprivileged=()
if [ "$(id -u)" = 0 ]; then
    unprivileged=(setpriv --reuid=65534 --regid=65534 --clear-groups)
fi
"${unprivileged[@]}" "$venv/bin/vntools" --version
"${unprivileged[@]}" "$venv/bin/vntools" --help >/dev/null
