#!/bin/sh
# Debian and Ubuntu leave the module venv out of Python: install it, or say how.
# Usage: install_venv_module.sh PYTHON
set -eu
version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
package="python${version}-venv"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing ${package}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${package}"
else
    echo "Python ${version} has no module venv. Install it, for example:" >&2
    echo "    sudo apt-get install ${package}" >&2
    exit 1
fi
