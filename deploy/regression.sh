#!/bin/sh
# Compute a sweep anew, in a store of this week, and hold it against a baseline. Again in the same week, it continues.
#
#   regression.sh SWEEP.yaml STORES BASELINE [options of puregrid run]
#
# No --set among the options: the check must see the same sweep.
#
# Ends with 0 if the baseline holds, 1 if something got worse or units failed, 2 if it could not tell.
set -eu
sweep=$1
store=$2/$(date -u +%G-W%V)
baseline=$3
shift 3
puregrid run "$sweep" --store "$store" "$@"
puregrid check "$sweep" --store "$store" --baseline "$baseline"
