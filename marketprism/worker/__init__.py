"""One exchange, running: connects, polls, drives the venue, publishes, tells how it is."""
