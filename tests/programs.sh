# shellcheck shell=bash
# Test programs: building them, choosing among them, running them one after the other, the totals.
#
# To be sourced under `set -euo pipefail` by what has WORK (a folder for what lasts until the end),
# PATTERNS (the caller's words) and deploy/lib.sh.

# A test program that hangs is a failure too. RORQUAL_TEST_SLOWNESS is how many times longer than usual
# everything may take (emulated machines).
PROGRAM_SECONDS=$((900 * ${RORQUAL_TEST_SLOWNESS:-1}))

PASSED=0 FAILED=0 SKIPPED=0 BROKEN=()

STARTED=$SECONDS
step() { printf '\n== %s (at %d s)\n' "$1" $((SECONDS - STARTED)); }

# build_tests writes one line per test program to WORK/programs: executable, name, its crate's folder.
build_tests() {
  rq_cargo test --workspace --locked --no-run --message-format=json \
    2> >(grep -vE '^ +(Executable|Finished|Compiling)' >&2) |
    jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable != null)
           | [.executable, .target.name, (.manifest_path | sub("/Cargo.toml$"; ""))] | @tsv' |
    sort -t $'\t' -k 3,3 -k 2,2 >"$WORK/programs"
}

# label NAME FOLDER: how a test program is called here, as `controller/planner/rorqual_planner`.
label() { echo "${2#"$RQ_ROOT"/}/$1"; }

# wanted LABEL: one of the patterns is in it, or there are none.
wanted() {
  local pattern
  ((${#PATTERNS[@]})) || return 0
  for pattern in "${PATTERNS[@]}"; do
    [[ $1 != *"$pattern"* ]] || return 0
  done
  return 1
}

# count WORD: the number that stands before it in the line that a test program ends with.
count() { sed -E "s/.* ([0-9]+) $1.*/\1/"; }

# run_program EXECUTABLE FOLDER LABEL ARGUMENT... runs one test program and adds up its result.
run_program() {
  local began line status=0
  began=${EPOCHREALTIME/[.,]/}
  (
    cd "$2"
    CARGO_MANIFEST_DIR=$2 timeout --kill-after=10 "$PROGRAM_SECONDS" "$1" "${@:4}"
  ) </dev/null >"$WORK/log" 2>&1 || status=$?
  grep -vE '^(test .* \.\.\. (ok|ignored.*)|running [0-9]+ tests?)?$' "$WORK/log" || true
  printf '%7d ms  %s\n' $(((${EPOCHREALTIME/[.,]/} - began) / 1000)) "$3" >>"$WORK/timings"
  if line=$(grep -E '^test result: ' "$WORK/log" | tail -n 1) && [[ $status == 0 || $line == *FAILED* ]]; then
    PASSED=$((PASSED + $(count passed <<<"$line")))
    FAILED=$((FAILED + $(count failed <<<"$line")))
    SKIPPED=$((SKIPPED + $(count ignored <<<"$line")))
    [[ $status == 0 ]] || BROKEN+=("$3: $(sed -nE 's/^test (.*) \.\.\. FAILED$/\1/p' "$WORK/log" | xargs)")
  else
    FAILED=$((FAILED + 1))
    BROKEN+=("$3: ended with status $status and no result$([[ $status != 124 ]] || echo " ($PROGRAM_SECONDS s were over)")")
  fi
}

# add_totals LABEL STATUS FILE adds up what another suite said at its end.
add_totals() {
  local line
  if line=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$3" | tail -n 1) && (($2 < 124)); then
    PASSED=$((PASSED + $(sed -E 's/^([0-9]+) passed.*/\1/' <<<"$line")))
    FAILED=$((FAILED + $(count failed <<<"$line")))
    SKIPPED=$((SKIPPED + $(count skipped <<<"$line")))
    (($2 == 0)) || BROKEN+=("$1: see above")
  else
    FAILED=$((FAILED + 1))
    BROKEN+=("$1: ended with status $2 and no totals")
  fi
}

# print_totals: what failed, and the last line. Fails if anything did, or if nothing ran.
print_totals() {
  if ((${#BROKEN[@]})); then
    printf '\nfailed:\n'
    printf '  %s\n' "${BROKEN[@]}"
  fi
  printf '\n%d passed, %d failed, %d skipped\n' "$PASSED" "$FAILED" "$SKIPPED"
  ((FAILED == 0 && PASSED > 0))
}
