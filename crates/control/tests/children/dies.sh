#!/bin/sh
# Ends without a reply, and says why with what a terminal would obey.
printf 'one\033[31m\ntwo\n' >&2
exit 7
