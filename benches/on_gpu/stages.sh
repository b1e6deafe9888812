# Stages with limits of time, for scripts that have a machine for minutes. Sourced; before the first stage set
#   out     the folder of logs and of stages.txt, which says what ended how, after how long
#   budget  seconds in all
# A stage that fails or is stopped loses no other; `failed` is 1 afterwards.

failed=0

note() { echo "$*" | tee -a "$out/stages.txt" >&2; }

# stage NAME LIMIT STDOUT COMMAND…: stops after LIMIT seconds, or when the budget is spent, as Ctrl-C does: what was measured is written.
stage() {
  local name=$1 limit=$2 stdout=$3 left=$((budget - SECONDS)) start=$SECONDS status
  shift 3
  if [ "$left" -lt 15 ]; then
    note "$name: left out, no time"
    failed=1
    return 1
  fi
  [ "$limit" -lt "$left" ] || limit=$left
  echo "== $name, at most $limit s: $*" >&2
  timeout --signal INT --kill-after 15 "$limit" "$@" > "$stdout" 2> "$out/$name.log"
  status=$?
  case $status in
    0) note "$name: done, $((SECONDS - start)) s" ;;
    124 | 137) note "$name: stopped after $((SECONDS - start)) s" && failed=1 ;;
    *) note "$name: failed with $status after $((SECONDS - start)) s: $(tail -n 1 "$out/$name.log")" && failed=1 ;;
  esac
  return "$status"
}
