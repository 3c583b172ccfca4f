"""The survival matrix, made by `make survival`: every kind of fault against every example."""
