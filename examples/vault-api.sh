#!/bin/sh
# Keep something in the device's vault from a program in any language: one JSON object a line over a Unix socket.
#
#   vault-api.sh write NAME < FILE      vault-api.sh read NAME > FILE      vault-api.sh list      vault-api.sh delete NAME
#
# Needs socat, base64 and sed; the policy grants this user the item (docs/agent.md, "The vault for programs").
# NAME holds no quotation mark or backslash. Files up to 196,608 bytes: larger ones go piece by piece with "append".
set -eu

socket=${TIDEGATE_VAULT:-/run/tidegate/vault.sock}

ask() {
    answer=$(printf '%s\n' "$1" | socat -t 30 - "UNIX-CONNECT:$socket")
    case $answer in
    '{"error":'*)
        printf '%s\n' "$answer" >&2
        exit 3
        ;;
    esac
}

case ${1:-} in
write)
    ask "{\"op\":\"vault-write\",\"name\":\"$2\",\"content\":\"$(base64 -w 0)\"}"
    ;;
read)
    ask "{\"op\":\"vault-read\",\"name\":\"$2\"}"
    printf '%s' "$answer" | sed 's/.*"content":"\([^"]*\)".*/\1/' | base64 -d
    ;;
list)
    ask '{"op":"vault-list"}'
    printf '%s\n' "$answer"
    ;;
delete)
    ask "{\"op\":\"vault-delete\",\"name\":\"$2\"}"
    ;;
*)
    sed -n '2,4p' "$0" >&2
    exit 2
    ;;
esac
