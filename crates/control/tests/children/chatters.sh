#!/bin/sh
# Fills standard error far beyond what a pipe holds, then replies.
# A socket closed with unread bytes in it would lose the reply.
dd bs=1M count=1 of=/dev/null 2>/dev/null
head -c 1000000 /dev/zero | tr '\0' 'x' >&2
json='{"confinement":{"landlock":"none","protection":null},"results":[{"Ok":{"list_keys":[]}}]}'
printf '\0\0\0\1\0\0\0\131%s' "$json" >&0
