# A machine that runs sealvold on its disk (busybox sh). It says over the second serial port that it looks at its disk, then "ready", or
# what is wrong and "FAIL", and then, for each line that it is sent, what `sealvol LINE` ended with, as "done CODE OUTPUT"; for the
# line "log" the end of the daemon's log.
export PATH=/sbin:/bin HOME=/run
stty -F /dev/ttyS1 raw -echo 2>/dev/null
exec 3>/dev/ttyS1 4</dev/ttyS1

say() { echo "$*" >&3; }
fail() { # WHAT
    tail -n 25 /run/out | sed 's/^/     | /' >&3
    dmesg | tail -n 5 | sed 's/^/     # /' >&3
    say "FAIL $1"
    sleep 1000
}
step() { # NAME COMMAND...
    name=$1
    shift
    "$@" >/run/out 2>&1 </dev/null || fail "$name"
}

for disk in /sys/block/vd*; do [ "$(cat $disk/serial)" = state ] && state=/dev/${disk##*/}; done
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up

# The first mount replays the journal. What is left must be whole, and so must the kernel's word of it.
say "looks at its disk"
step "find the disk" test -b "$state"
step mount mount $state /mnt
kind=$(awk -v disk=$state '$1 == disk { print $3 }' /proc/mounts)
step unmount umount /mnt
case $kind in
    ext4) step fsck e2fsck -fn $state ;;
    xfs) step fsck xfs_repair -n $state ;;
    *) fail "no file system '$kind'" ;;
esac
step mount-again mount $state /mnt

# Written back at once, so that the disk's cache always holds what no FLUSH covers.
echo 5 >/proc/sys/vm/dirty_writeback_centisecs
echo 1 >/proc/sys/vm/dirty_expire_centisecs

# Everything in /mnt is on the disk; what is in /run dies with the machine, as it should.
mkdir -p /mnt/state /run/sealvol
# An emulated machine on a busy host needs longer for a key child than the ten seconds that it has: then nothing would be attached.
echo "key-deadline-s = 100" >/run/sealvold.toml
sealvold --config /run/sealvold.toml --state-dir /mnt/state --runtime-dir /run/sealvol --listen nbd://0.0.0.0:10809 --insecure-plaintext-tcp >/run/out 2>&1 </dev/null &
for try in $(seq 1200); do
    [ -S /run/sealvol/control.sock ] && sealvol --control /run/sealvol/control.sock status >/run/status 2>&1 && break
    kill -0 $! 2>/dev/null || fail "sealvold ended"
    [ $((try % 50)) = 0 ] && say "sealvold does not answer yet: $(tail -n 1 /run/status) / $(tail -n 1 /run/out)"
    sleep 0.1
done
[ $try = 1200 ] && fail "sealvold does not answer"
say ready
while read -r line <&4; do
    [ "$line" = log ] && say "done 0 $(tail -n 30 /run/out | tr '\n' ' ')" && continue
    sealvol --control /run/sealvol/control.sock $line >/run/said 2>&1 </dev/null
    say "done $? $(tr '\n' ' ' </run/said)"
done
