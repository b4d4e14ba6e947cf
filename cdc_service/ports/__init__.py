"""The contracts between the parts, and nothing else: the place to read before a part is written.

- ``source``: a source database, what it tells and what it does there; ``capture``: what is known of its connector at work.
- ``feed``: where changes come from.
- ``events``: bytes in, batches of changes out.
- ``destination``: a warehouse that the line writes to.
- ``reader``: a table as it stood at one moment, at a source or a destination, for comparisons.

Contracts import ``cdc_service.core`` and one another. Parts (connectors, mergers, reconcile, kafka, pipeline) import contracts, never one
another; ``cdc_service.runtime`` joins them.
"""
