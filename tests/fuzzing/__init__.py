"""The borders of docs/explanation/security.md under arbitrary input: `make fuzz`."""
