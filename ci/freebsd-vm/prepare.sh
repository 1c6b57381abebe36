#!/bin/sh
# In the guest, in the project's tree: python3, cffi and pytest, then the extension.  What is there
# already isn't fetched, so that an image which has all of it needs no network.
set -eu

has() { python3 -c "import $1" 2>/dev/null; }

case $(uname -s) in
FreeBSD)
    export ASSUME_ALWAYS_YES=yes
    command -v python3 >/dev/null || pkg install python3
    flavor=$(python3 -c 'import sys; print("py%d%d" % sys.version_info[:2])')
    missing=
    for module in cffi pytest setuptools; do
        has $module || missing="$missing $flavor-$module"
    done
    [ -z "$missing" ] || pkg install $missing
    ;;
OpenBSD)
    command -v python3 >/dev/null && has cffi && has pytest && has setuptools ||
        pkg_add -I python3 py3-cffi py3-test py3-setuptools
    ;;
*)
    command -v python3 >/dev/null && has pytest || {
        echo "python3 and pytest are missing here" >&2
        exit 1
    }
    exit
    ;;
esac

# Into the tree, as an editable install would.  From elsewhere: setuptools reads the pyproject.toml
# of the folder it is started in, and the packages' one may be older than ours asks for.
tree=$PWD
cd /
python3 - "$tree" <<'PYTHON'
import sys

sys.path.insert(0, sys.argv[1])
import build_ffi

print("built", build_ffi.ffibuilder.compile(tmpdir=sys.argv[1]))
PYTHON
