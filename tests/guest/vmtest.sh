#!/usr/bin/env bash
# Boots throw-away QEMU guests (a stock Debian kernel, no KVM needed) that use an NBD export as a real machine would:
#
#   kernel   the guest kernel's own NBD client, over four connections: mkfs, files, trim, fsck, disconnect, reconnect, compare
#   virtio   QEMU is the NBD client, the guest sees a virtio disk: checks what `kernel` wrote, writes more
#   recheck  the kernel client again: checks both
#
#   vmtest.sh [--boots kernel,virtio,recheck] SOCKET EXPORT
#   vmtest.sh --plain DATA KEY-FILE SECTOR-SIZE
#
# With --plain the guest sees the file DATA as a disk, opens it by dm-crypt (`cryptsetup open --type plain`), compares the file
# system in it with its A.sha256, writes more files with B.sha256, and closes it. No sealvol is near.
#
# The export is OVERWRITTEN; it must have 160 MiB. What guests are made of: parts.sh. The guest reaches loopback only.
# Exit: 0 all passed; 1 a check in the guest failed; 2 usage or set-up; 3 the guest died or ran out of time.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
boots=kernel,virtio,recheck seconds=240

die() { echo "vmtest: $*" >&2; exit 2; }
[[ ${1:-} != --boots ]] || { boots=${2:?--boots wants a list}; shift 2; }
socket='' export='' data='' key='' sector=''
if [[ ${1:-} == --plain ]]; then
    (($# == 4)) || die "usage: vmtest.sh --plain DATA KEY-FILE SECTOR-SIZE"
    boots=plain data=$2 key=$3 sector=$4
    [[ -f $data && -f $key ]] || die "no such file: $data or $key"
else
    (($# == 2)) || die "usage: vmtest.sh [--boots LIST] SOCKET EXPORT"
    socket=$1 export=$2
    [[ -S $socket ]] || die "no such socket: $socket"
fi

work=$(mktemp -d) processes=()
clean_up() {
    for process in "${processes[@]}"; do kill "$process" 2>/dev/null || :; done
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# shellcheck source=parts.sh
. "$here/parts.sh"
need qemu-system-x86_64 nbd-client mke2fs e2fsck fstrim cryptsetup xz busybox python3
programs=(nbd-client mke2fs mkfs.ext4 e2fsck fstrim cryptsetup)
tools=$cache/tools.ext4
exec 9>"$cache/lock"
flock 9
[[ -e $kernel/vmlinuz ]] || fetch_kernel
stamp=$(for program in busybox "${programs[@]}"; do stat -Lc '%n %s %Y' "$(command -v "$program")"; done)
if [[ ! -e $tools || $(cat "$tools.stamp" 2>/dev/null) != "$stamp" ]]; then
    programs_disk "$tools" "${programs[@]}"
    echo "$stamp" >"$tools.stamp"
fi
exec 9>&-

initrd=$work/initrd
first_files "$initrd" "$here/guest.sh"
[[ -z $key ]] || install -m 600 "$key" "$initrd/key"
tools_disk "$tools"

# The guest's kernel client speaks TCP: a relay on loopback carries it to the socket.
port=''
if [[ -n $socket ]]; then
    python3 "$here/relay.py" "$socket" "$work/port" &
    processes+=($!)
    for _ in {1..100}; do [[ ! -s $work/port ]] || break; sleep 0.1; done
    port=$(<"$work/port")
fi

boot() { # NAME QEMU-ARGUMENT...
    local name=$1 result=$work/$1.result console=$work/$1.console code=0 process
    shift
    printf "boot=%s\nexport='%s'\nport=%s\nsector=%s\n" "$name" "$export" "$port" "$sector" >"$initrd/parameters"
    pack "$initrd" "$work/initrd.cpio"
    : >"$result"
    timeout -k 5 "$seconds" "${qemu[@]}" "${disk[@]}" -serial "file:$console" -serial "file:$result" \
        -kernel "$kernel/vmlinuz" -initrd "$work/initrd.cpio" "$@" </dev/null >"$work/qemu" 2>&1 &
    process=$!
    processes+=("$process")
    wait "$process" || code=$?
    tr -d '\r' <"$result" | sed "s/^/[$name] /"
    if ! grep -q ' end failures=' "$result"; then
        echo "[$name] the guest did not finish (code $code)"
        tail -n 20 "$work/qemu" "$console" | cut -c1-200
        exit 3
    fi
    grep -q ' end failures=0' "$result" || exit 1
}

network=(-netdev user,id=n0,ipv6=off -device virtio-net-pci,netdev=n0,romfile=)
volume=(-blockdev "driver=nbd,node-name=volume,export=${export//,/,,},discard=unmap,server.type=unix,server.path=${socket//,/,,}"
    -device virtio-blk-pci,drive=volume,serial=volume,physical_block_size=4096)
for name in ${boots//,/ }; do
    case $name in
        kernel | recheck) boot "$name" "${network[@]}" ;;
        virtio) boot "$name" "${volume[@]}" ;;
        plain)
            boot "$name" -drive "file=${data//,/,,},format=raw,if=none,id=volume,cache=writeback" \
                -device "virtio-blk-pci,drive=volume,serial=volume,logical_block_size=$sector,physical_block_size=4096"
            ;;
        *) die "no boot '$name': there are kernel, virtio and recheck" ;;
    esac
done
