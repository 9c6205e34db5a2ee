# What a guest does with the volume (busybox sh). One line a step goes to the second serial port.
export PATH=/sbin:/bin HOME=/run
. /run/parameters
stty -F /dev/ttyS1 raw -echo 2>/dev/null
exec 3>/dev/ttyS1
failures=0

say() { read -r now rest </proc/uptime; echo "$now $*" >&3; }
fail() { say "FAIL $1"; failures=$((failures + 1)); return 1; }
step() { # NAME COMMAND...
    name=$1
    shift
    if "$@" >/run/out 2>&1 </dev/null; then say "ok   $name"; return 0; fi
    tail -n 25 /run/out | sed 's/^/     | /' >&3
    dmesg | tail -n 3 | sed 's/^/     # /' >&3
    fail "$name"
}

nbd=/dev/nbd0
connect() { # -t: without a time-out, I/O that a dead server cut off hangs for ever
    nbd-client -N "$export" 10.0.2.2 "$port" $nbd -b 4096 -t 15 -C 4 || return 1
    for try in $(seq 50); do [ "$(cat /sys/block/nbd0/size)" = 0 ] || break; sleep 0.1; done
    nbd-client -c $nbd
}
disconnect() {
    nbd-client -d $nbd || return 1
    for try in $(seq 50); do nbd-client -c $nbd >/dev/null || return 0; sleep 0.1; done
    return 1
}

write_files() { # DIRECTORY: files large and small, sparse, renamed, removed and overwritten, and the checksums of all
    mkdir -p /mnt/$1/sub || return 1
    for i in 1 2 3 4 5 6 7 8; do
        dd if=/dev/urandom of=/mnt/$1/random$i bs=65521 count=$((i * 5)) 2>/dev/null || return 1
    done
    for i in $(seq 150); do echo "small file $i of $1" >/mnt/$1/sub/small$i || return 1; done
    mv /mnt/$1/random2 /mnt/$1/sub/moved && rm /mnt/$1/sub/small7 &&
        dd if=/dev/urandom of=/mnt/$1/random3 bs=4096 seek=3 count=5 conv=notrunc,fsync 2>/dev/null &&
        dd if=/dev/urandom of=/mnt/$1/sub/sparse bs=4096 seek=2000 count=2 2>/dev/null &&
        (cd /mnt && find $1 -type f | sort | xargs sha256sum >/run/sums && cp /run/sums $1.sha256) && sync
}
check_files() { (cd /mnt && sha256sum -c $1.sha256 >/run/sums 2>&1) || { grep -v ': OK' /run/sums; return 1; }; }

boot_kernel() {
    step connect connect || return
    step mkfs mkfs.ext4 -F -q $nbd && step mount mount -t ext4 $nbd /mnt || return
    step write write_files A
    step trim fstrim -v /mnt
    step unmount umount /mnt
    step fsck e2fsck -fn $nbd
    step disconnect disconnect
    step reconnect connect || return
    step fsck-again e2fsck -fn $nbd
    step mount-again mount -t ext4 -o ro $nbd /mnt && step compare check_files A && step unmount-again umount /mnt
    step disconnect-again disconnect
}
find_volume() {
    for disk in /sys/block/vd*; do [ "$(cat $disk/serial)" = volume ] && volume=/dev/${disk##*/}; done
    [ -n "$volume" ] || fail "find the volume"
}
boot_virtio() {
    find_volume || return
    step fsck e2fsck -fn $volume && step mount mount -t ext4 $volume /mnt || return
    step compare check_files A
    step write write_files B
    step trim fstrim -v /mnt
    step unmount umount /mnt
    step fsck-again e2fsck -fn $volume
    blockdev --flushbufs $volume
    step mount-again mount -t ext4 -o ro $volume /mnt && step compare-again check_files B && step unmount-again umount /mnt
}
boot_plain() { # dm-crypt alone, as docs/escape-hatch.md says
    find_volume || return
    [ "$sector" = 4096 ] && large=--iv-large-sectors || large=
    export DM_DISABLE_UDEV=1
    step open cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 512 --sector-size $sector $large \
        --key-file /run/key $volume plain || return
    plain=/dev/mapper/plain
    step fsck e2fsck -fn $plain && step mount mount -t ext4 $plain /mnt || return
    step compare check_files A
    step write write_files B
    step unmount umount /mnt
    step fsck-again e2fsck -fn $plain
    step mount-again mount -t ext4 -o ro $plain /mnt && step compare-again check_files B && step unmount-again umount /mnt
    step close cryptsetup close plain
}
boot_recheck() {
    step connect connect || return
    step fsck e2fsck -fn $nbd && step mount mount -t ext4 -o ro $nbd /mnt || return
    step compare-first check_files A
    step compare-second check_files B
    step unmount umount /mnt
    step disconnect disconnect
}

say "start kernel=$(uname -r)"
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip addr add 10.0.2.15/24 dev eth0
    ip link set eth0 up
fi
boot_$boot
# Programs such as mkfs end well although the kernel saw errors.
if dmesg | grep -E 'BUG:|Oops:|WARNING:|I/O error|EXT4-fs error|blocked for more' | head -n 10 | grep . >/run/bad; then
    sed 's/^/     # /' /run/bad >&3
    fail "kernel log"
fi
say "end failures=$failures"
