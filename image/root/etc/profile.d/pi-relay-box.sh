# The greeting of an admin who logs in.
if [ -n "$PS1" ] && [ -z "$PI_RELAY_GREETED" ]; then
  PI_RELAY_GREETED=1
  export PI_RELAY_GREETED
  python3 /usr/lib/pi-relay-box/box.py greet
fi
