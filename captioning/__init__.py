"""Clips to factual captions: listen, look, write, and check that every sentence is grounded."""
