#!/usr/bin/env bash
# Boots a QEMU guest that is a host: it runs sealvold on a disk that an NBD server on a Unix socket serves. host.sh is what it does.
#
#   machine.sh DIRECTORY DISK-SOCKET SERIAL-SOCKET PORT PROGRAM...
#
# The first boot makes a disk of programs in DIRECTORY, with each PROGRAM on it. The guest waits for whoever connects to SERIAL-SOCKET,
# and is told there what to do; its NBD port is PORT on this machine's loopback. The kernel's words go to DIRECTORY/console.
# This process becomes QEMU: who kills it cuts the guest's power.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { echo "machine: $*" >&2; exit 2; }
(($# > 4)) || die "usage: machine.sh DIRECTORY DISK-SOCKET SERIAL-SOCKET PORT PROGRAM..."
directory=$1 socket=$2 serial=$3 port=$4
shift 4
work=$directory/work
mkdir -p "$work"

# shellcheck source=parts.sh
. "$here/parts.sh"
need qemu-system-x86_64 e2fsck xfs_repair xz busybox
exec 9>"$cache/lock"
flock 9
[[ -e $kernel/vmlinuz ]] || fetch_kernel
exec 9>&-

tools=$directory/tools.ext4
[[ -e $tools ]] || programs_disk "$tools" e2fsck xfs_repair "$@"
first=$directory/first
if [[ ! -e $first ]]; then
    first_files "$first.new" "$here/host.sh"
    : >"$first.new/parameters"
    sed -i -E '/^(nbd|dm-crypt|dm-mod|ecb|xts)$/d' "$first.new/modules/order"
    pack "$first.new" "$first"
fi
tools_disk "$tools"
exec "${qemu[@]}" "${disk[@]}" -serial "file:$directory/console" -serial "unix:${serial//,/,,},server=on,wait=on" \
    -kernel "$kernel/vmlinuz" -initrd "$first" \
    -blockdev "driver=nbd,node-name=state,server.type=unix,server.path=${socket//,/,,}" -device virtio-blk-pci,drive=state,serial=state \
    -netdev "user,id=n0,ipv6=off,hostfwd=tcp:127.0.0.1:$port-:10809" -device virtio-net-pci,netdev=n0,romfile=
