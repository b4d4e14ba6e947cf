"""Any database that SQLAlchemy knows, as a source of loaded tables (ports.load)."""
