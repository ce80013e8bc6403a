#!/usr/bin/env bash
# One TLS and crypto library in the tree: aws-lc-rs under rustls. Fails when another gets in through a dependency.
set -euo pipefail
found=0
tree=$(cargo tree --edges normal,build --prefix none --format '{p}' --all-features)
for crate in ring openssl openssl-sys native-tls serde_yaml serde_yml; do
  if line=$(grep -m1 "^$crate v" <<<"$tree"); then
    echo "banned crate in the tree: $line (see it with: cargo tree -i $crate)" >&2
    found=1
  fi
done
exit "$found"
