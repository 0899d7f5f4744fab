"""Ahead of time: what a run will need on an accelerator that is not there."""
