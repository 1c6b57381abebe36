"""The kernel's flows, on a modelled kernel."""
