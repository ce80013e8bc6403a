#!/usr/bin/env bash
# Prints the kubectl binaries that the end-to-end tests run, joined by colons.
#
#   tests/kubectls.sh path                    the kubectl on the PATH, or else Debian's newest
#   tests/kubectls.sh bookworm trixie sid     those of Debian releases: 1.20 (SPDY only), 1.32, the newest
#
# Binaries from Debian are unpacked into a cache folder; nothing is installed and the machine's own package state is
# not touched. Where apt-get is not there, set PODGATE_KUBECTLS yourself; it is then printed as it is.
set -euo pipefail

if [ -n "${PODGATE_KUBECTLS:-}" ]; then
  echo "$PODGATE_KUBECTLS"
  exit
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/podgate/kubectl

give_up() {
  echo "tests/kubectls.sh: $1" >&2
  echo "The end-to-end tests need a real kubectl, any version from 1.20 on. Install one so that it is on the PATH, or" >&2
  echo "name binaries in PODGATE_KUBECTLS (joined by colons)." >&2
  exit 1
}

# Unpacks the kubectl of a Debian release and prints its path.
fetch() {
  local release=$1 package=kubectl home=$cache/$1 mirror
  # "Newest" is looked for again once a week.
  if [ -n "$(find "$home/kubectl" -perm -100 -mtime -7 2>/dev/null)" ]; then
    echo "$home/kubectl"
    return
  fi
  command -v apt-get >/dev/null || give_up "apt-get is not here to fetch the kubectl of Debian $release"
  [ "$release" = bookworm ] && package=kubernetes-client
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 '/debian/*$') ||
    give_up "apt-get knows no Debian mirror to fetch the kubectl of $release from"
  rm -rf "$home" && mkdir -p "$home"/apt/{lists,archives}/partial
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main" >"$home/apt/sources.list"
  cat >"$home/apt/apt.conf" <<CONF
Dir::Etc::SourceList "$home/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$home/apt/lists";
Dir::State::Status "/dev/null";
Dir::Cache::Archives "$home/apt/archives";
Dir::Cache::PkgCache "";
Dir::Cache::SrcPkgCache "";
APT::Sandbox::User "root";
CONF
  (
    cd "$home/apt"
    export APT_CONFIG=$home/apt/apt.conf
    apt-get -qq update && apt-get -qq download "$package" && dpkg-deb --extract ./*.deb root
  ) >"$home/log" 2>&1 || give_up "could not fetch $package of Debian $release, see $home/log"
  # The time of unpacking, not of building, is what its age is counted from.
  install -m 755 "$(find "$home/apt/root" -type f -name kubectl -path '*bin*' | head -1)" "$home/kubectl"
  rm -rf "$home/apt"
  echo "$home/kubectl"
}

paths=()
for wanted in "${@:-path}"; do
  if [ "$wanted" = path ]; then
    paths+=("$(command -v kubectl || fetch sid)")
  else
    paths+=("$(fetch "$wanted")")
  fi
done
(IFS=:; echo "${paths[*]}")
