#!/usr/bin/env bash
# Makes sure that valgrind is there, which counts instructions: the distribution's, installed when it is missing and this
# may install packages.
set -euo pipefail

command -v valgrind >/dev/null && exit
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get update -qq && apt-get install -y -qq valgrind; } >&2
else
  echo "tests/valgrind.sh: valgrind is not installed; install it with the package manager of this system" >&2
  exit 1
fi
