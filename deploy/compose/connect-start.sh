#!/bin/sh
# The shared settings of the worker, with this container's addresses after them.
set -eu
{
  cat /etc/cdc/connect.properties
  echo "bootstrap.servers=kafka:9092"
  echo "plugin.path=/opt/plugins"
  echo "listeners=http://0.0.0.0:8083"
  echo "rest.advertised.host.name=connect"
} > /tmp/worker.properties
exec /opt/kafka/bin/connect-distributed.sh /tmp/worker.properties
