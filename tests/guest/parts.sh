# What every guest is made of: a kernel of Debian's, a disk of programs, and the first file system. Read by vmtest.sh and machine.sh, which
# have set `here`, and `work`, a directory that they remove.
#
# Everything comes from Debian packages and is kept in ${XDG_CACHE_HOME:-~/.cache}/sealvol-tests; apt's configuration is not touched.

cache=${XDG_CACHE_HOME:-$HOME/.cache}/sealvol-tests
suite=bookworm
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$cache"

need() { # PROGRAM...
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || die "$program is not installed: run tools/install-packages"
    done
}

# ---- The guest's kernel, its few modules unpacked and in load order. Signed, and through apt state of its own.
modules=(virtio_pci virtio_blk virtio_net virtio_rng nbd dm_crypt aes_generic ecb xts crc32c_generic xfs)
kernel=$cache/kernel-$suite-$(cksum <<<"${modules[*]}" | cut -d ' ' -f 1)
fetch_kernel() {
    local new=$work/kernel state=$work/apt source version module
    mkdir -p "$state"/{lists/partial,archives/partial} "$new/modules" "$work/unpacked"
    source="deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main"
    echo "$source" >"$state/sources.list"
    local options=(-qq -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::Etc::preferencesparts=/dev/null -o Dir::State::lists="$state/lists" -o Dir::Cache="$state"
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3)
    echo "guest: fetching the $suite cloud kernel into $cache"
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
programs_disk() { # IMAGE PROGRAM...
    local tree=$work/tools path library applet image=$1
    shift
    mkdir -p "$tree"/{bin,sbin,proc,sys,dev,run,tmp,mnt,etc}
    cp "$(command -v busybox)" "$tree/bin/busybox"
    for applet in $(busybox --list); do [[ -e $tree/bin/$applet ]] || ln -s busybox "$tree/bin/$applet"; done
    for path in "$@"; do
        path=$(command -v "$path")
        cp -L "$path" "$tree/sbin/${path##*/}"
        for library in $(ldd "$path" | grep -oE '/[^ ]+' || :); do
            [[ -e $tree$library ]] || { mkdir -p "$tree$(dirname "$library")"; cp -L "$library" "$tree$library"; }
        done
    done
    echo 'root:x:0:0:root:/:/bin/sh' >"$tree/etc/passwd"
    : >"$tree/etc/mtab"
    truncate -s $(($(du -sm "$tree" | cut -f1) * 5 / 4 + 16))M "$work/tools.ext4"
    mke2fs -q -F -t ext4 -O ^has_journal -m 0 -d "$tree" "$work/tools.ext4"
    mv "$work/tools.ext4" "$image"
    rm -rf "$tree"
}

# ---- The first file system of the guest.
first_files() { # DIRECTORY SCRIPT: all but /parameters; SCRIPT is what runs in the guest
    mkdir -p "$1"/{bin,proc,sys,dev,tools}
    cp "$(command -v busybox)" "$1/bin/busybox"
    cp -r "$kernel/modules" "$1/modules"
    cp "$here/init.sh" "$1/init"
    cp "$2" "$1/guest.sh"
    chmod +x "$1/init"
}
pack() { # DIRECTORY CPIO
    (cd "$1" && find . | cpio --quiet -o -H newc) >"$2"
}

# Without cx16, because QEMU 7.2's emulation of it makes newer kernels fail at random.
qemu=(qemu-system-x86_64 -machine pc -accel "tcg,thread=multi" -cpu "max,-cx16" -smp 2 -m 512
    -nodefaults -no-user-config -display none -no-reboot
    -append "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check tsc=reliable" -device virtio-rng-pci)
tools_disk() { # IMAGE: QEMU's arguments for a disk of programs
    disk=(-drive "file=$1,format=raw,if=none,id=tools,readonly=on,file.locking=off" -device "virtio-blk-pci,drive=tools,serial=tools")
}
