#!/bin/busybox sh
# The guest's first process: loads modules, finds the disk of programs, runs guest.sh from it, and powers off.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs dev /dev 2>/dev/null
for module in $($B cat /modules/order); do
    case $module in nbd) options='nbds_max=2 max_part=0' ;; *) options='' ;; esac
    $B insmod /modules/$module.ko $options || echo "insmod $module failed"
done
for try in 1 2 3 4 5 6 7 8 9 10; do
    for disk in /sys/block/vd*; do
        [ "$($B cat $disk/serial 2>/dev/null)" = tools ] && tools=${disk##*/}
    done
    [ -n "$tools" ] && break
    $B sleep 0.1
done
$B mount -t ext4 -o ro /dev/$tools /tools || { echo "no disk of programs"; $B poweroff -f; }
for directory in proc sys dev; do $B mount -o move /$directory /tools/$directory; done
for directory in run tmp; do $B mount -t tmpfs tmpfs /tools/$directory; done
$B cp /guest.sh /parameters /tools/run/
[ ! -e /key ] || $B cp /key /tools/run/
$B chroot /tools /bin/sh /run/guest.sh
$B chroot /tools /bin/sh -c sync
$B poweroff -f
