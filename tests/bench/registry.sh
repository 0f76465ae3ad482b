# shellcheck shell=bash
# Debian's docker-registry on loopback, and clocks, for tests/bench/pull and tests/bench/push. To be sourced.

# start_registry FOLDER sets REGISTRY (host and port) and REGISTRY_PID.
start_registry() {
  local port
  for port in {5091..5190}; do
    ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || continue
    cat >"$1/registry.yml" <<END_CONFIG
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $1/registry}}
http: {addr: "127.0.0.1:$port"}
END_CONFIG
    docker-registry serve "$1/registry.yml" &>"$1/registry.log" &
    REGISTRY_PID=$! REGISTRY=127.0.0.1:$port
    for _ in {1..200}; do
      kill -0 "$REGISTRY_PID" 2>/dev/null || break
      ! curl -fs "http://$REGISTRY/v2/" >/dev/null || return 0
      sleep 0.05
    done
    # Somebody else was quicker with the port.
    kill "$REGISTRY_PID" 2>/dev/null || true
  done
  die "docker-registry does not start: $(tail -n 3 "$1/registry.log")"
}

# The milliseconds of every round, by what was measured.
declare -A TIMES

# clock NAME COMMAND... adds the milliseconds that the command takes to TIMES[NAME].
clock() {
  local name=$1 began
  shift
  began=${EPOCHREALTIME/[.,]/}
  "$@" >/dev/null
  TIMES[$name]+=" $(((${EPOCHREALTIME/[.,]/} - began) / 1000))"
}

# median NAME prints the middle one of TIMES[NAME].
median() {
  local -a sorted
  mapfile -t sorted < <(tr ' ' '\n' <<<"${TIMES[$1]# }" | sort -n)
  echo "${sorted[$((${#sorted[@]} / 2))]}"
}

# ratio A B: how many times A is B.
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }
