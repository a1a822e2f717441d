#!/bin/sh
# Tells Spark which GPUs this process may use: {"name": "gpu", "addresses": ["0", "1"]}
#
# Those that CUDA_VISIBLE_DEVICES names, else all that nvidia-smi knows; of a GPU that is cut by MIG, its instances.
# Addresses are what CUDA_VISIBLE_DEVICES takes. Without GPUs the list is empty.
set -eu

if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    # CUDA, too, reads the list up to the first entry that is no device, such as -1.
    found=$(printf '%s\n' "$CUDA_VISIBLE_DEVICES" | tr -d ' ' | tr ',' '\n' |
        awk '!/^[A-Za-z0-9][A-Za-z0-9\/:._-]*$/ { exit } { print }')
elif command -v nvidia-smi >/dev/null; then
    listed=$(nvidia-smi -L) || { echo "nvidia-smi fails: $listed" >&2; exit 1; }
    found=$(printf '%s\n' "$listed" | awk '
        function whole() { if (index_ != "") print index_; index_ = "" }
        /^GPU [0-9]+:/ { whole(); index_ = $2; sub(/:.*/, "", index_) }
        match($0, /MIG-[A-Za-z0-9\/-]+\)/) { index_ = ""; print substr($0, RSTART, RLENGTH - 1) }
        END { whole() }')
else
    found=
fi

printf '{"name": "gpu", "addresses": ['
separator=
for address in $found; do
    printf '%s"%s"' "$separator" "$address"
    separator=', '
done
printf ']}\n'
