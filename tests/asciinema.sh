#!/usr/bin/env bash
# Prints the asciinema player that plays exported recordings: the one named in PODGATE_ASCIINEMA, or else asciinema 2.4.0,
# the last that reads asciicast v2 as its own form and needs nothing but Python. pip fetches it into a cache folder;
# nothing is installed.
set -euo pipefail

if [ -n "${PODGATE_ASCIINEMA:-}" ]; then
  echo "$PODGATE_ASCIINEMA"
  exit
fi

home=${XDG_CACHE_HOME:-$HOME/.cache}/podgate/asciinema-2.4.0
player=$home/asciinema
if [ ! -x "$player" ]; then
  rm -rf "$home" && mkdir -p "$home"
  python3 -m pip --quiet --disable-pip-version-check install --no-deps --target "$home/lib" asciinema==2.4.0 \
    >"$home/log" 2>&1 || {
    echo "tests/asciinema.sh: could not fetch asciinema, see $home/log; or name a player in PODGATE_ASCIINEMA" >&2
    exit 1
  }
  cat >"$home/new" <<RUN
#!/bin/sh
PYTHONPATH='$home/lib' PYTHONUTF8=1 exec python3 -m asciinema "\$@"
RUN
  chmod +x "$home/new" && mv "$home/new" "$player"
fi
echo "$player"
