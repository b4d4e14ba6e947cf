"""PostgreSQL as a source, through pgoutput."""
