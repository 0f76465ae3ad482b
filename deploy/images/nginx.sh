# shellcheck shell=bash disable=SC2034 # IMAGE_* are read by make
# Image: nginx:demo, nginx that says which replica answered
IMAGE_REF=nginx:demo
# SIGQUIT lets nginx finish the requests it has before it ends.
IMAGE_CONFIG='{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"ExposedPorts":{"80/tcp":{}},"Cmd":["nginx","-g","daemon off;"],"WorkingDir":"/","StopSignal":"SIGQUIT"}'

image_packages() {
  if package_known nginx-light; then echo nginx-light; else echo nginx; fi
}

image_build() {
  local unpacked=$1 base=$2/00-base app=$2/10-nginx site=$2/20-site owner needed=()
  # nginx-light holds the program in Ubuntu 22.04 and only names other packages in Debian 12.
  for owner in "$unpacked"/*/usr/sbin/nginx; do break; done
  [[ -x $owner ]] || die "none of the packages has /usr/sbin/nginx"
  owner=${owner#"$unpacked/"}
  owner=${owner%%/*}
  mapfile -t needed < <(needed_packages "$unpacked" /usr/sbin/nginx | grep -vx libc6)
  ((${#needed[@]})) || die "cannot tell which libraries nginx loads"

  skeleton "$base"
  add_packages "$unpacked" "$base" libc6
  add_packages "$unpacked" "$app" "$owner" nginx-common "${needed[@]}"
  unmerged "$app"
  rm -rf "$app"/etc/nginx/{sites-*,modules-*,conf.d,snippets,nginx.conf} "$app/var/www"

  mkdir -p "$site/etc/nginx" "$site/var/log/nginx" "$site/var/lib/nginx"
  # Opened before the configuration is read.
  ln -s /dev/stdout "$site/var/log/nginx/access.log"
  ln -s /dev/stderr "$site/var/log/nginx/error.log"
  cat >"$site/etc/nginx/nginx.conf" <<-'END'
	user www-data;
	# One worker: a replica is small, and there are many.
	worker_processes 1;
	pid /run/nginx.pid;
	error_log stderr notice;

	events {
	  worker_connections 1024;
	}

	http {
	  include mime.types;
	  default_type text/plain;
	  server_tokens off;
	  access_log /dev/stdout combined;

	  server {
	    listen 80 default_server;
	    server_name _;

	    # $hostname is the container's, read when nginx starts.
	    location / {
	      add_header X-Replica $hostname;
	      return 200 "Hello from $hostname\nreplica $server_addr:$server_port, client $remote_addr\n";
	    }
	    location = /json {
	      default_type application/json;
	      return 200 '{"replica":"$hostname","address":"$server_addr","client":"$remote_addr"}\n';
	    }
	    location = /health {
	      access_log off;
	      return 200 "ok\n";
	    }
	  }
	}
	END
}

# nginx opens its logs to check its configuration, so the check has a small /dev and a /proc of its
# own, and no network, in namespaces that go away with it.
image_check() {
  # shellcheck disable=SC2016 # $1 is the inner shell's
  unshare --mount --net --pid --fork --kill-child sh -euc '
    mount -t tmpfs tmpfs "$1/dev"
    mount -t proc proc "$1/proc"
    mknod -m 666 "$1/dev/null" c 1 3
    ln -s /proc/self/fd/1 "$1/dev/stdout"
    ln -s /proc/self/fd/2 "$1/dev/stderr"
    chroot "$1" nginx -t' sh "$1" >&2
}
