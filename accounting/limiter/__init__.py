"""Whether a request may be made: reservations, decided in Redis."""
