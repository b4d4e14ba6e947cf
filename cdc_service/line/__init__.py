"""The straight line: poll -> decode -> screen -> fold -> evolve -> merge with its checkpoint -> advise Kafka."""
