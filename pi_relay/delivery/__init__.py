"""The room that passes mail on to the next hops."""

from pi_relay.delivery.delivery import Delivery

__all__ = ["Delivery"]
