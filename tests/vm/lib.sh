# shellcheck shell=bash disable=SC2034 # what is set here is read by the scripts that source it
# What a virtual machine of the tests is made of, all of it from Debian packages: QEMU on this machine, and
# in the cache a kernel, an initial RAM disk and the image of a small root file system.
#
# To be sourced after deploy/lib.sh. `vm_prepare` makes what is missing; `vm_accelerator` says how fast the
# machine will be. Nothing is installed into the machine but QEMU and a few tools, no kernel of its own.
VM_HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${RORQUAL_CACHE:-/var/cache/rorqual}
VM_HOME=$CACHE/vm

# On this machine.
VM_TOOLS=(qemu-system-x86 busybox-static cpio e2fsprogs kmod)

# In the virtual one. Their maintainer scripts do not run; `vm_configure` does what counts of them.
VM_PACKAGES=(base-passwd bash busybox-static coreutils curl dash dbus diffutils findutils gawk grep gzip
  hostname iproute2 iputils-ping jq kmod libc-bin nftables passwd procps sed systemd systemd-sysv tar udev uidmap
  util-linux wireguard-tools)

# More of it, for the suites that run other people's engines above the runtime, or build programs. A root file system
# of its own, since most machines do without.
VM_ENGINES=(apparmor bsdutils catatonit containerd docker.io gcc iptables libc6-dev libseccomp2 netavark podman runc
  slirp4netns)

# The smallest kernel that has what we need; of Debian, then of Ubuntu.
VM_KERNELS=(linux-image-cloud-amd64 linux-image-virtual)

# What the initial RAM disk needs to find the disks; the rest comes from the root file system.
VM_BOOT_MODULES=(virtio_pci virtio_blk virtio_net virtio_console ext4)

# The image is sparse: what is not written to takes no room on this machine.
VM_ROOT_SIZE=3G

# vm_unavailable prints why no virtual machine can be made here, or nothing.
vm_unavailable() {
  local log
  [[ $(dpkg --print-architecture 2>/dev/null) == amd64 ]] || { echo "only amd64 has been tried" && return; }
  log=$( (rq_install_packages "${VM_TOOLS[@]}") 2>&1) || echo "QEMU cannot be installed: ${log##*$'\n'}"
}

# vm_prepare KIND sets VM_KERNEL, VM_INITRD and VM_ROOT, and makes what is missing of them: KIND is small or engines.
# Needs root.
vm_prepare() {
  local kernel debs key packages=("${VM_PACKAGES[@]}" libnss-systemd)
  [[ $1 != engines ]] || packages+=("${VM_ENGINES[@]}")
  mkdir -p "$VM_HOME"
  # One at a time per cache; who comes second finds it all done.
  exec 8<"$VM_HOME"
  flock 8
  kernel=$(vm_choose_kernel) || die "none of ${VM_KERNELS[*]} is to be had from this machine's package sources"
  debs=$(debs_resolve "${packages[@]}") || die "cannot resolve ${packages[*]}"
  key=$1-$({ echo "$kernel$debs$VM_ROOT_SIZE" && cat "$VM_HERE/lib.sh" "$VM_HERE/guest/initrd"; } | sha256sum | cut -c1-16)
  VM_KERNEL=$VM_HOME/$key/kernel VM_INITRD=$VM_HOME/$key/initrd VM_ROOT=$VM_HOME/$key/root
  if [[ ! -e $VM_ROOT ]]; then
    note "making the virtual machine's kernel and root file system ($1)"
    # Older ones of its kind are of no use to anybody, and neither is one that was not finished.
    find "$VM_HOME" -mindepth 1 -maxdepth 1 -name "$1-*" -exec rm -rf {} +
    mkdir -p "$VM_HOME/$key/tree"
    vm_make "$VM_HOME/$key" "$kernel" "$debs" "${packages[@]}"
    rm -rf "$VM_HOME/$key/tree"
  fi
  exec 8<&-
}

# vm_choose_kernel prints the packages that hold the kernel and its modules, one a line.
vm_choose_kernel() {
  local meta
  for meta in "${VM_KERNELS[@]}"; do
    debs_resolve "$meta" 2>/dev/null | grep -oE '^linux-(image|modules)-[0-9][^_]*' && return
  done
  return 1
}

# vm_make DIR KERNEL DEBS PACKAGE... makes DIR/kernel, DIR/initrd and, last, DIR/root.
vm_make() {
  local dir=$1 tree=$1/tree file version
  debs_fetch "${@:4}" || die "cannot fetch the packages of the virtual machine"
  while read -r file _; do deb_into "$CACHE/apt/archives/$file" "$tree"; done <<<"$3"
  rm -rf "$tree"/usr/share/{doc,man,info,locale,bash-completion,zsh,lintian}
  vm_configure "$tree"

  mkdir "$dir/packages"
  # shellcheck disable=SC2086 # one package a line
  (cd "$dir/packages" && apt_apart download $2 >&2) || die "cannot fetch ${2//$'\n'/ }"
  for file in "$dir"/packages/*.deb; do deb_into "$file" "$tree"; done
  rm -r "$dir/packages"
  for file in "$tree"/boot/vmlinuz-*; do break; done
  version=${file##*/vmlinuz-}
  mv "$file" "$dir/kernel"
  rm -r "${tree:?}/boot"
  depmod -b "$tree" "$version"
  vm_make_initrd "$tree" "$version" "$dir/initrd"

  vm_disk "$tree" "$dir/root.part" "$VM_ROOT_SIZE"
  mv "$dir/root.part" "$dir/root"
}

# vm_configure TREE does what the maintainer scripts of the unpacked packages would have.
vm_configure() {
  local tree=$1 applet number=990
  mkdir -p "$tree"/{dev,etc,home,mnt,proc,root,run,srv,sys,tmp,var/tmp,var/log}
  chmod 1777 "$tree"/{tmp,var/tmp}
  [[ -e $tree/var/run ]] || ln -s ../run "$tree/var/run"
  cp "$tree/usr/share/base-passwd/passwd.master" "$tree/etc/passwd"
  cp "$tree/usr/share/base-passwd/group.master" "$tree/etc/group"
  for applet in input kvm render sgx; do
    grep -q "^$applet:" "$tree/etc/group" || echo "$applet:x:$((number++)):" >>"$tree/etc/group"
  done
  grep -q '^messagebus:' "$tree/etc/passwd" || {
    echo 'messagebus:x:999:999::/nonexistent:/usr/sbin/nologin' >>"$tree/etc/passwd"
    echo 'messagebus:x:999:' >>"$tree/etc/group"
  }
  printf 'passwd: files systemd\ngroup: files systemd\nhosts: files dns\n' >"$tree/etc/nsswitch.conf"
  printf '127.0.0.1 localhost\n' >"$tree/etc/hosts"
  : >"$tree/etc/machine-id"
  : >"$tree/etc/resolv.conf"
  [[ -e $tree/usr/bin/sh ]] || ln -s dash "$tree/usr/bin/sh"
  [[ -e $tree/usr/bin/awk ]] || ln -s gawk "$tree/usr/bin/awk"
  [[ ! -e $tree/usr/bin/gcc ]] || ln -sf gcc "$tree/usr/bin/cc"
  [[ ! -e $tree/usr/sbin/iptables-nft ]] || ln -sf iptables-nft "$tree/usr/sbin/iptables"
  [[ ! -e $tree/usr/sbin/ip6tables-nft ]] || ln -sf ip6tables-nft "$tree/usr/sbin/ip6tables"
  chroot "$tree" /sbin/ldconfig
  chroot "$tree" /bin/systemd-sysusers
  # What busybox has and the packages do not.
  for applet in nc vi wget less ping; do
    [[ -e $tree/usr/bin/$applet ]] || ln -s busybox "$tree/usr/bin/$applet"
  done
  # The engines of tests are started by the tests.
  for applet in containerd.service docker.service docker.socket podman.service podman.socket podman-restart.service; do
    ln -sf /dev/null "$tree/etc/systemd/system/$applet"
  done
  # Nobody logs in, there is no hardware to be looked for, and /tmp may hold what a machine is for.
  for applet in getty.target systemd-udev-trigger.service systemd-udev-settle.service systemd-logind.service \
    systemd-journal-flush.service systemd-timesyncd.service systemd-resolved.service tmp.mount; do
    ln -sf /dev/null "$tree/etc/systemd/system/$applet"
  done
}

# vm_make_initrd TREE VERSION OUT: busybox, the modules in the order of their loading, and guest/initrd.
vm_make_initrd() {
  local tree=$1 version=$2 out=$3 work number=100 module line
  work=$(mktemp -d "$out.XXXXXX")
  mkdir -p "$work"/{bin,dev,modules,proc,sys,root}
  cp "$tree/usr/bin/busybox" "$work/bin/busybox"
  for module in $("$work/bin/busybox" --list); do
    [[ $module == busybox ]] || ln -s busybox "$work/bin/$module"
  done
  install -m 0755 "$VM_HERE/guest/initrd" "$work/init"
  for module in "${VM_BOOT_MODULES[@]}"; do
    modprobe -d "$tree" -S "$version" --show-depends "$module"
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/order"
  while read -r line; do
    module=$work/modules/$((number++))-$(basename "${line%%.ko*}").ko
    case $line in
    *.zst) zstd -dqc "$line" >"$module" ;;
    *.xz) xz -dc "$line" >"$module" ;;
    *) cp "$line" "$module" ;;
    esac
  done <"$work/order"
  vm_cpio "$work" >"$out"
  rm -rf "$work"
}

# vm_cpio DIR: the folder as an initial RAM disk on stdout. Several can stand one behind the other.
vm_cpio() { (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0); }

# vm_disk DIR OUT SIZE: the folder as the image of an ext4 file system.
vm_disk() {
  truncate -s "$3" "$2"
  # No journal: nobody will look at it after its machine has ended.
  mke2fs -q -F -t ext4 -O ^has_journal -E lazy_itable_init=1,root_owner=0:0 -d "$1" "$2" </dev/null >&2 ||
    die "cannot make an image of $1: is the disk of $2 full?"
}

# vm_accelerator prints kvm where the processor's own virtualisation works, else tcg: emulation, several
# times slower. RORQUAL_VM_ACCEL chooses. A device file says nothing: within another virtual machine it may
# be there and not work, so a machine is booted once with it; the answer is kept until this one is booted anew.
vm_accelerator() {
  local boot answer=tcg kept=$VM_HOME/accelerator
  [[ -z ${RORQUAL_VM_ACCEL:-} ]] || { echo "$RORQUAL_VM_ACCEL" && return; }
  boot=$(</proc/sys/kernel/random/boot_id)
  if [[ ! -f $kept || $(<"$kept") != "$boot "* ]]; then
    if [[ -w /dev/kvm ]] && RORQUAL_VM_ACCEL=kvm "$VM_HERE/boot" --timeout 20 -- true >/dev/null 2>&1; then answer=kvm; fi
    echo "$boot $answer" >"$kept"
  fi
  cut -d' ' -f2 "$kept"
}
