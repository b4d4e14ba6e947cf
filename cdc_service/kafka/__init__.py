"""Kafka as the service sees it; the only package that imports confluent_kafka."""
