# shellcheck shell=bash disable=SC2034 # IMAGE_* are read by make
# Image: busybox:latest, a static busybox with all its applets
IMAGE_REF=busybox:latest
IMAGE_CONFIG='{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["sh"]}'

image_packages() { echo busybox-static; }

image_build() {
  local unpacked=$1 base=$2/00-base app=$2/10-busybox applet
  skeleton "$base"
  sed -i 's,/usr/sbin/nologin,/bin/false,' "$base/etc/passwd"
  # All programs are in /bin; the other places lead there.
  mkdir -p "$base/bin"
  ln -s bin "$base/sbin"
  ln -s ../bin "$base/usr/bin"
  ln -s ../bin "$base/usr/sbin"

  # usr/bin or bin, by the age of the distribution; merged-/usr makes it the same folder.
  install -D -m 0755 "$unpacked/busybox-static/usr/bin/busybox" "$app/bin/busybox"
  for applet in $("$app/bin/busybox" --list); do
    [[ $applet == busybox ]] || ln -s busybox "$app/bin/$applet"
  done
  install -D -m 0644 "$unpacked/busybox-static/usr/share/doc/busybox-static/copyright" \
    "$app/usr/share/doc/busybox-static/copyright"
}

image_check() {
  [[ $(chroot "$1" /usr/bin/env -i /bin/sh -c 'id -un nobody && httpd --help 2>&1 | head -n 1') == nobody*BusyBox* ]]
}
