#!/bin/sh
# Tells keys, whatever was asked.
# A socket closed with unread bytes in it would lose the reply.
dd bs=1M count=1 of=/dev/null 2>/dev/null
json='{"confinement":{"landlock":"none","protection":null},"results":[{"Ok":{"list_keys":[]}}]}'
printf '\0\0\0\1\0\0\0\131%s' "$json" >&0
