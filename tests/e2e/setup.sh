#!/usr/bin/env bash
# Installs the clients of `make e2e` into a cache folder and prints where they are, as assignments for the shell:
#
#   PODGATE_KUBECTLS      kubectls, oldest first, joined by colons (tests/kubectls.sh)
#   PODGATE_PYTHON        a Python that has the package `kubernetes`
#   PODGATE_NODE_CLIENT   a folder whose node_modules has `@kubernetes/client-node`
#
# The versions are pinned: a matrix that changes by itself proves nothing about a change of podgate.
set -euo pipefail
cd "$(dirname "$0")/../.."

python_client=37.0.2
# The last version for Node 20; 2.x wants 22.19.
node_client=1.4.0

cache=${XDG_CACHE_HOME:-$HOME/.cache}/podgate

need() {
  command -v "$1" >/dev/null && return
  echo "tests/e2e/setup.sh: $1 is not here. On Debian: apt-get install $2" >&2
  exit 1
}

# Runs a command whose words matter only when it fails.
quietly() {
  local log
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1; then
    cat "$log" >&2
    echo "tests/e2e/setup.sh: failed: $*" >&2
    exit 1
  fi
  rm -f "$log"
}

need python3 "python3 python3-venv"
need node nodejs
need npm npm
need tar tar

kubectls=$(tests/kubectls.sh bookworm trixie sid)

python=$cache/python-kubernetes-$python_client
if [ ! -e "$python/complete" ]; then
  python3 -c 'import ensurepip, venv' 2>/dev/null || {
    echo "tests/e2e/setup.sh: python3 cannot make virtual environments. On Debian: apt-get install python3-venv" >&2
    exit 1
  }
  rm -rf "$python"
  quietly python3 -m venv "$python"
  quietly "$python/bin/pip" install --disable-pip-version-check "kubernetes==$python_client"
  touch "$python/complete"
fi

node=$cache/node-client-$node_client
if [ ! -e "$node/complete" ]; then
  rm -rf "$node"
  mkdir -p "$node"
  quietly npm install --prefix "$node" --no-fund --no-audit "@kubernetes/client-node@$node_client"
  touch "$node/complete"
fi

printf 'export %s=%q\n' PODGATE_KUBECTLS "$kubectls" PODGATE_PYTHON "$python/bin/python" PODGATE_NODE_CLIENT "$node"
