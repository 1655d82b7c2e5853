"""pi-relay and stock Postfix on the same work, in the same run: ``scripts/bench``."""
