"""``python -m pi_relay`` is ``pi-relay``."""

import sys

from pi_relay.cli import main

sys.exit(main())
