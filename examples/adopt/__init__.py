"""Tries adopt mode on programs that other people have written.

python -m examples.adopt --checkouts DIR --python VENV/bin/python
"""
