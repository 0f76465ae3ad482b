# shellcheck shell=bash disable=SC2034 # IMAGE_* are read by make
# Image: node:18, Node.js and npm, with busybox as the shell
#
# Called what Dockerfiles ask for, whichever version the distribution has (Debian 12: 18).
IMAGE_REF=node:18
IMAGE_CONFIG='{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["node"],"WorkingDir":"/"}'

# npm depends on 400 packages. Most of them build or test others, or compile add-ons.
IMAGE_WITHOUT=(gyp libnode-dev python3 webpack eslint handlebars node-babel7 node-core-js node-istanbul
  node-jest-debbundle node-lodash node-tape node-yargs)

image_packages() { printf '%s\n' busybox-static nodejs npm; }

image_build() {
  local unpacked=$1 base=$2/00-base node=$2/10-node npm=$2/20-npm applet package needed=() rest=()
  mapfile -t needed < <(needed_packages "$unpacked" /usr/bin/node | grep -vx libc6)
  ((${#needed[@]})) || die "cannot tell which libraries node loads"
  for package in "$unpacked"/node-*/; do rest+=("$(basename "$package")"); done

  skeleton "$base"
  add_packages "$unpacked" "$base" libc6
  # usr/bin or bin, by the age of the distribution; merged-/usr makes it the same folder.
  install -m 0755 "$unpacked/busybox-static/usr/bin/busybox" "$base/usr/bin/busybox"
  for applet in $("$base/usr/bin/busybox" --list); do
    [[ -e $base/usr/bin/$applet ]] || ln -s busybox "$base/usr/bin/$applet"
  done
  add_packages "$unpacked" "$node" nodejs "${needed[@]}"
  add_packages "$unpacked" "$npm" npm "${rest[@]}"
  unmerged "$node"
  unmerged "$npm"
  rm -rf "$npm"/usr/share/{nodejs/npm/{docs,man},doc}
}

# npm unpacks a package that lies beside it, without any network.
image_check() {
  local answer
  mkdir -p "$1/tmp/check/own"
  echo '{"name":"check","dependencies":{"own":"file:own"}}' >"$1/tmp/check/package.json"
  echo '{"name":"own","version":"1.0.0"}' >"$1/tmp/check/own/package.json"
  echo 'module.exports = "works"' >"$1/tmp/check/own/index.js"
  answer=$(unshare --net chroot "$1" /usr/bin/env -i HOME=/tmp PATH=/usr/bin \
    sh -euc 'cd /tmp/check; npm install >&2; node -p "require(\"own\")"')
  [[ $answer == works ]]
}
