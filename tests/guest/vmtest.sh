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
# The export is OVERWRITTEN; it must have 160 MiB. Everything comes from Debian packages and is kept in
# ${XDG_CACHE_HOME:-~/.cache}/sealvol-tests; apt's configuration is not touched. The guest reaches loopback only.
# Exit: 0 all passed; 1 a check in the guest failed; 2 usage or set-up; 3 the guest died or ran out of time.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sealvol-tests
suite=bookworm boots=kernel,virtio,recheck seconds=240
PATH=$PATH:/usr/sbin:/sbin

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
for program in qemu-system-x86_64 nbd-client mke2fs e2fsck fstrim cryptsetup xz busybox python3; do
    command -v "$program" >/dev/null || die "$program is not installed: run tools/install-packages"
done

work=$(mktemp -d) processes=()
clean_up() {
    for process in "${processes[@]}"; do kill "$process" 2>/dev/null || :; done
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
mkdir -p "$cache"

# ---- The guest's kernel, its few modules unpacked and in load order. Signed, and through apt state of its own.
modules=(virtio_pci virtio_blk virtio_net virtio_rng nbd dm_crypt aes_generic ecb xts)
kernel=$cache/kernel-$suite-$(cksum <<<"${modules[*]}" | cut -d ' ' -f 1)
fetch_kernel() {
    local new=$work/kernel state=$work/apt source version module
    mkdir -p "$state"/{lists/partial,archives/partial} "$new/modules" "$work/unpacked"
    source="deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main"
    echo "$source" >"$state/sources.list"
    local options=(-qq -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::Etc::preferencesparts=/dev/null -o Dir::State::lists="$state/lists" -o Dir::Cache="$state"
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3)
    echo "vmtest: fetching the $suite cloud kernel into $cache"
    apt-get "${options[@]}" update || die "apt-get update failed"
    version=$(apt-cache "${options[@]}" show --no-all-versions linux-image-cloud-amd64 |
        sed -n 's/^Depends: \(linux-image-[^ ]*\).*/\1/p')
    (cd "$state" && apt-get "${options[@]}" download "$version") || die "cannot fetch $version"
    dpkg -x "$state"/linux-image-*.deb "$work/unpacked"
    cp "$work"/unpacked/boot/vmlinuz-* "$new/vmlinuz"
    : >"$new/modules/order"
    for module in "${modules[@]}"; do add_module "$module" "$new/modules"; done
    rm -rf "$work/unpacked" "$state" "$kernel"
    mv "$new" "$kernel"
}
add_module() { # NAME DIRECTORY: after what it depends on; one that is built in has no file
    local file name dependency
    file=$(find "$work/unpacked/lib/modules" -name "${1//_/[-_]}.ko*" -print -quit)
    [[ -n $file ]] || return 0
    name=$(basename "${file%%.ko*}")
    ! grep -qx "$name" "$2/order" || return 0
    case $file in *.xz) xz -dc "$file" ;; *) cat "$file" ;; esac >"$2/$name.ko"
    for dependency in $(tr '\0' '\n' <"$2/$name.ko" | sed -n 's/^depends=//p' | tr , ' '); do
        add_module "$dependency" "$2"
    done
    echo "$name" >>"$2/order"
}

# ---- The programs that run in the guest: this machine's own, with their libraries, on a read-only disk.
tools=$cache/tools.ext4
programs=(nbd-client mke2fs mkfs.ext4 e2fsck fstrim cryptsetup)
build_tools() {
    local tree=$work/tools program path library applet
    mkdir -p "$tree"/{bin,sbin,proc,sys,dev,run,tmp,mnt,etc}
    cp "$(command -v busybox)" "$tree/bin/busybox"
    for applet in $(busybox --list); do [[ -e $tree/bin/$applet ]] || ln -s busybox "$tree/bin/$applet"; done
    for program in "${programs[@]}"; do
        path=$(command -v "$program")
        cp -L "$path" "$tree/sbin/$program"
        for library in $(ldd "$path" | grep -oE '/[^ ]+' || :); do
            [[ -e $tree$library ]] || { mkdir -p "$tree$(dirname "$library")"; cp -L "$library" "$tree$library"; }
        done
    done
    echo 'root:x:0:0:root:/:/bin/sh' >"$tree/etc/passwd"
    : >"$tree/etc/mtab"
    truncate -s $(($(du -sm "$tree" | cut -f1) * 5 / 4 + 16))M "$work/tools.ext4"
    mke2fs -q -F -t ext4 -O ^has_journal -m 0 -d "$tree" "$work/tools.ext4"
    mv "$work/tools.ext4" "$tools"
    echo "$stamp" >"$tools.stamp"
    rm -rf "$tree"
}

exec 9>"$cache/lock"
flock 9
[[ -e $kernel/vmlinuz ]] || fetch_kernel
stamp=$(for program in busybox "${programs[@]}"; do stat -Lc '%n %s %Y' "$(command -v "$program")"; done)
[[ -e $tools && $(cat "$tools.stamp" 2>/dev/null) == "$stamp" ]] || build_tools
exec 9>&-

# ---- The first file system of the guest, made anew for each boot.
initrd=$work/initrd
mkdir -p "$initrd"/{bin,proc,sys,dev,tools}
cp "$(command -v busybox)" "$initrd/bin/busybox"
cp -r "$kernel/modules" "$initrd/modules"
cp "$here/init.sh" "$initrd/init"
cp "$here/guest.sh" "$initrd/guest.sh"
[[ -z $key ]] || install -m 600 "$key" "$initrd/key"
chmod +x "$initrd/init"

# The guest's kernel client speaks TCP: a relay on loopback carries it to the socket.
port=''
if [[ -n $socket ]]; then
    python3 "$here/relay.py" "$socket" "$work/port" &
    processes+=($!)
    for _ in {1..100}; do [[ ! -s $work/port ]] || break; sleep 0.1; done
    port=$(<"$work/port")
fi

boot() { # NAME QEMU-ARGUMENT...
    local name=$1 result=$work/$1.result console=$work/$1.console code=0 qemu
    shift
    printf "boot=%s\nexport='%s'\nport=%s\nsector=%s\n" "$name" "$export" "$port" "$sector" >"$initrd/parameters"
    (cd "$initrd" && find . | cpio --quiet -o -H newc) >"$work/initrd.cpio"
    : >"$result"
    # Without cx16, because QEMU 7.2's emulation of it makes newer kernels fail at random.
    timeout -k 5 "$seconds" qemu-system-x86_64 -machine pc -accel tcg,thread=multi -cpu max,-cx16 -smp 2 -m 512 \
        -nodefaults -no-user-config -display none -no-reboot -serial "file:$console" -serial "file:$result" \
        -kernel "$kernel/vmlinuz" -initrd "$work/initrd.cpio" \
        -append "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check tsc=reliable" \
        -drive "file=$tools,format=raw,if=none,id=tools,readonly=on,file.locking=off" \
        -device virtio-blk-pci,drive=tools,serial=tools -device virtio-rng-pci "$@" </dev/null >"$work/qemu" 2>&1 &
    qemu=$!
    processes+=("$qemu")
    wait "$qemu" || code=$?
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
