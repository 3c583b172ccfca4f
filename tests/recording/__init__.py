"""Makes docs/assets/demo.svg: `make demo`, recorded in a terminal (`make recording`)."""
