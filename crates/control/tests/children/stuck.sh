#!/bin/sh
# Never replies.
echo "process $$ waits" >&2
exec sleep 600
