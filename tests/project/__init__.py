"""The project itself: packaging, documents, layers."""
