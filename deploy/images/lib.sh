# shellcheck shell=bash
# Common ground of the image scripts: tools, Debian packages, root filesystems, archives.
#
# `make` sources this file and then one image script. Nothing here runs a maintainer script of a
# package or changes the machine's own package state: packages are resolved against an empty status
# file, so the answer is the full dependency closure whatever the machine has installed.

# Every file in an image carries this time (2025-01-01), so that the same packages give the same
# bytes. SOURCE_DATE_EPOCH overrides it (https://reproducible-builds.org/specs/source-date-epoch/).
EPOCH=${SOURCE_DATE_EPOCH:-1735689600}

# Packages that an image does without, though others depend on them; its script may name some.
IMAGE_WITHOUT=()

note() { printf '%s\n' "$*" >&2; }

die() {
  printf '%s: %s\n' "${PROGRAM:-image}" "$*" >&2
  exit 1
}

# need_tools COMMAND:PACKAGE... installs the packages of those commands that are not here.
need_tools() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair#*:}")
  done
  ((${#missing[@]} == 0)) || install_packages "${missing[@]}"
}

# install_packages PACKAGE... with apt-get, quietly unless it fails.
install_packages() {
  note "installing $*"
  local log
  log=$(mktemp)
  if ! { DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" ||
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; }; } \
    >"$log" 2>&1 </dev/null; then
    tail -n 15 "$log" >&2
    rm -f "$log"
    die "cannot install $*: install them with apt-get and try again"
  fi
  rm -f "$log"
}

# ── Debian packages ────────────────────────────────────────────────────────────────────────────

# apt_apart ARGS... runs apt-get apart from the machine: own archives, own caches, and a package status that has
# nothing but IMAGE_WITHOUT. Only the package lists and their signatures are the machine's.
apt_apart() {
  local home=$CACHE/apt
  mkdir -p "$home"/{archives,none}/partial
  status_without "${IMAGE_WITHOUT[@]}" >"$home/status"
  apt-get -qq -y \
    -o Dir::State::status="$home/status" \
    -o Dir::State::extended_states="$home/extended_states" \
    -o Dir::Cache="$home" \
    -o APT::Sandbox::User=root \
    -o APT::Install-Recommends=false \
    "$@" </dev/null
}

# status_without PACKAGE... prints a package status in which those are installed, so that apt leaves them out of what
# others depend on, with all that they would bring.
status_without() {
  local package
  for package in "$@"; do
    printf 'Package: %s\nStatus: install ok installed\nArchitecture: all\nMulti-Arch: foreign\n' "$package"
    printf 'Version: 99:1\nMaintainer: nobody\nDescription: left out\n\n'
  done
}

# lists_state prints what the answers of apt depend on: its lists, sources and preferences.
lists_state() {
  find /var/lib/apt/lists /etc/apt -maxdepth 2 -type f -printf '%p %s %T@\n' 2>/dev/null | LC_ALL=C sort
}

# debs_resolve PACKAGE... prints the file name and the hash of every package in the closure, sorted.
# (An archive folder that stays empty: apt does not print what it has already fetched.)
# apt takes seconds to read its lists, so an answer is kept for as long as they stay the same.
# Refreshes the lists once when the packages are unknown (a fresh machine has none).
debs_resolve() {
  local out kept query=(-o Dir::Cache::archives="$CACHE/apt/none" --print-uris install "$@")
  mkdir -p "$CACHE/apt/resolved"
  kept=$CACHE/apt/resolved/$({ echo "$* without ${IMAGE_WITHOUT[*]}" && lists_state; } | sha256sum | cut -c1-16)
  if [[ ! -f $kept ]]; then
    if ! out=$(apt_apart "${query[@]}" 2>/dev/null); then
      [[ -n ${LISTS_FRESH:-} ]] || apt-get -qq update </dev/null >&2 || note "apt-get update failed"
      LISTS_FRESH=1
      out=$(apt_apart "${query[@]}") || return 1
      kept=$CACHE/apt/resolved/$({ echo "$* without ${IMAGE_WITHOUT[*]}" && lists_state; } | sha256sum | cut -c1-16)
    fi
    awk '{ print $2, $4 }' <<<"$out" | LC_ALL=C sort >"$kept.part"
    mv "$kept.part" "$kept"
  fi
  cat "$kept"
}

# package_known PACKAGE: is it to be had from the machine's sources?
package_known() { debs_resolve "$1" >/dev/null 2>&1; }

# debs_fetch PACKAGE... downloads the closure (hashes checked by apt).
debs_fetch() {
  # A version that left the mirror since the lists were read is the usual reason for a failure.
  apt_apart --download-only install "$@" >&2 || {
    apt-get -qq update </dev/null >&2
    apt_apart --download-only install "$@" >&2
  }
}

# debs_unpack DIR: each resolved package, read on stdin as debs_resolve prints them, into DIR/NAME.
debs_unpack() {
  local dir=$1 file name
  while read -r file _; do
    name=${file%%_*}
    mkdir -p "$dir/$name"
    deb_into "$CACHE/apt/archives/$file" "$dir/$name"
  done
}

# deb_into FILE DIR unpacks one package on top of DIR and follows DIR's merged-/usr links, which
# `dpkg-deb -x` would replace by folders.
deb_into() {
  merged_usr "$2"
  dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --numeric-owner --keep-directory-symlink
}

# ── Root filesystems ───────────────────────────────────────────────────────────────────────────

# merged_usr DIR: /bin, /lib, /lib64, /sbin as links into /usr, as in Debian 12 and Ubuntu 22.04.
merged_usr() {
  local name
  for name in bin lib lib64 sbin; do
    mkdir -p "$1/usr/$name"
    [[ -e $1/$name || -L $1/$name ]] || ln -s "usr/$name" "$1/$name"
  done
}

# skeleton DIR: the folders and files that every container expects to find.
skeleton() {
  local dir=$1
  mkdir -p "$dir"/{dev,etc,home,proc,run,sys,usr,var/lib,var/log}
  install -d -m 0700 "$dir/root"
  install -d -m 1777 "$dir/tmp" "$dir/var/tmp"
  ln -s ../run "$dir/var/run"
  cat >"$dir/etc/passwd" <<-'END'
	root:x:0:0:root:/root:/bin/sh
	www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
	nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
	END
  cat >"$dir/etc/group" <<-'END'
	root:x:0:
	tty:x:5:
	www-data:x:33:
	nogroup:x:65534:
	END
  printf 'hosts: files dns\npasswd: files\ngroup: files\nservices: files\n' >"$dir/etc/nsswitch.conf"
}

# add_packages UNPACKED DIR PACKAGE... copies what a program needs at run time: no manuals, no
# translations, no init scripts. Copyright notices stay.
add_packages() {
  local unpacked=$1 dir=$2 package
  shift 2
  merged_usr "$dir"
  for package in "$@"; do
    cp -a "$unpacked/$package/." "$dir/"
  done
  rm -rf "$dir"/usr/share/{man,locale,info,lintian,bug,bash-completion,vim,apport,doc-base} \
    "$dir"/etc/{init.d,default,logrotate.d,ufw,cron.*,ld.so.conf.d} \
    "$dir"/usr/lib/{systemd,tmpfiles.d,udev} "$dir"/usr/lib/*/{gconv,audit}
  [[ ! -d $dir/usr/share/doc ]] || find "$dir/usr/share/doc" -type f ! -name copyright -delete
  find "$dir/usr" -mindepth 1 -type d -empty -delete
  merged_usr "$dir" # usr/bin and its like may just have gone
}

# unmerged DIR takes the merged-/usr links away again: they stand once, in the base layer.
unmerged() {
  local name
  for name in bin lib lib64 sbin; do
    [[ ! -L $1/$name ]] || rm "$1/$name"
  done
}

# needed_packages UNPACKED PROGRAM... prints the packages whose libraries the programs load, as the
# dynamic loader itself finds them. A missing library is an error.
needed_packages() {
  local unpacked=$1 all loader program libraries path found
  shift
  all=$(mktemp -d "$unpacked/.all.XXXXXX")
  merged_usr "$all"
  for path in "$unpacked"/*/; do
    cp -al "$path." "$all/"
  done
  for loader in "$all"/usr/lib*/ld-linux*.so.*; do break; done
  [[ -e $loader ]] || die "no dynamic loader among the packages"
  for program in "$@"; do
    libraries=$(chroot "$all" "${loader#"$all"}" --list "$program") ||
      die "$program: its libraries do not load"
    [[ $libraries != *"not found"* ]] || die "$program: ${libraries//$'\n'/ }"
    while read -r path; do
      for found in "$unpacked"/*/; do
        if [[ -e $found/${path#/} ]]; then
          basename "$found"
        fi
      done
    done < <(grep -o '/[^ ]*' <<<"$libraries")
  done | LC_ALL=C sort -u
  rm -rf "$all"
}

# ── Archives ───────────────────────────────────────────────────────────────────────────────────

# tar_of DIR: the folder as a reproducible tar on stdout: sorted, one time, numeric owners.
tar_of() {
  LC_ALL=C tar -C "$1" --sort=name --mtime="@$EPOCH" --numeric-owner --format=gnu -cf - \
    --transform='s,^\./,,;s,^\.$,./,' .
}

sha256_of() { sha256sum "$1" | cut -d' ' -f1; }

# json_list WORD...: a JSON list of words that need no escaping (digests, paths).
json_list() {
  local out='' word
  for word in "$@"; do out+="${out:+,}\"$word\""; done
  printf '[%s]' "$out"
}

# pack_layers LAYERS WORK: every folder of LAYERS becomes WORK/N.tar; sets DIFF_IDS and LAYER_NAMES.
pack_layers() {
  local layer number=0
  DIFF_IDS=() LAYER_NAMES=()
  for layer in "$1"/*/; do
    layer=${layer%/}
    tar_of "$layer" >"$2/$number.tar"
    DIFF_IDS+=("sha256:$(sha256_of "$2/$number.tar")")
    LAYER_NAMES+=("${layer##*/*-}")
    number=$((number + 1))
  done
  ((number > 0)) || die "the image script made no layer"
}

# write_config FILE: the image configuration (OCI image-spec, config.md).
write_config() {
  local created name history=''
  created=$(date -u -d "@$EPOCH" +%Y-%m-%dT%H:%M:%SZ)
  for name in "${LAYER_NAMES[@]}"; do
    history+="${history:+,}{\"created\":\"$created\",\"created_by\":\"deploy/images/make ${IMAGE_REF%%:*} ($name)\"}"
  done
  printf '{"architecture":"%s","config":%s,"created":"%s","history":[%s],"os":"linux","rootfs":{"diff_ids":%s,"type":"layers"}}' \
    "$(dpkg --print-architecture)" "$IMAGE_CONFIG" "$created" "$history" \
    "$(json_list "${DIFF_IDS[@]}")" >"$1"
}

# write_oci WORK OUT: an OCI image layout (image-layout.md) with gzip layers, as a tar.
write_oci() {
  local work=$1 out=$2 root=$1/oci number digest config manifest layers=''
  local type=application/vnd.oci.image
  mkdir -p "$root/blobs/sha256"
  for number in "${!DIFF_IDS[@]}"; do
    gzip -n -6 <"$work/$number.tar" >"$work/blob"
    digest=$(sha256_of "$work/blob")
    layers+="${layers:+,}{\"mediaType\":\"$type.layer.v1.tar+gzip\",\"digest\":\"sha256:$digest\",\"size\":$(stat -c %s "$work/blob")}"
    mv "$work/blob" "$root/blobs/sha256/$digest"
  done
  write_config "$work/config"
  config=$(sha256_of "$work/config")
  printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":{"mediaType":"%s.config.v1+json","digest":"sha256:%s","size":%s},"layers":[%s]}' \
    "$type" "$type" "$config" "$(stat -c %s "$work/config")" "$layers" >"$work/manifest"
  mv "$work/config" "$root/blobs/sha256/$config"
  manifest=$(sha256_of "$work/manifest")
  printf '{"schemaVersion":2,"mediaType":"%s.index.v1+json","manifests":[{"mediaType":"%s.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"io.containerd.image.name":"docker.io/library/%s","org.opencontainers.image.ref.name":"%s"},"platform":{"architecture":"%s","os":"linux"}}]}' \
    "$type" "$type" "$manifest" "$(stat -c %s "$work/manifest")" "$IMAGE_REF" "${IMAGE_REF#*:}" \
    "$(dpkg --print-architecture)" >"$root/index.json"
  mv "$work/manifest" "$root/blobs/sha256/$manifest"
  printf '{"imageLayoutVersion":"1.0.0"}' >"$root/oci-layout"
  archive "$root" "$out"
}

# write_docker WORK OUT: what `docker save` wrote before version 25: manifest.json and plain layers.
write_docker() {
  local work=$1 out=$2 root=$1/docker number id config paths=()
  mkdir -p "$root"
  for number in "${!DIFF_IDS[@]}"; do
    id=${DIFF_IDS[number]#sha256:}
    mkdir -p "$root/$id"
    mv "$work/$number.tar" "$root/$id/layer.tar"
    paths+=("$id/layer.tar")
  done
  write_config "$work/config"
  config=$(sha256_of "$work/config")
  mv "$work/config" "$root/$config.json"
  printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":%s}]' \
    "$config" "$IMAGE_REF" "$(json_list "${paths[@]}")" >"$root/manifest.json"
  printf '{"%s":{"%s":"%s"}}' "${IMAGE_REF%%:*}" "${IMAGE_REF#*:}" "$id" >"$root/repositories"
  archive "$root" "$out"
}

# archive DIR OUT: the outer tar, whose owners are root whoever runs this.
archive() {
  chmod -R u=rwX,go=rX "$1"
  tar_of "$1" >"$2"
}
