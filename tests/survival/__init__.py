"""The survival matrix: every fault against every example; `make survival`."""
