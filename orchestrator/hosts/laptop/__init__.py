"""Laptops: battery and sleep."""
