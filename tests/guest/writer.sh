# Writes files to an ext4 on its disk, on and on, while the disk's server is killed and comes back (busybox sh). It says "kept NUMBER" over the second
# serial port for each file that is synced, until it is told to end; then it looks whether the file system is whole and every file what it
# was, and says "end failures=NUMBER".
export PATH=/sbin:/bin HOME=/run
stty -F /dev/ttyS1 raw -echo 2>/dev/null
exec 3>/dev/ttyS1 4</dev/ttyS1
failures=0

say() { echo "$*" >&3; }
step() { # NAME COMMAND...
    name=$1
    shift
    "$@" >/run/out 2>&1 </dev/null && return 0
    tail -n 25 /run/out | sed 's/^/     | /' >&3
    dmesg | tail -n 5 | sed 's/^/     # /' >&3
    say "FAIL $name"
    failures=$((failures + 1))
    return 1
}

for disk in /sys/block/vd*; do [ "$(cat $disk/serial)" = volume ] && volume=/dev/${disk##*/}; done
write_file() { # NUMBER: large and small, new and overwritten
    dd if=/dev/urandom of=/mnt/file$(($1 % 40)) bs=4096 count=$(($1 * 7 % 64 + 1)) conv=fsync 2>/dev/null
}

: >/run/sums
if step "find the volume" test -b "$volume" && step mkfs mkfs.ext4 -F -q $volume && step mount mount -t ext4 $volume /mnt; then
    (read -r line <&4 && : >/run/told) &
    number=0
    while [ ! -e /run/told ] && step "write file $number" write_file $number; do
        name=file$((number % 40))
        (cd /mnt && sha256sum $name) >/run/sum
        # The sums are in memory: nothing that happens to the disk can change them.
        grep -v " $name\$" /run/sums >/run/others
        cat /run/others /run/sum >/run/sums
        say "kept $number"
        number=$((number + 1))
    done
    step unmount umount /mnt
    step fsck e2fsck -fn $volume
    # Not what the guest remembers, but what the server has.
    blockdev --flushbufs $volume
    step mount-again mount -t ext4 -o ro $volume /mnt && step compare sh -c 'cd /mnt && sha256sum -c /run/sums' && step unmount-again umount /mnt
fi
if dmesg | grep -E 'BUG:|Oops:|I/O error|EXT4-fs error' | head -n 10 | grep . >/run/bad; then
    sed 's/^/     # /' /run/bad >&3
    say "FAIL kernel log"
    failures=$((failures + 1))
fi
say "end failures=$failures"
