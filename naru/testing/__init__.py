"""What tests of any service need: a clock that stands still, and real servers of their own."""
