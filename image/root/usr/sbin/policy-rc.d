#!/bin/sh
# Asked by packages before they start or restart a service (101: they must not).
[ ! -e /run/pi-relay-box-finishing ] || exit 101
