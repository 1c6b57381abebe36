"""The thin functions and their emulation."""
