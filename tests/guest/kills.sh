#!/usr/bin/env bash
# Boots a QEMU guest whose virtio disk is an NBD export, and which outlives the server: QEMU connects again and repeats what was not answered.
#
#   kills.sh DIRECTORY NBD-SOCKET EXPORT SERIAL-SOCKET
#
# What it does there is writer.sh; it says so, and is told to end, over SERIAL-SOCKET. The kernel's words go to DIRECTORY/console. This process becomes
# QEMU.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { echo "kills: $*" >&2; exit 2; }
(($# == 4)) || die "usage: kills.sh DIRECTORY NBD-SOCKET EXPORT SERIAL-SOCKET"
directory=$1 socket=$2 export=$3 serial=$4
work=$directory/work
mkdir -p "$work"

# shellcheck source=parts.sh
. "$here/parts.sh"
need qemu-system-x86_64 mkfs.ext4 e2fsck xz busybox
exec 9>"$cache/lock"
flock 9
[[ -e $kernel/vmlinuz ]] || fetch_kernel
exec 9>&-

programs_disk "$directory/tools.ext4" mkfs.ext4 e2fsck
first_files "$directory/first.d" "$here/writer.sh"
: >"$directory/first.d/parameters"
pack "$directory/first.d" "$directory/first"
tools_disk "$directory/tools.ext4"
exec "${qemu[@]}" "${disk[@]}" -serial "file:$directory/console" -serial "unix:${serial//,/,,},server=on,wait=on" \
    -kernel "$kernel/vmlinuz" -initrd "$directory/first" \
    -blockdev "driver=nbd,node-name=volume,server.type=unix,server.path=${socket//,/,,},export=$export,reconnect-delay=120" \
    -device virtio-blk-pci,drive=volume,serial=volume
