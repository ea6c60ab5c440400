"""Sentiment text VAEs in PyTorch: a library that needs neither Ray nor the service."""
