#!/usr/bin/env bash
# Makes a Debian package: build.sh BINARY ARCH VERSION OUTDIR. Needs dpkg-deb. BINARY must run on this machine (it writes its own man pages
# and completions), or MANBIN names one that does.
set -euo pipefail
bin=$1 arch=$2 version=${3#v} out=$4
here=$(cd "$(dirname "$0")" && pwd)
run=${MANBIN:-$bin}
[[ $version =~ ^[0-9]+\. ]] || version=0~$version # no tag: older than every release
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 0755 "$root"
install -D -m 0755 "$bin" "$root/usr/bin/kiloraft"
install -D -m 0644 "$here/../systemd/kiloraft.service" "$root/lib/systemd/system/kiloraft.service"
install -D -m 0640 "$here/../systemd/kiloraft.yaml" "$root/etc/kiloraft/kiloraft.yaml"
mkdir -p "$root/usr/share/man/man1"
"$run" man "$root/usr/share/man/man1" >/dev/null
gzip -9n "$root"/usr/share/man/man1/*
mkdir -p "$root/usr/share/bash-completion/completions" "$root/usr/share/zsh/vendor-completions" "$root/usr/share/fish/vendor_completions.d"
"$run" completion bash >"$root/usr/share/bash-completion/completions/kiloraft"
"$run" completion zsh >"$root/usr/share/zsh/vendor-completions/_kiloraft"
"$run" completion fish >"$root/usr/share/fish/vendor_completions.d/kiloraft.fish"
mkdir -p "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<TXT
Package: kiloraft
Version: ${version//-/+}
Architecture: $arch
Maintainer: kiloraft maintainers <maintainers@kiloraft.invalid>
Section: database
Priority: optional
Depends: adduser
Description: replicated, range-sharded key-value store
 Hosts thousands of Raft groups in one process: one connection per peer, one
 disk sync for all of them.
TXT
echo /etc/kiloraft/kiloraft.yaml >"$root/DEBIAN/conffiles"
install -m 0755 "$here/postinst" "$here/prerm" "$root/DEBIAN/"
mkdir -p "$out"
dpkg-deb --root-owner-group --build "$root" "$out/kiloraft_${version//-/+}_$arch.deb"
