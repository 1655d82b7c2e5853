"""pi-relay: the mail relay that a small office plugs in and forgets."""

__version__ = "0.1.0"
