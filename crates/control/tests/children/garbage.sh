#!/bin/sh
# Replies with something else than a message.
# A socket closed with unread bytes in it would lose the reply.
dd bs=1M count=1 of=/dev/null 2>/dev/null
echo 'HTTP/1.1 200 OK' >&0
